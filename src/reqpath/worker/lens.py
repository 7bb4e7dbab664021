"""The CPU lens: how much of a request's time in Python its thread ran, and how long it stood runnable.

`cpu` is the thread's CPU clock, `run queue` the second field of `/proc/self/task/<tid>/schedstat`. What the
two leave of the wall time is *blocked*: the thread slept in a call, or for a lock, in a threaded worker in
the main the GIL. Source: Linux Documentation/scheduler/sched-stats.rst.

Reading the run queue twice costs as much as a tenth of all that reqpath does for a plain request, so it is
read for one request in `RUN_QUEUE_EVERY`, taken at random.
"""

from __future__ import annotations

import os
import threading
from typing import Final

#: One request in so many has a known run queue, and so a known blocked time.
RUN_QUEUE_EVERY: Final = 8


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
