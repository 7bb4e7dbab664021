"""Tells a process from those that are forked from it, without asking the kernel each time.

uWSGI forks in C, where no hook of Python's need run, and what a worker looks up for each request has to be
its own. A page that the kernel wipes in every child tells that at the cost of reading a byte::

    mark = mark_process()
    mark[0]     # 1 here, 0 in a child

Source: madvise(2), MADV_WIPEONFORK, since Linux 4.14.
"""

from __future__ import annotations

import mmap
import os
from typing import Final, Protocol

#: Source: linux/mman.h. Python's `mmap` does not name it.
_MADV_WIPEONFORK: Final = 18


class Mark(Protocol):
    """Of a process."""

    def __getitem__(self, index: int, /) -> int:
        """Return 1 in the process that was marked, 0 in every other; `index` is 0."""


#: Of no process.
NO_PROCESS: Final[Mark] = b"\0"


def mark_process() -> Mark:
    """Return a mark of this process."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
        page[0] = 1
    except (AttributeError, OSError, ValueError):
        return _Number()
    return page


class _Number:
    """Asks the kernel each time, where it wipes nothing."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, index: int, /) -> int:
        return int(os.getpid() == self._pid)
