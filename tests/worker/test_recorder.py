"""The recorder: at each instant in exactly one segment, however its hooks nest."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from reqpath.raw import NOT_SEEN, Link, RawOperation
from reqpath.record import SpanEvent
from reqpath.tiers import WORKER_SEGMENTS
from reqpath.worker import recorder as segments
from reqpath.worker.recorder import (
    MAX_ATTRIBUTES,
    MAX_EVENTS,
    MAX_TEXT,
    current,
    describe_exception,
)
from tests.conftest import FakeClock
from tests.worker.recorders import make_recorder, read

LINK: Link = ("tcp", "db", 3306, "shop", 1)


def test_the_time_since_the_last_switch_goes_to_the_segment_that_was_current(fake_clock: FakeClock) -> None:
    recorder = make_recorder()
    fake_clock.advance(5)
    assert recorder.switch(segments.VIEW) == segments.MIDDLEWARE
    fake_clock.advance(7)
    assert recorder.switch(segments.QUERY) == segments.VIEW
    assert recorder.last_ns == fake_clock.monotonic_ns
    assert recorder.last_ns - recorder.base_ns == 12
    assert [value for value in read(recorder).exclusive_ns if value] == [5, 7]


@given(steps=st.lists(st.tuples(st.integers(0, len(WORKER_SEGMENTS) - 1), st.integers(0, 10**9))))
def test_segments_add_up_to_the_time_that_went_by(steps: list[tuple[int, int]]) -> None:
    expected = [0] * len(WORKER_SEGMENTS)
    with FakeClock().running() as clock:
        recorder = make_recorder()
        for segment, duration_ns in steps:
            expected[recorder.segment] += duration_ns
            clock.advance(duration_ns)
            recorder.switch(segment)
    assert read(recorder).exclusive_ns == expected
    assert sum(expected) == clock.monotonic_ns - recorder.base_ns


def test_a_step_makes_the_request_current_and_puts_back_what_was(fake_clock: FakeClock) -> None:
    outer, inner = make_recorder(), make_recorder()
    assert current.get() is None
    outer.enter(segments.VIEW)
    inner.enter(segments.APP)
    assert current.get() is inner
    inner.leave()
    assert current.get() is outer
    outer.leave()
    assert current.get() is None
    assert outer.segment == inner.segment == segments.SEND


def test_only_its_own_thread_may_switch(fake_clock: FakeClock) -> None:
    recorder = make_recorder()
    assert recorder.is_own_thread()
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(recorder.is_own_thread()))
    thread.start()
    thread.join()
    assert seen == [False]


def test_what_the_app_puts_in_is_bounded(fake_clock: FakeClock) -> None:
    recorder = make_recorder(max_operations=3)
    for i in range(1000):
        recorder.add_operation(RawOperation(i, NOT_SEEN, i, None, None, LINK))
        recorder.keep_event(SpanEvent(str(i), i))
        recorder.keep_attribute(str(i), i)
    recorder.keep_attribute("0", "changed")
    record = read(recorder)
    assert (len(record.operations), record.dropped_operations) == (3, 997)
    assert len(record.events) == MAX_EVENTS
    assert len(record.attributes) == MAX_ATTRIBUTES
    assert record.attributes["0"] == "changed"


def test_no_two_requests_share_what_is_kept_in_them(fake_clock: FakeClock) -> None:
    one, other = make_recorder(), make_recorder()
    one.keep_attribute("a", 1)
    one.keep_event(SpanEvent("e", 1))
    one.add_operation(RawOperation(1, NOT_SEEN, 2, None, None, LINK))
    assert (read(other).attributes, read(other).events, read(other).operations) == ({}, [], [])


def test_bytes_are_counted_and_what_has_no_length_is_a_fault(
    fake_clock: FakeClock, faults: dict[str, int]
) -> None:
    recorder = make_recorder()
    recorder.count_bytes(b"abc")
    recorder.count_bytes(b"")
    recorder.count_bytes(b"de")
    recorder.count_bytes(None)  # type: ignore[arg-type]  # as a broken app may
    assert read(recorder).response_bytes == 5
    assert sum(faults.values()) == 1


def test_the_first_exception_is_kept(fake_clock: FakeClock) -> None:
    recorder = make_recorder()
    recorder.fail(LookupError("first"))
    recorder.fail(ValueError("second"))
    exception = read(recorder).exception
    assert exception is not None
    assert exception[:2] == ("LookupError", "first")


def test_an_exception_is_described_within_bounds() -> None:
    class OwnError(Exception):
        """One of a module's own."""

    name, message, stack = describe_exception(OwnError("x" * 100_000))
    assert name.startswith(f"{__name__}.")
    assert name.endswith("OwnError")
    assert message == "x" * MAX_TEXT
    assert 0 < len(stack) <= 4 * MAX_TEXT
