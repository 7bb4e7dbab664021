"""The clocks: integers in nanoseconds, from the sources that are named."""

from __future__ import annotations

import time

from reqpath.clock import SYSTEM, Clock


def test_the_systems_clocks_are_the_kernels() -> None:
    assert SYSTEM.wall_ns is time.time_ns
    assert SYSTEM.monotonic_ns is time.perf_counter_ns
    assert SYSTEM.thread_cpu_ns is time.thread_time_ns


def test_the_monotonic_clock_does_not_go_back() -> None:
    stamps = [SYSTEM.monotonic_ns() for _ in range(1000)]
    assert stamps == sorted(stamps)


def test_a_test_hands_in_its_own() -> None:
    clock = Clock(lambda: 1, lambda: 2, lambda: 3)
    assert (clock.wall_ns(), clock.monotonic_ns(), clock.thread_cpu_ns()) == (1, 2, 3)
