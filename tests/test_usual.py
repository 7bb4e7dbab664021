"""A record that is left as its worker noted it says what the completed one says."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from reqpath.analyse.breakdown import build_breakdown
from reqpath.path import RequestPath
from reqpath.raw import CLOSED, RawRecord, complete_record
from reqpath.record import encode
from reqpath.tiers import WORKER_SEGMENTS, measure
from reqpath.usual import UsualRecord, complete, finished_at_ns, is_usual
from tests.factories import NOW_NS, make_nginx_record, make_worker_record
from tests.strategies import raw_records

WRITER_ID = "0123456789abcdef"
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
SECOND = NOW_NS // 10**9
STAMPS = [f"{SECOND}.000001,{SECOND}.000002", f"{SECOND}000003,{SECOND}000004"]
ENVIRON = [TRACE, *STAMPS, "GET", "/", "", "shop.example", "", 0]
LINK = ["unix", "/run/mysqld.sock", None, "shop", 3]
#: Segments of the worker's.
QUERY = WORKER_SEGMENTS.index("mysql.query")
DAY_NS = 86_400 * 10**9
_decode = msgspec.msgpack.Decoder(UsualRecord).decode


def make_usual(**changes: Any) -> UsualRecord:
    """Return what a reader decodes of a request with all its stamps."""
    raw = RawRecord(NOW_NS + 5_000, ENVIRON.copy(), [0, DAY_NS, QUERY, DAY_NS, 9, DAY_NS + 7], 1, 0, "unix")
    return _decode(encode(msgspec.structs.replace(raw, **changes)))


def test_it_has_the_fields_of_what_the_worker_writes() -> None:
    written, read = msgspec.structs.fields(RawRecord), msgspec.structs.fields(UsualRecord)
    assert len(written) == len(read)
    for theirs, ours in zip(written, read, strict=True):
        assert ours.default == theirs.default
        assert ours.type == theirs.type or ours.name == "packed_marks"
        assert ours.name == theirs.name or ours.name in ("packed_marks", "raw_operations", "status_line")


@given(raw_records(), st.integers(-30_000_000, 30_000_000), st.sampled_from((1_000, 1_000_000)))
def test_it_says_what_the_completed_record_says(raw: RawRecord, after_ns: int, resolution_ns: int) -> None:
    payload = encode(raw)
    record = _decode(payload)
    event("usual" if is_usual(record) else "not")
    expected = complete_record(msgspec.msgpack.decode(payload, type=RawRecord), WRITER_ID)
    assert complete(record, WRITER_ID) == expected
    if not is_usual(record):
        return
    assert complete(record) == expected
    for name in (
        "trace_id", "parent_id", "sampled", "method", "path", "route", "status", "transport", "app_start_ns",
        "closed_offset_ns", "sequence", "cpu_ns", "run_queue_ns", "exception", "span_status", "app_span",
        "app_samples", "dropped_operations", "nginx_resolution_ns",
    ):  # fmt: skip
        assert getattr(record, name) == getattr(expected, name), name
    line = make_nginx_record(
        trace_id=record.trace_id,
        span_id=record.parent_id,
        end_ns=finished_at_ns(expected) + after_ns,
        resolution_ns=resolution_ns,
    )
    assert finished_at_ns(record) == finished_at_ns(expected)
    for nginx in (line, None):
        timing = measure(expected, nginx)
        assert RequestPath(record, None, nginx).extent == (timing.start_ns, timing.total_ns)
        assert RequestPath(record, None, nginx).timing == timing


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"statements": [DAY_NS, DAY_NS + 1, "SELECT ?", 1, LINK]},
        {"marks": [number for at in range(5_000) for number in (3, DAY_NS + at)]},
        {"environ": [TRACE, f"{SECOND}.002-0.002,{SECOND}.001", *ENVIRON[2:]]},
    ],
)
def test_a_request_with_all_its_stamps_is_usual(changes: dict[str, Any]) -> None:
    assert is_usual(make_usual(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"marks": []},
        {"marks": [0, DAY_NS, 9]},
        {"marks": [0, 5, 9, 7]},
        {"marks": [99, DAY_NS]},
        {"statements": [DAY_NS, DAY_NS + 1, "SELECT ?", 1]},
        {"environ": ENVIRON[:8]},
        {"environ": [*ENVIRON, None]},
        {"environ": [None, *ENVIRON[1:]]},
        {"environ": [*ENVIRON[:3], 7, *ENVIRON[4:]]},
        {"end": CLOSED + 1},
        {"app_start_ns": -1},
        {"app_start_ns": 1 << 63},
    ],
)
def test_a_request_of_which_anything_is_odd_is_completed_at_once(changes: dict[str, Any]) -> None:
    assert not is_usual(make_usual(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"statements": [DAY_NS, DAY_NS + 1, "SELECT ?", 1, LINK[:4]]},
        {"statements": [DAY_NS, DAY_NS + 1, "SELECT ?", 1, 7]},
        {"statements": [DAY_NS, DAY_NS + 1, ["SELECT ?"], 1, [["tcp"], *LINK[1:]]]},
        {"statements": [DAY_NS, None, "SELECT ?", 1, LINK]},
    ],
)
def test_statements_that_make_no_sense_are_dropped_and_counted(changes: dict[str, Any]) -> None:
    """No worker writes them; the rest of such a record is as good as any other's."""
    record = make_usual(**changes)
    assert is_usual(record)
    completed = complete(record)
    assert (completed.operations, completed.dropped_operations) == ([], 1)
    line = make_nginx_record(trace_id="a" * 32, span_id="b" * 16, end_ns=NOW_NS + 10_000, resolution_ns=1_000)
    paths = [RequestPath(head, None, line) for head in (record, make_usual())]
    assert build_breakdown(paths).whole.requests == 2


@given(st.binary(max_size=40), st.integers(0, 2))
def test_marks_that_are_any_bytes_are_usual_only_if_they_can_be_completed(body: bytes, prefix: int) -> None:
    whole = encode(RawRecord(NOW_NS + 5_000, ENVIRON, [], 1, 0, "unix"))
    marks = (b"", b"\x94\x00\xcf" + bytes(8) + b"\x01\xcf" + bytes(7), b"\xdc\x00\x02\x00\xcf")[prefix] + body
    try:
        record = _decode(whole.replace(encode(ENVIRON) + b"\x90", encode(ENVIRON) + marks))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    if is_usual(record):
        complete(record)


def test_a_record_is_finished_when_its_writer_was_done() -> None:
    assert finished_at_ns(make_worker_record(closed_offset_ns=7)) == NOW_NS + 7
    assert finished_at_ns(make_worker_record(closed_offset_ns=None)) == NOW_NS
    assert finished_at_ns(make_nginx_record(end_ns=9)) == 9
    assert finished_at_ns(make_usual()) == NOW_NS + 5_007
