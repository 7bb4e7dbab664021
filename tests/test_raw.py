"""What a worker notes becomes the record of its request, whatever was noted."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.raw import (
    ASKED_FOR_FILE,
    CLOSED,
    FLASK_START,
    NO_FIRST_PACKETS,
    NOT_CLOSED,
    NOT_SENT,
    READ,
    SEGMENT_OF,
    VIEW_END,
    VIEW_START,
    Link,
    RawRecord,
    complete_record,
    sum_marks,
)
from reqpath.record import Operation, encode
from reqpath.stamps import ALWAYS_COPIED, ENVIRON_KEYS
from reqpath.tiers import WORKER_SEGMENTS
from tests.factories import NOW_NS

MIDDLEWARE, VIEW, TEMPLATE, QUERY, FETCH, SEND = map(
    WORKER_SEGMENTS.index,
    ("flask.middleware", "flask.view", "flask.template", "mysql.query", "mysql.fetch", "uwsgi.send"),
)
WRITER_ID = "0123456789abcdef"
LINK: Link = ("unix", "/run/mysqld.sock", None, "shop", 3)
#: A clock that began long ago.
BASE_NS = 86_400_000_000_000

codes = st.integers(0, len(SEGMENT_OF) - 1)
marks = st.lists(st.tuples(codes, st.integers(0, 10**9)), min_size=1, max_size=40)


def make_raw(*entered: tuple[int, int], **overrides: Any) -> RawRecord:
    """Return a request that entered segments after so many ns."""
    flat = [number for code, at_ns in entered or ((MIDDLEWARE, 0),) for number in (code, BASE_NS + at_ns)]
    raw = RawRecord(NOW_NS, [None] * ALWAYS_COPIED, flat, 7, 0, None)
    return msgspec.structs.replace(raw, **overrides)


def statement(start_ns: int, end_ns: int, rows: object = 1) -> list[Any]:
    return [BASE_NS + start_ns, BASE_NS + end_ns, "SELECT ?", rows, LINK]


def read(raw: RawRecord) -> Any:
    """Return the record as a reader has it."""
    return complete_record(msgspec.msgpack.decode(encode(raw), type=RawRecord), WRITER_ID)


@given(steps=marks)
def test_the_time_between_two_marks_is_the_first_ones(steps: list[tuple[int, int]]) -> None:
    now_ns, entered, expected = 0, [], [0] * len(WORKER_SEGMENTS)
    for code, duration_ns in steps:
        entered.append((code, now_ns))
        expected[SEGMENT_OF[code]] += duration_ns
        now_ns += duration_ns
    record = read(make_raw(*entered, (SEND, now_ns)))
    assert record.exclusive_ns == expected
    assert sum(record.exclusive_ns) == record.closed_offset_ns == now_ns


@given(steps=marks, at=st.integers(0, 40))
def test_marks_that_were_summed_up_on_the_way_are_none_the_less(
    steps: list[tuple[int, int]], at: int
) -> None:
    now_ns, flat = BASE_NS, []
    for code, duration_ns in steps:
        flat += [code, now_ns]
        now_ns += duration_ns
    whole = sum_marks(flat)
    cut = 2 * (at % len(steps))
    # The last mark summed up stays, to be gone on from.
    parts = sum_marks(flat[cut:], sum_marks(flat[: cut + 2]))
    assert parts == whole


def test_flasks_own_instants_are_the_first_of_their_marks() -> None:
    record = read(
        make_raw(
            (MIDDLEWARE, 0), (FLASK_START, 3), (QUERY, 5), (FLASK_START, 9), (VIEW_START, 10), (QUERY, 20),
            (VIEW_START, 30), (VIEW_END, 40), (SEND, 50),
        )
    )  # fmt: skip
    offsets = (record.flask_start_offset_ns, record.view_start_offset_ns, record.view_end_offset_ns)
    assert offsets == (3, 10, 40)
    assert record.timeline == []


def test_a_request_with_templates_has_its_time_line() -> None:
    record = read(make_raw((MIDDLEWARE, 0), (VIEW_START, 1), (TEMPLATE, 2), (VIEW_START, 6), (SEND, 9)))
    assert record.timeline == [MIDDLEWARE, 0, VIEW, 1, TEMPLATE, 2, VIEW, 6, SEND, 9]


@pytest.mark.parametrize(
    ("inside", "unmeasured", "first_byte_ns", "fetch_ns"),
    [
        ([(FETCH, 30)], 0, 30, 20),
        ([], 0, 50, 0),
        ([], NO_FIRST_PACKETS, None, None),
        ([(ASKED_FOR_FILE, 20)], 0, None, None),
        # What was left of an earlier reply is read first.
        ([(READ, 15), (QUERY, 25), (FETCH, 40)], 0, 40, 10),
        ([(READ, 15), (QUERY, 25)], 0, 50, 0),
    ],
)
def test_a_statements_first_byte_is_told_by_the_marks_within_it(
    inside: list[tuple[int, int]], unmeasured: int, first_byte_ns: int | None, fetch_ns: int | None
) -> None:
    raw = make_raw(
        (VIEW_START, 0), (QUERY, 10), *inside, (VIEW_START, 50), (QUERY, 60), (FETCH, 70), (VIEW_START, 80),
        statements=[*statement(10, 50), *statement(60, 80)], unmeasured=unmeasured,
    )  # fmt: skip
    first, second = read(raw).operations
    expected = Operation(
        "query", 10, 50, first_byte_ns, "SELECT ?", 1, None, "unix", "/run/mysqld.sock", None, "shop",
        connection=3, fetch_ns=fetch_ns,
    )  # fmt: skip
    assert first == expected
    assert (second.start_ns, second.first_byte_ns, second.fetch_ns) == (60, 70, 10)


@pytest.mark.parametrize("rows", [None, "many", (1 << 64) - 1, 1.5, True, [1]])
def test_rows_that_are_no_number_of_rows_are_unknown(rows: object) -> None:
    (operation,) = read(make_raw((QUERY, 0), (VIEW, 5), statements=statement(0, 5, rows))).operations
    assert operation.rows is None or operation.rows is rows is True


def test_a_request_without_a_trace_has_the_same_ids_whenever_it_is_read() -> None:
    raw = make_raw()
    first, again = read(raw), read(raw)
    assert first.trace_id == again.trace_id == WRITER_ID + first.span_id
    assert (first.parent_id, first.sampled) == ("", True)


@pytest.mark.parametrize(
    ("end", "closed_ns", "send_ns"), [(CLOSED, 9, 4), (NOT_CLOSED, None, 4), (NOT_SENT, None, None)]
)
def test_what_is_not_known_of_the_end_is_unknown(
    end: int, closed_ns: int | None, send_ns: int | None
) -> None:
    record = read(make_raw((VIEW, 0), (SEND, 5), (SEND, 9), end=end))
    assert (record.closed_offset_ns, record.exclusive_ns[SEND]) == (closed_ns, send_ns)


anything = st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=9) | st.binary(max_size=9)


environs = st.sampled_from((ALWAYS_COPIED, len(ENVIRON_KEYS))).flatmap(
    lambda size: st.lists(anything | st.lists(anything, max_size=3), min_size=size, max_size=size)
)


@given(environ=environs)
def test_whatever_a_server_has_in_its_environ_makes_a_record(environ: list[Any]) -> None:
    record = read(make_raw(environ=environ))
    assert len(record.trace_id) == 32
    assert encode(record)


@pytest.mark.parametrize(
    "broken",
    [
        {"marks": []},
        {"marks": [1]},
        {"environ": []},
    ],
)
def test_what_no_worker_writes_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        read(make_raw(**broken))
