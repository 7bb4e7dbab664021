"""Reads nginx's log lines in the format of nginx-conf/reqpath-http.conf.

The layer below is `receiver`, which brings a syslog datagram or a line of a file; what goes out is a record::

    b'<190>Nov 23 18:07:42 reqpath: {"trace":"14e4…","span":"14e4…","end":"1732371000.125","status":"200",…}'
      -> NginxRecord(trace_id="14e4…", span_id="14e4…", end_ns=1732371000125000000, status=200, …)
    b'127.0.0.1 - - [23/Nov/2024:…] "GET / HTTP/1.1" 200 …'
      -> Rejection.FORMAT

All values arrive as text, `-` or empty where nginx has none. One that makes no sense is unknown; only a line
without ids or without its end is no record at all.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

import msgspec

from reqpath.record import Attempt, NginxRecord
from reqpath.worker.stamps import parse_nginx_stamp, parse_seconds


class Rejection(StrEnum):
    """Why a line is no record."""

    FORMAT = "another format"
    CUT = "cut short"
    IDS = "no trace id or span id"
    END = "no end"


class _Line(msgspec.Struct, gc=False):
    """The object in a line; the keys are those of the `log_format`."""

    trace: str
    span: str
    end: str
    start: str = ""
    #: `pass` is no name in Python.
    passed: str = msgspec.field(name="pass", default="")
    parent: str = ""
    flags: str = ""
    status: str = ""
    method: str = ""
    host: str = ""
    path: str = ""
    protocol: str = ""
    scheme: str = ""
    client: str = ""
    agent: str = ""
    received: str = ""
    sent: str = ""
    cache: str = ""
    upstream: str = ""
    upstream_status: str = ""
    connect: str = ""
    header: str = ""
    response: str = ""


_decode: Final = msgspec.json.Decoder(_Line).decode

#: Years 2000 to 2200; beyond, a stamp is garbage and its ns don't fit into 64 bits.
_EARLIEST_NS: Final = 946_684_800 * 1_000_000_000
_LATEST_NS: Final = 7_258_118_400 * 1_000_000_000
#: Longer than any request, or any attempt of one.
_LONGEST_NS: Final = 7 * 86_400 * 1_000_000_000

_TRACE_ID: Final = re.compile(r"(?!0{32})[0-9a-f]{32}", re.ASCII)
_SPAN_ID: Final = re.compile(r"(?!0{16})[0-9a-f]{16}", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,18}", re.ASCII)
_EVEN: Final = frozenset("02468ace")
_STATUS: Final = re.compile(r"[1-9]\d\d", re.ASCII)
#: Between attempts in one group of upstreams, and between groups after an internal redirect.
_BETWEEN_ATTEMPTS: Final = re.compile(r", | : ")
#: Both hold it.
_GAP: Final = " "
_MAX_ATTEMPTS: Final = 32
#: Texts whose meaning is remembered: few are there, and they come with each line.
_REMEMBERED: Final = 4_096
_MAX_TEXT: Final = 1024


def parse_line(line: bytes) -> NginxRecord | Rejection:
    """Parse one log line, with syslog's header or without; raises nothing, whatever the bytes."""
    start = line.find(b"{")
    if start < 0:
        return Rejection.FORMAT
    payload = line[start:].rstrip(b"\r\n\0 ")
    try:
        fields = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if not payload.endswith(b"}"):
            return Rejection.CUT
        try:
            # nginx writes a client's bytes as they came.
            fields = _decode(payload.decode("utf-8", "replace"))
        except (msgspec.DecodeError, RecursionError):
            return Rejection.FORMAT
    return _build_record(fields)


def _build_record(fields: _Line) -> NginxRecord | Rejection:
    if not (_TRACE_ID.fullmatch(fields.trace) and _SPAN_ID.fullmatch(fields.span)):
        return Rejection.IDS
    end = parse_seconds(fields.end)
    if end is None or not _EARLIEST_NS <= end[0] <= _LATEST_NS:
        return Rejection.END
    end_ns, resolution_ns = end
    start_ns = pass_ns = None
    start = parse_nginx_stamp(fields.start)
    if start is not None and abs(end_ns - start[0]) <= _LONGEST_NS:
        start_ns = start[0]
        resolution_ns = max(resolution_ns, start[1])
    attempts = parse_attempts(
        fields.upstream, fields.upstream_status, fields.connect, fields.header, fields.response
    )
    # Where no upstream request was built, the variable is first read by the log.
    passed = parse_nginx_stamp(fields.passed) if attempts else None
    if passed is not None and abs(end_ns - passed[0]) <= _LONGEST_NS:
        pass_ns = passed[0]
        resolution_ns = max(resolution_ns, passed[1])
    return NginxRecord(
        trace_id=fields.trace,
        span_id=fields.span,
        end_ns=end_ns,
        parent_id=fields.parent if _SPAN_ID.fullmatch(fields.parent) else "",
        start_ns=start_ns,
        pass_ns=pass_ns,
        resolution_ns=resolution_ns,
        status=_parse_status(fields.status),
        method=_parse_text(fields.method) or "",
        path=_parse_path(fields.path),
        host=_parse_text(fields.host),
        request_bytes=_parse_number(fields.received),
        response_bytes=_parse_number(fields.sent),
        attempts=attempts,
        cache_status=_parse_text(fields.cache),
        # The last bit of the flags.
        sampled=fields.flags[-1:] not in _EVEN,
        protocol=_parse_text(fields.protocol),
        scheme=_parse_text(fields.scheme),
        client_address=_parse_text(fields.client),
        user_agent=_parse_text(fields.agent),
    )


def parse_attempts(
    addresses: str, statuses: str, connects: str, headers: str, responses: str
) -> list[Attempt]:
    """Parse nginx's five lists over the upstreams that it tried, in the order of trying.

    Source: https://nginx.org/en/docs/http/ngx_http_upstream_module.html#var_upstream_addr

    >>> parse_attempts("unix:/a, unix:/b", "502, 200", "-, 0.000", "-, 0.012", "0.001, 0.012")[0].response_ns
    1000000
    """
    if addresses in ("", "-"):
        return []
    if _GAP not in addresses:
        return [
            Attempt(
                _clean(addresses),
                _parse_status(statuses),
                _parse_duration(connects),
                _parse_duration(headers),
                _parse_duration(responses),
            )
        ]
    parts = [part.strip() for part in _BETWEEN_ATTEMPTS.split(addresses, maxsplit=_MAX_ATTEMPTS)]
    lists = [
        _BETWEEN_ATTEMPTS.split(text, maxsplit=_MAX_ATTEMPTS)
        for text in (statuses, connects, headers, responses)
    ]
    attempts = []
    for index, address in enumerate(parts[:_MAX_ATTEMPTS]):
        # A group that was left before any upstream was chosen ends in a bare separator.
        if address in ("", "-"):
            continue
        status, connect, header, response = (
            values[index].strip() if index < len(values) else "" for values in lists
        )
        attempts.append(
            Attempt(
                _clean(address),
                _parse_status(status),
                _parse_duration(connect),
                _parse_duration(header),
                _parse_duration(response),
            )
        )
    return attempts


@lru_cache(_REMEMBERED)
def _parse_duration(text: str) -> int | None:
    duration = parse_seconds(text)
    return duration[0] if duration is not None and duration[0] <= _LONGEST_NS else None


@lru_cache(_REMEMBERED)
def _parse_status(text: str) -> int | None:
    return int(text) if _STATUS.fullmatch(text) else None


def _parse_number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None


def _parse_text(text: str) -> str | None:
    return _clean(text) if text not in ("", "-") else None


def _parse_path(text: str) -> str:
    """Drop a query and decode the percent signs, as the worker's record has it."""
    path = text.partition("?")[0]
    return _clean(unquote(path, errors="replace") if "%" in path else path)


def _clean(text: str) -> str:
    if text.isascii():
        return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT]
    # msgpack takes no lone surrogates.
    return text[:_MAX_TEXT].encode("utf-8", "replace").decode()
