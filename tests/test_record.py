"""The records: what is encoded is decoded, by older and newer readers too."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.record import (
    Attempt,
    NginxRecord,
    Operation,
    SpanEvent,
    WorkerRecord,
    WriterInfo,
    decode_info,
    decode_record,
    encode,
)
from tests.factories import make_nginx_record, make_worker_record, make_writer_info

FULL_WORKER = make_worker_record(
    operations=[
        Operation(
            "query",
            1,
            2,
            first_byte_ns=2,
            statement="SELECT ?",
            rows=1,
            error="OperationalError: 2013",
            transport="unix",
            server_address="/run/mysqld.sock",
            server_port=None,
            namespace="shop",
            batch_size=3,
            concurrent=True,
            phases=[("handshake", 5)],
            connection=4,
            fetch_ns=6,
        )
    ],
    attributes={"a": 1, "b": "x", "c": True, "d": 1.5, "e": ["x", "y"], "f": [1, 2]},
    events=[SpanEvent("e", 5, {"k": "v"})],
    span_status=("ERROR", None),
    exception=("ValueError", "no", "stack"),
    rejected_stamps=["accept"],
    core=3,
    transport="tcp",
)
FULL_NGINX = make_nginx_record(
    attempts=[Attempt("unix:/a", 502, 1, 2, 3), Attempt("127.0.0.1:3031", None)], cache_status="MISS"
)


@pytest.mark.parametrize("record", [FULL_WORKER, FULL_NGINX, make_worker_record(), make_nginx_record()])
def test_what_is_encoded_is_decoded(record: WorkerRecord | NginxRecord) -> None:
    assert decode_record(encode(record)) == record


def test_the_writers_head_is_decoded() -> None:
    info = make_writer_info(worker=2, processes=4, threads=1, concurrency="processes", server="uWSGI 2.0.30")
    assert decode_info(encode(info)) == info


@pytest.mark.parametrize("record", [FULL_WORKER, FULL_NGINX])
def test_an_older_reader_skips_what_a_newer_writer_adds(record: WorkerRecord | NginxRecord) -> None:
    fields = msgspec.msgpack.decode(encode(record))
    newer = msgspec.msgpack.encode([*fields, "of later", {"more": [1]}])
    assert decode_record(newer) == record


@pytest.mark.parametrize(
    ("record", "required"), [(make_worker_record(), 12), (make_nginx_record(), 3), (make_writer_info(), 8)]
)
def test_a_newer_reader_fills_in_what_an_older_writer_left_out(record: Any, required: int) -> None:
    fields = msgspec.msgpack.decode(encode(record))
    older = msgspec.msgpack.encode(fields[: 1 + required])
    decoded = decode_info(older) if isinstance(record, WriterInfo) else decode_record(older)
    assert type(decoded) is type(record)


def test_the_order_of_the_fields_is_the_format() -> None:
    """These are in files that people have: a new field goes to the end."""
    assert WorkerRecord.__struct_fields__[:14] == (
        "trace_id",
        "span_id",
        "parent_id",
        "sampled",
        "sequence",
        "method",
        "path",
        "route",
        "status",
        "app_start_ns",
        "closed_offset_ns",
        "exclusive_ns",
        "nginx_start_ns",
        "nginx_pass_ns",
    )
    assert NginxRecord.__struct_fields__[:8] == (
        "trace_id",
        "span_id",
        "end_ns",
        "sequence",
        "parent_id",
        "start_ns",
        "pass_ns",
        "resolution_ns",
    )
    assert [
        msgspec.msgpack.decode(encode(record))[0] for record in (make_writer_info(), FULL_WORKER, FULL_NGINX)
    ] == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize(
    "record",
    [b"", b"\xc0", b"\x93\x01\x02\x03", b"\x91\x07", encode(make_writer_info())],
)
def test_what_is_no_record_is_refused(record: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_record(record)


@given(data=st.binary(max_size=200))
def test_random_bytes_raise_what_is_documented(data: bytes) -> None:
    for decode in (decode_record, decode_info):
        try:
            decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
        else:
            pytest.fail("a record came out of random bytes")
