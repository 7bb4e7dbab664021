"""What every test is held to, and what most of them use.

After each test nothing of it may be left: no current request, no OpenTelemetry context, no child process, no
thread, no open descriptor.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from opentelemetry import context as otel_context

from reqpath.record import NginxRecord, Record
from reqpath.spool import SpoolReader
from reqpath.usual import complete
from reqpath.worker import guard
from reqpath.worker.recorder import current

# How long an example takes says how busy the machine is.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


class FakeClock:
    """A clock that stands still until it is told to go on; its three sources move together.

    Example::

        with FakeClock().running() as clock: ...  # for all of `reqpath.worker`
    """

    def __init__(self, wall_ns: int = 1_800_000_000_000_000_000) -> None:
        self.wall_ns = wall_ns
        self.monotonic_ns = 5_000
        self.cpu_ns = 70_000

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeClock]:
        """Have the worker read this clock."""
        with worker_clocks(
            time_ns=lambda: self.wall_ns,
            monotonic_ns=lambda: self.monotonic_ns,
            thread_time_ns=lambda: self.cpu_ns,
        ):
            yield self

    def advance(self, duration_ns: int) -> None:
        """Let time pass, all of it spent on the CPU."""
        self.wall_ns += duration_ns
        self.monotonic_ns += duration_ns
        self.cpu_ns += duration_ns


@contextlib.contextmanager
def worker_clocks(**clocks: Callable[[], int]) -> Iterator[None]:
    """Have the worker's modules read other clocks than those of `time`, by the names of its functions."""
    modules = [module for name, module in sys.modules.items() if name.startswith("reqpath.worker.")]
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            for name, clock in clocks.items():
                if hasattr(module, name):
                    patch.setattr(module, name, clock)
        yield


def _descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # the one by which the directory was listed
            continue
        if "/schedstat" in target:  # each thread that served a request keeps one for as long as it lives
            continue
        found[number] = target
    return found


def _children() -> set[str]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return set(file.read().split())


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fail a test that leaves something of itself in the process."""
    threads, children, descriptors = set(threading.enumerate()), _children(), _descriptors()
    context = otel_context.get_current()
    yield
    recorder, left_context = current.get(), otel_context.get_current()
    if recorder is not None or left_context != context:
        # Put right for the next test.
        current.set(None)
        otel_context.attach(context)
    assert recorder is None, "a request is still current"
    assert left_context == context, "an OpenTelemetry context is still attached"
    assert not set(threading.enumerate()) - threads, "a thread is still running"
    assert not _children() - children, "a child process is still there"
    left = _descriptors()
    if left != descriptors:
        # What only the collector of cycles frees is no leak.
        gc.collect()
        left = _descriptors()
    opened = {number: target for number, target in left.items() if descriptors.get(number) != target}
    assert not opened, "descriptors are still open"


@pytest.fixture
def spool(tmp_path: Path) -> str:
    """Return a directory for a spool, which is not there yet."""
    return str(tmp_path / "spool")


@pytest.fixture
def fake_clock() -> Iterator[FakeClock]:
    """Return the worker's clock, which the test moves."""
    with FakeClock().running() as clock:
        yield clock


@pytest.fixture
def read_records() -> Callable[[str], list[Record]]:
    """Return a function that reads all records of a spool, completed, in the order of their files."""

    def read(spool: str) -> list[Record]:
        if not os.path.isdir(spool):
            return []
        return [
            record if isinstance(record, NginxRecord) else complete(record, info.writer_id)
            for info, records in SpoolReader(spool).read()
            for record in records
        ]

    return read


@pytest.fixture
def faults() -> Iterator[dict[str, int]]:
    """Return the counted faults of the guard, empty at first, and forget them afterwards."""
    guard.faults.clear()
    yield guard.faults
    guard.faults.clear()
