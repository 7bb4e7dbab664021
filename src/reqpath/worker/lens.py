"""The CPU lens: how much of a request's time in Python its thread ran, and how long it stood runnable.

`cpu` is the thread's CPU clock, `run queue` the second field of `/proc/self/task/<tid>/schedstat`. What the
two leave of the wall time is *blocked*: the thread slept in a call, or for a lock, in a threaded worker in
the main the GIL. Source: Linux Documentation/scheduler/sched-stats.rst.

Both are read by system calls, four a request, a good part of all that reqpath would cost. So they are read
where that is next to nothing, for a request that follows one of more than `SLOW_NS` in its process, and of
all others for one in sixteen, taken at random.
"""

from __future__ import annotations

import os
import threading
from typing import Final

#: One request in sixteen has a lens, among fast ones: those whose random number of 64 bits is below this.
LENS_BELOW: Final = 1 << 60
#: After one that took longer, each has.
SLOW_NS: Final = 5_000_000


class RunQueueClock:
    """Reads the calling thread's time in the scheduler's run queue, by one `pread` on an open descriptor.

    Each thread has a descriptor of its own, closed when the thread ends. A clock is good for one process:
    after a fork the descriptors show the parent's threads.
    """

    def __init__(self) -> None:
        self._threads = threading.local()

    def read_ns(self) -> int | None:
        """Return the nanoseconds so far; None where the kernel does not tell."""
        try:
            fd: int = self._threads.fd
        except AttributeError:
            self._threads.schedstat = schedstat = _Schedstat()
            fd = self._threads.fd = schedstat.fd
        if fd < 0:
            return None
        try:
            return int(os.pread(fd, 64, 0).split()[1])
        except (OSError, ValueError, IndexError):
            return None


class _Schedstat:
    """The calling thread's schedstat file; `fd` is -1 where there is none."""

    def __init__(self) -> None:
        try:
            path = f"/proc/self/task/{threading.get_native_id()}/schedstat"
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.fd = -1

    def __del__(self) -> None:
        # A forked child closes its copy of its parent's descriptor.
        if self.fd >= 0:
            os.close(self.fd)
