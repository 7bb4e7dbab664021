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
from reqpath.stamps import parse_nginx_stamp, parse_seconds


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
_decode_part: Final = msgspec.json.Decoder(dict[str, str]).decode

#: Years 2000 to 2200; beyond, a stamp is garbage and its ns don't fit into 64 bits.
_EARLIEST_NS: Final = 946_684_800 * 1_000_000_000
_LATEST_NS: Final = 7_258_118_400 * 1_000_000_000
#: Longer than any request, or any attempt of one.
_LONGEST_NS: Final = 7 * 86_400 * 1_000_000_000

_TRACE_ID: Final = re.compile(r"(?!0{32})[0-9a-f]{32}", re.ASCII)
_SPAN_ID: Final = re.compile(r"(?!0{16})[0-9a-f]{16}", re.ASCII)
#: Of the usual line: a value that is ASCII, had nothing to escape and is short enough to be remembered; a
#: path that is to stay as it is; an instant of nginx's, good to 1 ms or 1 µs, of the years to 2191.
_VALUE: Final = r"[ !#-\[\]-~]{0,256}"
_PATH: Final = r"[ !#$&->@-\[\]-~]{0,1024}"
_INSTANT: Final = r"[1-6]\d{9}\.\d{3}(?:\d{3})?"
#: The line as the `log_format` has it. Neighbours that are the same in many lines are one group.
_USUAL: Final = re.compile(
    r'\{"trace":"((?!0{32})[0-9a-f]{32})","span":"((?!0{16})[0-9a-f]{16})",'
    rf'("parent":"{_VALUE}","flags":"{_VALUE}"),'
    rf'"start":"({_INSTANT}(?:-\d{{1,5}}\.\d{{3}})?)","pass":"({_INSTANT})","end":"({_INSTANT})",'
    rf'("status":"{_VALUE}","method":"{_VALUE}","host":"{_VALUE}"),"path":"({_PATH})",'
    rf'("protocol":"{_VALUE}","scheme":"{_VALUE}","client":"{_VALUE}","agent":"{_VALUE}"),'
    r'"received":"(\d{1,18})","sent":"(\d{1,18})",'
    rf'("cache":"{_VALUE}","upstream":"{_VALUE}","upstream_status":"{_VALUE}",'
    rf'"connect":"{_VALUE}","header":"{_VALUE}","response":"{_VALUE}")\}}[\r\n\0 ]*',
    re.ASCII,
)
#: Start, passing on and end of a request, and the resolution of the coarsest, all ns.
_Stamps = tuple[int | None, int | None, int, int]
#: Characters of an instant that is good to 1 µs.
_FINE: Final = 17
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
    try:
        usual = _parse_usual(line.decode("ascii"))
    except UnicodeDecodeError:
        usual = None
    return usual or _parse_any(line)


def _parse_usual(text: str) -> NginxRecord | None:
    """Parse a line that has all that our `log_format` says, and nothing odd; None for any other.

    Nearly every line is one, and takes less than half of the time that `_parse_any` does for the same record.
    """
    match = _USUAL.fullmatch(text, text.find("{"))
    if match is None:
        return None
    trace_id, span_id, caller, start, passed, end, request, path, client, received, sent, upstream = (
        match.groups()
    )
    cache_status, attempts = _read_upstream(upstream)
    passed = passed if attempts else ""
    stamps = _parse_fine_stamps(start, passed, end) or _parse_stamps(start, passed, end)
    if stamps is None:
        return None
    start_ns, pass_ns, end_ns, resolution_ns = stamps
    parent_id, sampled = _read_caller(caller)
    status, method, host = _read_request(request)
    return NginxRecord(
        trace_id,
        span_id,
        end_ns,
        0,
        parent_id,
        start_ns,
        pass_ns,
        resolution_ns,
        status,
        method,
        path,
        host,
        int(received),
        int(sent),
        list(attempts),
        cache_status,
        sampled,
        *_read_client(client),
    )


@lru_cache(_REMEMBERED)
def _read_caller(part: str) -> tuple[str, bool]:
    """Return the parent's id and whether the trace is sampled, of `"parent":"…","flags":"…"`."""
    fields = _decode_part(f"{{{part}}}")
    return _parse_parent(fields["parent"]), _is_sampled(fields["flags"])


@lru_cache(_REMEMBERED)
def _read_request(part: str) -> tuple[int | None, str, str | None]:
    """Return status, method and host, of `"status":"…","method":"…","host":"…"`."""
    fields = _decode_part(f"{{{part}}}")
    return _parse_status(fields["status"]), _parse_text(fields["method"]) or "", _parse_text(fields["host"])


@lru_cache(_REMEMBERED)
def _read_client(part: str) -> tuple[str | None, str | None, str | None, str | None]:
    """Return protocol, scheme, address and user agent, of `"protocol":"…",…,"agent":"…"`."""
    protocol, scheme, address, agent = map(_parse_text, _decode_part(f"{{{part}}}").values())
    return protocol, scheme, address, agent


@lru_cache(_REMEMBERED)
def _read_upstream(part: str) -> tuple[str | None, tuple[Attempt, ...]]:
    """Return the cache's status and the attempts, of `"cache":"…","upstream":"…",…,"response":"…"`."""
    cache_status, *lists = _decode_part(f"{{{part}}}").values()
    return _parse_text(cache_status), tuple(parse_attempts(*lists))


def _parse_any(line: bytes) -> NginxRecord | Rejection:
    """Parse a line whatever is in it."""
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
    attempts = parse_attempts(
        fields.upstream, fields.upstream_status, fields.connect, fields.header, fields.response
    )
    # Where no upstream request was built, the variable is first read by the log.
    stamps = _parse_stamps(fields.start, fields.passed if attempts else "", fields.end)
    if stamps is None:
        return Rejection.END
    start_ns, pass_ns, end_ns, resolution_ns = stamps
    return NginxRecord(
        trace_id=fields.trace,
        span_id=fields.span,
        end_ns=end_ns,
        parent_id=_parse_parent(fields.parent),
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
        sampled=_is_sampled(fields.flags),
        protocol=_parse_text(fields.protocol),
        scheme=_parse_text(fields.scheme),
        client_address=_parse_text(fields.client),
        user_agent=_parse_text(fields.agent),
    )


def _parse_fine_stamps(start: str, passed: str, end: str) -> _Stamps | None:
    """Parse three that are of the form of `_INSTANT` and all good to 1 µs; None when they are not."""
    if not len(start) == len(passed) == len(end) == _FINE:
        return None
    start_ns = int(start.replace(".", "")) * 1_000
    pass_ns = int(passed.replace(".", "")) * 1_000
    end_ns = int(end.replace(".", "")) * 1_000
    if abs(end_ns - start_ns) > _LONGEST_NS or abs(end_ns - pass_ns) > _LONGEST_NS:
        return None
    return start_ns, pass_ns, end_ns, 1_000


def _parse_stamps(start: str, passed: str, end: str) -> _Stamps | None:
    """Parse the three into instants, and the coarsest's resolution; None when the request has no end."""
    end_stamp = parse_seconds(end)
    if end_stamp is None or not _EARLIEST_NS <= end_stamp[0] <= _LATEST_NS:
        return None
    end_ns, resolution_ns = end_stamp
    start_ns = pass_ns = None
    stamp = parse_nginx_stamp(start)
    if stamp is not None and abs(end_ns - stamp[0]) <= _LONGEST_NS:
        start_ns = stamp[0]
        resolution_ns = max(resolution_ns, stamp[1])
    stamp = parse_nginx_stamp(passed)
    if stamp is not None and abs(end_ns - stamp[0]) <= _LONGEST_NS:
        pass_ns = stamp[0]
        resolution_ns = max(resolution_ns, stamp[1])
    return start_ns, pass_ns, end_ns, resolution_ns


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


def _parse_parent(text: str) -> str:
    return text if _SPAN_ID.fullmatch(text) else ""


def _is_sampled(flags: str) -> bool:
    """Tell by the last bit of the flags."""
    return flags[-1:] not in _EVEN


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
