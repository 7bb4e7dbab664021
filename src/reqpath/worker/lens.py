"""The CPU lens: how much of a request's time in Python its thread ran, and how long it stood runnable.

`cpu` is the thread's CPU clock, `run queue` the second field of `/proc/self/task/<tid>/schedstat`. What is
left of the wall time, less the measured database wait, is *blocked*: in a threaded worker in the main the
GIL. Source: Linux Documentation/scheduler/sched-stats.rst.
"""

from __future__ import annotations

import os
import threading


class RunQueueClock:
    """Reads the calling thread's time in the scheduler's run queue, by one `pread` on an open descriptor.

    The descriptor belongs to one thread of one process and is closed with it.
    """

    def __init__(self) -> None:
        self._threads = threading.local()

    def read_ns(self) -> int | None:
        """Return the nanoseconds so far; None where the kernel does not tell."""
        try:
            source: _Schedstat | None = getattr(self._threads, "source", None)
            if source is None or source.pid != os.getpid():
                source = self._threads.source = _Schedstat()
            return source.read_ns()
        except (OSError, ValueError, IndexError):
            return None


class _Schedstat:
    """One thread's schedstat file."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.fd = -1
        path = f"/proc/self/task/{threading.get_native_id()}/schedstat"
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # Asked again at the next fork only: a kernel without schedstat does not grow it.
            self.fd = -1

    def read_ns(self) -> int | None:
        if self.fd < 0:
            return None
        return int(os.pread(self.fd, 64, 0).split()[1])

    def __del__(self) -> None:
        # A forked child drops its parent's descriptor here as well: it is a copy of its own.
        if self.fd >= 0:
            os.close(self.fd)
