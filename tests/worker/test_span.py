"""The request's span: whatever the app gives it arrives in the record, or is dropped without a word."""

from __future__ import annotations

import enum
from collections import UserList
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from opentelemetry import context as otel_context
from opentelemetry.trace import Status, StatusCode, get_current_span

from reqpath.record import encode
from reqpath.worker.recorder import MAX_TEXT
from reqpath.worker.span import RequestSpan, build_span_context, clean_attribute
from tests.conftest import FakeClock
from tests.factories import NOW_NS
from tests.worker.recorders import make_recorder, read


@pytest.fixture
def span(fake_clock: FakeClock) -> RequestSpan:
    return make_recorder()


class Colour(enum.IntEnum):
    RED = 1


class Unprintable:
    def __str__(self) -> str:
        raise LookupError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (7, 7),
        (1.5, 1.5),
        ("x", "x"),
        ("", ""),
        (b"bytes \xff", "bytes \ufffd"),
        ("x" * 10_000, "x" * MAX_TEXT),
        ("\ud800", "?"),
        (2**63, str(2**63)),
        (-(2**63), -(2**63)),
        (["a", "b"], ["a", "b"]),
        ((1, 2), [1, 2]),
        (UserList([1]), [1]),
        ([], []),
        ([1, "a"], None),
        ([True, 1], None),
        ([["a"]], None),
        ([None], None),
        (None, None),
        ({"a": 1}, None),
        (object(), None),
        (Colour.RED, 1),
        (Markup("<b>"), "<b>"),
        (np.float64(1.5), 1.5),
    ],
)
def test_what_is_kept_of_an_attribute(value: Any, expected: Any) -> None:
    clean = clean_attribute(value)
    assert clean == expected
    assert type(clean) is type(expected)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=5,
)


@given(key=anything, value=anything, name=anything, timestamp=st.none() | st.integers() | anything)
def test_whatever_an_app_sets_makes_a_record_that_can_be_read(
    key: Any, value: Any, name: Any, timestamp: Any
) -> None:
    span = make_recorder()
    span.set_attribute(key, value)
    span.set_attributes({str(key): value})
    span.add_event(name, {"k": value}, timestamp)
    span.update_name(name)
    span.set_status(StatusCode.ERROR, name)
    span.record_exception(ValueError(value), {"k": value}, timestamp)
    span.end(timestamp)
    assert read(span) is not None


def test_things_that_can_not_be_printed_are_dropped(span: RequestSpan, faults: dict[str, int]) -> None:
    odd: Any = Unprintable()
    span.update_name(odd)
    span.add_event(odd)
    span.set_status(StatusCode.ERROR, odd)
    span.set_attribute("k", odd)
    span.set_attributes(odd)
    span.record_exception(odd)
    assert read(span).span_name is None
    assert sum(faults.values()) >= 3


@pytest.mark.parametrize("description", [123, LookupError("x"), b"x", "\ud800", "x" * 10_000])
def test_a_status_description_of_any_kind_makes_a_readable_record(
    span: RequestSpan, description: Any
) -> None:
    """`set_status(StatusCode.ERROR, error)` is a common slip."""
    span.set_status(StatusCode.ERROR, description)
    decoded = read(span)
    assert decoded.span_status is not None
    assert decoded.span_status[0] == "ERROR"


def test_ok_is_final_and_unset_changes_nothing(span: RequestSpan) -> None:
    seen = []
    for status in (
        StatusCode.UNSET,
        Status(StatusCode.ERROR, "a"),
        Status(StatusCode.ERROR, "b"),
        Status(StatusCode.UNSET),
        StatusCode.OK,
        Status(StatusCode.ERROR, "c"),
    ):
        span.set_status(status)
        seen.append(read(span).span_status)
    assert seen == [None, ("ERROR", "a"), ("ERROR", "b"), ("ERROR", "b"), ("OK", None), ("OK", None)]


def test_an_event_has_its_time_since_the_request_began(span: RequestSpan, fake_clock: FakeClock) -> None:
    fake_clock.advance(9)
    span.add_event("now")
    span.add_event("then", timestamp=NOW_NS + 4)
    span.add_event("far", timestamp=10**40)
    assert [event.time_ns for event in read(span).events] == [9, 4, 2**63 - 1]


def test_an_exception_is_an_event_of_opentelemetrys_form(span: RequestSpan) -> None:
    try:
        raise ValueError("odd")
    except ValueError as error:
        span.record_exception(error, {"more": 1})
    (event,) = read(span).events
    assert event.name == "exception"
    assert event.attributes["exception.type"] == "ValueError"
    assert event.attributes["exception.message"] == "odd"
    assert event.attributes["exception.escaped"] == "False"
    assert event.attributes["more"] == 1
    assert "raise ValueError" in str(event.attributes["exception.stacktrace"])


def test_after_the_end_nothing_is_taken(span: RequestSpan) -> None:
    before = encode(read(span))
    span.end()
    assert span.is_recording(), "only the request's end is its end"
    span.finished = True
    assert not span.is_recording()
    span.set_attribute("a", 1)
    span.add_event("e")
    span.update_name("n")
    span.set_status(StatusCode.ERROR)
    assert encode(read(span)) == before


def test_the_ids_are_the_records(span: RequestSpan) -> None:
    context = span.get_span_context()
    record = read(span)
    assert (context.trace_id, context.span_id) == (int(record.trace_id, 16), int(record.span_id, 16))
    assert context.trace_flags.sampled
    assert not context.is_remote
    assert span.get_span_context() is context


def test_a_request_that_is_not_sampled_says_so(fake_clock: FakeClock) -> None:
    span = make_recorder()
    span.environ = [f"00-{'1' * 32}-{'2' * 16}-00", *span.environ[1:]]
    assert not span.get_span_context().trace_flags.sampled


def test_the_context_holds_the_span_beside_what_was_there(fake_clock: FakeClock) -> None:
    recorder = make_recorder()
    context = build_span_context(recorder)
    assert context is not None
    assert isinstance(get_current_span(context), RequestSpan)
    token = otel_context.attach(otel_context.set_value("baggage", 7))
    try:
        context = build_span_context(recorder)
    finally:
        otel_context.detach(token)
    assert context is not None
    assert isinstance(get_current_span(context), RequestSpan)
    assert otel_context.get_value("baggage", context) == 7
