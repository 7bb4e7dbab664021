"""Tells how many rounds of `work.compute` take 5 ms on this machine: `python -m workloads.calibrate`."""

from __future__ import annotations

import statistics
import time

from workloads.work import compute

#: What `/cpu` is to take.
CPU_NS = 5_000_000
_SAMPLES = 60
_ROUNDS = 1_000


def calibrate() -> int:
    """Return the rounds that take `CPU_NS` of the processor's time here."""
    samples_ns = []
    for _ in range(_SAMPLES):
        begin_ns = time.thread_time_ns()
        compute(_ROUNDS)
        samples_ns.append(time.thread_time_ns() - begin_ns)
    return round(_ROUNDS * CPU_NS / statistics.median(samples_ns))


if __name__ == "__main__":
    print(calibrate())  # noqa: T201 - for the program that asks
