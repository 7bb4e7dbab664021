"""The clocks that stamps are taken from, in one place so that tests can hand in their own.

A request is bound to the wall clock once, at its start; every later stamp in the worker is that instant
plus a monotonic difference, so a clock step in the middle can't bend a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Three sources of integer nanoseconds."""

    #: Since the epoch; may step.
    wall_ns: Callable[[], int] = time.time_ns
    #: Since an arbitrary point; never steps. The resolution is the kernel's, 1 ns on Linux.
    monotonic_ns: Callable[[], int] = time.perf_counter_ns
    #: CPU time of the calling thread, user and system.
    thread_cpu_ns: Callable[[], int] = time.thread_time_ns


#: The real clocks.
SYSTEM = Clock()
