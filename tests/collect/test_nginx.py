"""Any bytes become a record or a reason; what nginx wrote becomes the record of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.collect.nginx import Rejection, _parse_any, _parse_usual, parse_attempts, parse_line
from reqpath.record import Attempt, NginxRecord, decode_record, encode
from tests.collect.lines import FIELDS, SPAN_ID, TRACE_ID, build_line

_END_NS = 1_795_457_262_447_000_000
#: Of every kind that a field can be wrong in.
_GARBAGE = (
    "",
    "-",
    "x",
    "-1",
    "1e9",
    "nan",
    "0x10",
    "9" * 40,
    "0",
    "٣",
    "\x00",
    "a, b",
    " : ",
    "é" * 3000,
    "%",
)
_FINE = {"start": "1795457262.420101", "pass": "1795457262.420202", "end": "1795457262.447303"}
_FIELD = st.sampled_from(sorted(FIELDS))
_TEXT = st.text(max_size=40) | st.text("-0123456789abcdef., :", max_size=40)


def _parse(line: bytes) -> NginxRecord:
    record = parse_line(line)
    assert isinstance(record, NginxRecord)
    return record


def test_a_line_becomes_the_record_of_its_request() -> None:
    expected = NginxRecord(
        trace_id=TRACE_ID,
        span_id=SPAN_ID,
        end_ns=_END_NS,
        start_ns=1_795_457_262_420_000_000,
        pass_ns=1_795_457_262_422_000_000,
        resolution_ns=1_000_000,
        status=200,
        method="GET",
        path="/goods/7",
        host="shop.example",
        request_bytes=78,
        response_bytes=262,
        attempts=[Attempt("unix:/run/shop.sock", 200, 0, 24_000_000, 25_000_000)],
        protocol="HTTP/1.1",
        scheme="https",
        client_address="203.0.113.9",
        user_agent="curl/7.88.1",
    )
    assert expected == parse_line(build_line())


@pytest.mark.parametrize(
    "header", ["", "<190>Nov 23 18:07:42 reqpath: ", "<14>Nov  3 08:07:42 host {app}? reqpath: "]
)
def test_syslogs_header_does_not_matter(header: str) -> None:
    if "{" in header:
        assert parse_line(build_line(header)) is Rejection.FORMAT
    else:
        assert parse_line(build_line(header)) == parse_line(build_line())


def test_hires_stamps_are_good_to_a_microsecond() -> None:
    record = _parse(
        build_line(start="1795457262.420101", passed="1795457262.420202", end="1795457262.447303")
    )
    expected = (1_795_457_262_420_101_000, 1_795_457_262_420_202_000, 1_795_457_262_447_303_000, 1_000)
    assert expected == (record.start_ns, record.pass_ns, record.end_ns, record.resolution_ns)


def test_the_coarsest_stamp_gives_the_resolution() -> None:
    # A request that nginx refused before the server's `set` ran.
    assert _parse(build_line(end="1795457262.447303")).resolution_ns == 1_000_000


@pytest.mark.parametrize("text", ["", "-", "soon", "0.000"])
def test_a_missing_start_and_pass_are_unknown(text: str) -> None:
    record = _parse(build_line(start=text, passed=text))
    assert (record.start_ns, record.pass_ns) == (None, None)


def test_a_request_that_went_to_no_upstream_was_not_passed_on() -> None:
    record = _parse(
        build_line(status="413", upstream="", upstream_status="", connect="", header="", response="")
    )
    assert (record.status, record.attempts, record.pass_ns) == (413, [], None)


def test_a_trusted_clients_parent_and_flag_are_kept() -> None:
    record = _parse(build_line(parent="b7ad6b7169203331", flags="00"))
    assert (record.parent_id, record.sampled) == ("b7ad6b7169203331", False)


def test_a_cache_hit_says_so() -> None:
    assert _parse(build_line(cache="HIT")).cache_status == "HIT"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [("/a%20b", "/a b"), ("/%C3%A9", "/é"), ("/%ff", "/�"), ("/a?secret=1", "/a"), ("/%3Fkept", "/?kept")],
)
def test_the_path_is_decoded_and_without_its_query(sent: str, expected: str) -> None:
    assert expected == _parse(build_line(path=sent)).path


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    assert _parse(build_line().replace(b"/goods/7", b"/\xff\xfe")).path == "/��"


def test_unknown_fields_are_no_trouble() -> None:
    assert parse_line(build_line(more="x")) == parse_line(build_line())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", Rejection.FORMAT),
        (b'127.0.0.1 - - [23/Nov/2024:18:07:42 +0000] "GET / HTTP/1.1" 200 2 "-" "curl"', Rejection.FORMAT),
        (b'<190>Nov 23 18:07:42 vm nginx: 127.0.0.1 "GET /{id} HTTP/1.1" 404', Rejection.CUT),
        (b'{"remote_addr":"127.0.0.1","status":200}', Rejection.FORMAT),
        (b"{}", Rejection.FORMAT),
        (b"{" * 50_000 + b"}" * 50_000, Rejection.FORMAT),
        (b'{"trace":1,"span":2,"end":3}', Rejection.FORMAT),
        (build_line()[:200], Rejection.CUT),
        (build_line(trace="0" * 32), Rejection.IDS),
        (build_line(trace=TRACE_ID.upper()), Rejection.IDS),
        (build_line(span="-"), Rejection.IDS),
        (build_line(end="-"), Rejection.END),
        (build_line(end="0.000"), Rejection.END),
        (build_line(end="999999999999.000"), Rejection.END),
    ],
)
def test_what_is_no_record_is_rejected_with_the_reason(line: bytes, reason: Rejection) -> None:
    assert reason is parse_line(line)


@pytest.mark.parametrize("field", sorted(set(FIELDS) - {"trace", "span", "end"}))
@pytest.mark.parametrize("garbage", _GARBAGE)
def test_garbage_in_one_field_leaves_the_others(field: str, garbage: str) -> None:
    record = _parse(build_line(**{field: garbage}))
    assert (record.trace_id, record.span_id, record.end_ns) == (TRACE_ID, SPAN_ID, _END_NS)
    assert record == decode_record(encode(record))


def test_an_attempt_is_one_place_in_each_list() -> None:
    expected = [
        Attempt("10.0.0.1:8000", 502, None, None, 1_000_000),
        Attempt("unix:/run/b.sock", 504, 0, None, 30_000_000),
        Attempt("[::1]:8000", 200, 1_000_000, 2_000_000, 3_000_000),
    ]
    assert expected == parse_attempts(
        "10.0.0.1:8000, unix:/run/b.sock : [::1]:8000",
        "502, 504 : 200",
        "-, 0.000 : 0.001",
        "-, - : 0.002",
        "0.001, 0.030 : 0.003",
    )


@pytest.mark.parametrize("addresses", ["", "-", " : ", "unix:/a : "])
def test_a_group_without_an_upstream_is_no_attempt(addresses: str) -> None:
    assert len(parse_attempts(addresses, "", "", "", "")) == (1 if "unix" in addresses else 0)


def test_lists_of_unequal_length_leave_the_rest_unknown() -> None:
    expected = [Attempt("a", 200, None, None, None), Attempt("b", None, None, None, None)]
    assert expected == parse_attempts("a, b", "200", "", "", "-")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["unix:/run/a.sock", "127.0.0.1:8000", "[::1]:80", "shop"]),
            st.none() | st.integers(100, 599),
            st.none() | st.integers(0, 600_000),
        ),
        max_size=8,
    ),
    st.data(),
)
def test_attempts_come_out_as_nginx_lists_them(
    attempts: list[tuple[str, int | None, int | None]], data: st.DataObject
) -> None:
    between = [data.draw(st.sampled_from([", ", " : "])) for _ in attempts]

    def join(values: list[str]) -> str:
        return "".join(
            value + separator for value, separator in zip(values, between, strict=True)
        ).removesuffix(between[-1] if between else "")

    times = join(["-" if ms is None else f"{ms / 1000:.3f}" for _, _, ms in attempts])
    statuses = join([str(status or "-") for _, status, _ in attempts])
    expected = [
        Attempt(address, status, *[None if ms is None else ms * 1_000_000] * 3)
        for address, status, ms in attempts
    ]
    assert expected == parse_attempts(
        join([address for address, _, _ in attempts]), statuses, times, times, times
    )


@given(st.binary())
def test_any_bytes_are_a_record_or_a_rejection(line: bytes) -> None:
    assert isinstance(parse_line(line), NginxRecord | Rejection)


@given(
    st.dictionaries(_FIELD, _TEXT | st.none() | st.integers() | st.lists(_TEXT), max_size=6), st.booleans()
)
def test_any_values_are_a_record_that_can_be_kept_or_a_rejection(
    changes: dict[str, object], ascii_: bool
) -> None:
    line = json.dumps(FIELDS | changes, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")
    record = parse_line(line)
    if isinstance(record, NginxRecord):
        assert record == decode_record(encode(record))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        _FINE,
        _FINE | {"start": FIELDS["start"]},
        {"upstream": ""},
        _FINE | {"upstream": ""},
        {"sent": "0"},
    ],
)
def test_the_short_way_takes_what_nginx_usually_sends(changes: dict[str, str]) -> None:
    line = build_line(**changes)
    assert _parse_usual(line.decode()) == _parse_any(line)


@given(
    st.dictionaries(_FIELD, _TEXT | st.sampled_from(_GARBAGE) | st.sampled_from(sorted(FIELDS.values()))),
    st.booleans(),
    st.sampled_from(["", "\n", "\0", "}", "x"]),
)
def test_the_short_way_gives_what_the_long_one_does(changes: dict[str, str], fine: bool, end: str) -> None:
    line = build_line(**(FIELDS | (_FINE if fine else {}) | changes)) + end.encode()
    usual = _parse_usual(line.decode("utf-8", "replace"))
    assert usual is None or usual == _parse_any(line)


@given(st.integers(0, len(build_line())), st.integers(0, len(build_line())), st.binary(max_size=8))
def test_a_line_with_a_piece_replaced_is_a_record_that_can_be_kept_or_a_rejection(
    start: int, end: int, piece: bytes
) -> None:
    line = build_line()
    record = parse_line(line[:start] + piece + line[end:])
    if isinstance(record, NginxRecord):
        assert record == decode_record(encode(record))
