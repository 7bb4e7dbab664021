"""The guard: what breaks in reqpath is counted, said once, and never the app's."""

from __future__ import annotations

import gc
import logging

import pytest

from reqpath.worker.guard import note_fault, note_problem


def fail(place: str) -> None:
    try:
        raise LookupError(place)
    except LookupError:
        note_fault(place)


def test_a_fault_is_counted_each_time_and_said_once(
    faults: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "reqpath"):
        for _ in range(5):
            fail("a")
        fail("b")
    assert faults == {"a": 5, "b": 1}
    assert [entry.message for entry in caplog.records] == [
        f"reqpath failed in {place}; the request is not affected. Said once." for place in "ab"
    ]
    assert "LookupError: a" in caplog.text, "with its stack"


def test_a_problem_is_said_in_its_own_words(faults: dict[str, int], caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        note_problem("the spool is full")
    assert [entry.getMessage() for entry in caplog.records] == ["reqpath: the spool is full"]
    assert faults == {"the spool is full": 3}


def test_a_handler_that_raises_is_no_trouble(faults: dict[str, int]) -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise LookupError

    handler = Raising()
    logger = logging.getLogger("reqpath")
    logger.addHandler(handler)
    try:
        fail("a")
        note_problem("b")
    finally:
        logger.removeHandler(handler)
    assert faults == {"a": 1, "b": 1}


def test_a_fault_within_a_fault_does_not_wait_for_itself(faults: dict[str, int]) -> None:
    """The collector of cycles may run a request's end while another fault is being counted."""
    from reqpath.worker import guard

    with guard._lock:
        gc.collect()
        fail("inner")
    assert faults == {"inner": 1}
