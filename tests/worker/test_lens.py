"""The run queue clock: the calling thread's own figure, or none."""

from __future__ import annotations

import os
import threading

import pytest

from reqpath.worker.lens import RunQueueClock

kernel_tells = pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="no schedstat here")


@kernel_tells
def test_it_is_what_the_kernel_says_of_this_thread() -> None:
    clock = RunQueueClock()
    path = f"/proc/self/task/{threading.get_native_id()}/schedstat"

    def read() -> int:
        with open(path, encoding="ascii") as file:
            return int(file.read().split()[1])

    before, between, after = read(), clock.read_ns(), read()
    assert between is not None
    assert before <= between <= after


@kernel_tells
def test_each_thread_has_a_descriptor_of_its_own_and_closes_it_at_its_end() -> None:
    clock = RunQueueClock()
    clock.read_ns()
    descriptors: list[int] = []

    def run() -> None:
        assert clock.read_ns() is not None
        descriptors.append(clock._threads.fd)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert descriptors[0] != clock._threads.fd
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptors[0])


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_a_kernel_that_does_not_tell_gives_none(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    def refuse(*args: object) -> int:
        raise error

    monkeypatch.setattr("reqpath.worker.lens.os.open", refuse)
    clock = RunQueueClock()
    assert clock.read_ns() is None
    assert clock.read_ns() is None


@pytest.mark.parametrize("content", [b"", b"1", b"a b c", b"1 x 2"])
def test_a_line_of_another_form_gives_none(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("reqpath.worker.lens.os.pread", lambda *args: content)
    assert RunQueueClock().read_ns() is None
