"""Reads the stamps that nginx and uWSGI left in the WSGI environ, out of a worker's copy of it.

By the uwsgi protocol they are params without the `HTTP_` prefix, which no client can forge::

    REQPATH_TRACEPARENT  00-<32 hex>-<16 hex>-01
    REQPATH_NGINX        1732371000.123456,1732371000.123498  start and pass; the start may also be
                         1732371000.125-0.002                 ($msec-$request_time)
    REQPATH_UWSGI        1732371000123601,1732371000123633    accept and parsed, µs, from uWSGI's route

Behind a plain HTTP proxy they are headers, and copied only where the settings say that a proxy sets them.
Source of the header's forms: Heroku's router, Apache's mod_headers (`%t`, `%D`), HAProxy and nginx
documentation, and Render's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

#: Longer than any request; a stamp older than this is not believed.
MAX_AGE_NS: Final = 24 * 3600 * 1_000_000_000
#: Clocks of two hosts may differ a little; `tiers.measure` says what to make of it. More is not believed.
MAX_FUTURE_NS: Final = 5 * 1_000_000_000
_MAX_AGE_US: Final = MAX_AGE_NS // 1_000
_MAX_FUTURE_US: Final = MAX_FUTURE_NS // 1_000

#: What a worker copies, in this order. Part of the format.
ENVIRON_KEYS: Final = (
    "REQPATH_TRACEPARENT",
    "REQPATH_NGINX",
    "REQPATH_UWSGI",
    "REQUEST_METHOD",
    "PATH_INFO",
    "SCRIPT_NAME",
    "HTTP_HOST",
    "CONTENT_LENGTH",
    "uwsgi.core",
    "QUERY_STRING",
    "HTTP_TRACEPARENT",
    "HTTP_X_REQUEST_START",
    "HTTP_X_QUEUE_START",
)
#: How many of them, from the first, are always copied; the rest may not be there at all.
ALWAYS_COPIED: Final = 9
#: Those that a client can send: copied only where a proxy sets them.
PROXY_HEADERS: Final = frozenset(ENVIRON_KEYS[10:])
_TRACE: Final = r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[01]"
_FINE: Final = r"[1-9]\d{9}\.\d{6},[1-9]\d{9}\.\d{6}"
_COARSE: Final = r"[1-9]\d{9}\.\d{3}-\d{1,5}\.\d{3},[1-9]\d{9}\.\d{3}"
_OF_UWSGI: Final = r"[1-9]\d{15},[1-9]\d{15}"
#: The usual values of the first three, joined by commas: a pattern. nginx's are good to 1 µs or to 1 ms.
USUAL_TEXT: Final = f"{_TRACE},(?:{_FINE}|{_COARSE}),{_OF_UWSGI}"
#: The character of the second after the start's milliseconds, where those are all: then comes `-`.
AFTER_MILLISECONDS: Final = 14
_USUAL: Final = re.compile(f"{_TRACE},{_FINE},{_OF_UWSGI}", re.ASCII)
_decode_numbers: Final = msgspec.json.Decoder(list[int]).decode
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
#: Nanoseconds in a unit of the n-th decimal place of a second.
_PLACE_NS: Final = tuple(10 ** (9 - place) for place in range(10))
_MAX_DIGITS: Final = 19


class Stamps(NamedTuple):
    """What a request brought along; instants are ns since the epoch, None is not there or not believed."""

    #: Empty when nobody started a trace.
    trace_id: str
    parent_id: str
    sampled: bool
    nginx_start_ns: int | None
    nginx_pass_ns: int | None
    #: Of the two above.
    nginx_resolution_ns: int | None
    accept_ns: int | None
    parsed_ns: int | None
    #: Names of stamps that were there and not believed.
    rejected: list[str]


_NONE: Final[list[str]] = []


def read_stamps(environ: Sequence[Any], now_ns: int) -> Stamps:
    """Read a request's stamps; `environ` has the values of `ENVIRON_KEYS`, `now_ns` is when it was copied."""
    # All at once, by position, as the recommended configuration sends them; nothing is done in bytecode
    # that C can do.
    try:
        text = ",".join(environ[:3])  # a None raises
    except TypeError:
        return _read_one_by_one(environ, now_ns)
    if _USUAL.fullmatch(text) is not None:
        stamps_ns = read_fine_stamps(text[56:], now_ns)
        if stamps_ns is not None:
            start_ns, pass_ns, accept_ns, parsed_ns = stamps_ns
            return (  # type: ignore[return-value]  # a Stamps takes four times as long to make
                text[3:35],
                text[36:52],
                text[54] == "1",
                start_ns,
                pass_ns,
                1_000,
                accept_ns,
                parsed_ns,
                _NONE,
            )
    return _read_one_by_one(environ, now_ns)


def read_fine_stamps(text: str, now_ns: int) -> tuple[int, int, int, int] | None:
    """Read start, pass, accept and parsed, ns, all with microseconds; None when not all can be believed."""
    # Without its dot a stamp is µs; a decoder reads four numbers while `int` reads one.
    stamps_us = _decode_numbers(f"[{text.replace('.', '')}]")
    now_us = now_ns // 1_000
    if min(stamps_us) < now_us - _MAX_AGE_US or max(stamps_us) > now_us + _MAX_FUTURE_US:
        return None
    start_us, pass_us, accept_us, parsed_us = stamps_us
    return start_us * 1_000, pass_us * 1_000, accept_us * 1_000, parsed_us * 1_000


def read_trace(environ: Sequence[Any]) -> tuple[str, str, bool]:
    """Read only (trace id, parent id, sampled) of what `read_stamps` reads."""
    header = environ[10] if len(environ) > ALWAYS_COPIED else None
    parent = parse_traceparent(environ[0] or header or "")
    return parent or ("", "", True)


def _read_one_by_one(environ: Sequence[Any], now_ns: int) -> Stamps:
    rejected: list[str] = []

    def believe(name: str, stamp_ns: int | None) -> bool:
        if stamp_ns is not None and now_ns - MAX_AGE_NS <= stamp_ns <= now_ns + MAX_FUTURE_NS:
            return True
        rejected.append(name)
        return False

    traceparent, of_nginx, of_uwsgi = environ[:3]
    traceparent_header, request_start, queue_start = environ[10:13] or (None, None, None)
    start_text, _, pass_text = (of_nginx or "").partition(",")
    accept_text, _, parsed_text = (of_uwsgi or "").partition(",")
    trace_id, parent_id, sampled = read_trace(environ)
    if not trace_id and (traceparent or traceparent_header):
        rejected.append("traceparent")

    start_ns = pass_ns = resolution_ns = accept_ns = parsed_ns = None
    if start_text:
        stamp = parse_nginx_stamp(start_text)
        if believe("nginx_start", stamp and stamp[0]) and stamp is not None:
            start_ns, resolution_ns = stamp
    if pass_text:
        stamp = parse_nginx_stamp(pass_text)
        if believe("nginx_pass", stamp and stamp[0]) and stamp is not None:
            pass_ns = stamp[0]
            resolution_ns = max(stamp[1], resolution_ns or 0)
    elif text := request_start or queue_start:
        header = parse_request_start(text)
        if (
            believe("nginx_pass", header and header[1])
            and header is not None
            and (header[0] is None or believe("nginx_start", header[0]))
        ):
            start_ns, pass_ns, resolution_ns = header
    if accept_text:
        stamp_ns = parse_microseconds(accept_text)
        accept_ns = stamp_ns if believe("accept", stamp_ns) else None
    if parsed_text:
        stamp_ns = parse_microseconds(parsed_text)
        parsed_ns = stamp_ns if believe("parsed", stamp_ns) else None
    return Stamps(
        trace_id, parent_id, sampled, start_ns, pass_ns, resolution_ns, accept_ns, parsed_ns, rejected
    )


def parse_seconds(text: str) -> tuple[int, int] | None:
    """Parse seconds with a fraction into (ns, resolution in ns); None for anything else.

    >>> parse_seconds("1732371000.125")
    (1732371000125000000, 1000000)
    """
    # No regular expression: this runs up to four times a request.
    whole, dot, fraction = text.partition(".")
    digits = whole + fraction
    places = len(fraction)
    # Ten digits of seconds reach to the year 2286; more are another unit.
    if not 1 <= len(whole) <= 10 or places > 9 or not (digits.isdigit() and digits.isascii()):
        return None
    if dot and not fraction:
        return None
    unit_ns = _PLACE_NS[places]
    return int(digits) * unit_ns, unit_ns


def is_digits(text: str) -> bool:
    """Tell whether `text` is one or more of 0 to 9; `int` alone takes spaces, underscores, other scripts."""
    return text.isdigit() and text.isascii()


def parse_nginx_stamp(text: str) -> tuple[int, int] | None:
    """Parse one of nginx's two stamps into (ns, resolution in ns); None for anything else.

    `a-b` is `$msec-$request_time`: an instant and how long ago the request began.
    """
    instant_text, dash, ago_text = text.partition("-")
    instant = parse_seconds(instant_text)
    if instant is None or not dash:
        return instant
    ago = parse_seconds(ago_text)
    return None if ago is None else (instant[0] - ago[0], max(instant[1], ago[1]))


def parse_microseconds(text: str) -> int | None:
    """Parse uWSGI's µs since the epoch into ns; None for anything else."""
    return int(text) * 1_000 if text.isdigit() and text.isascii() and len(text) <= _MAX_DIGITS else None


def parse_traceparent(text: str) -> tuple[str, str, bool] | None:
    """Parse a W3C `traceparent` into (trace id, parent id, sampled); None when it is not valid.

    Source: https://www.w3.org/TR/trace-context/#traceparent-header
    """
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    version, trace_id, parent_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    if trace_id == _NO_TRACE or parent_id == _NO_SPAN:
        return None
    return trace_id, parent_id, bool(int(flags, 16) & 1)


def parse_request_start(text: str) -> tuple[int | None, int, int] | None:
    """Parse `X-Request-Start` or `X-Queue-Start` into (start, pass, resolution), all ns; None for garbage.

    The unit is told by the magnitude: seconds, with a fraction or 10 digits, 13 of ms, 16 of µs, 19 of ns.
    `D=` is how long the proxy had the request: µs counted on from `t` by Apache, seconds counted back from
    `t` by nginx (`t=$msec D=$request_time`). Without it the header tells only when the proxy passed it on.
    """
    words = text.partition(",")[0].split()
    if not words:
        return None
    stamp_text = words[0].removeprefix("t=")
    duration_text = next((word[2:] for word in words[1:] if word.startswith("D=")), None)
    stamp = _parse_any_unit(stamp_text)
    if stamp is None:
        return None
    instant_ns, resolution_ns = stamp
    if duration_text is None:
        return None, instant_ns, resolution_ns
    if "." in duration_text:
        duration = parse_seconds(duration_text)
        if duration is None:
            return None
        return instant_ns - duration[0], instant_ns, max(resolution_ns, duration[1])
    if not is_digits(duration_text) or len(duration_text) > _MAX_DIGITS:
        return None
    return instant_ns, instant_ns + int(duration_text) * 1_000, resolution_ns


def _parse_any_unit(text: str) -> tuple[int, int] | None:
    if "." in text:
        return parse_seconds(text)
    if not is_digits(text):
        return None
    for digits, unit_ns in ((10, 1_000_000_000), (13, 1_000_000), (16, 1_000), (19, 1)):
        if len(text) == digits:
            return int(text) * unit_ns, unit_ns
    return None
