"""Figures as text: durations with their unit and no finer than their stamps, shares, counts, safe strings.

>>> format_duration(41_230_000), format_duration(41_230_000, 1_000_000), format_duration(300_000, 1_000_000)
('41.2 ms', '41 ms', '<1 ms')
"""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import Final

_UNITS: Final = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"))
#: What a reader sees where nothing is known.
UNKNOWN: Final = "-"


def format_duration(ns: float | None, resolution_ns: int = 1, *, digits: int = 3, sign: bool = False) -> str:
    """Return a duration with its unit, to `digits` significant digits, never finer than `resolution_ns`.

    `sign` asks for a plus sign too. A duration below its resolution is `<1 ms` or `<1 µs`; None is a dash.
    """
    if ns is None:
        return UNKNOWN
    # Below a microsecond the clock's own cost is what one sees.
    finest_ns = max(resolution_ns, 1_000)
    if abs(ns) < finest_ns / 2:
        return "0" if ns == 0 and (resolution_ns < 1_000 or sign) else f"<1 {_unit_of(finest_ns)[1]}"
    # Rounded first: 999.7 µs are 1.00 ms.
    step_ns = max(finest_ns, 10 ** (len(str(int(abs(ns)))) - digits))
    rounded_ns = max(1, round(abs(ns) / step_ns)) * step_ns
    unit_ns, unit = _unit_of(rounded_ns)
    decimals = max(0, digits - len(str(rounded_ns // unit_ns)))
    # No digit that the stamps don't have: in seconds, a millisecond is the third.
    decimals = min(decimals, len(str(unit_ns // finest_ns)) - 1 if unit_ns >= finest_ns else 0)
    prefix = "-" if ns < 0 else "+" if sign else ""
    return f"{prefix}{rounded_ns / unit_ns:,.{decimals}f} {unit}"


def format_plus_minus(ns: float, resolution_ns: int) -> str:
    """Return a duration with ± its resolution where that is more than a hundredth of it."""
    text = format_duration(ns, resolution_ns)
    if resolution_ns * 100 > ns and not text.startswith("<"):
        text += f" ±{resolution_ns // _unit_of(resolution_ns)[0]} {_unit_of(resolution_ns)[1]}"
    return text


def format_share(share: float) -> str:
    """Return a share as a percentage with as many digits as help: `41 %`, `2.3 %`, `<0.1 %`, `99.8 %`."""
    percent = share * 100
    magnitude = abs(percent)
    if magnitude == 0:
        return "0 %"
    if magnitude < 0.1:
        return "<0.1 %"
    if magnitude < 9.95 or 90 < magnitude < 99.95:
        return f"{percent:.1f} %"
    return f"{percent:.0f} %"


def format_rate(rate_per_s: float) -> str:
    """Return requests per second, or per minute or hour where they are few."""
    for seconds, unit in ((1, "s"), (60, "min"), (3600, "h")):
        rate = rate_per_s * seconds
        if rate >= 1 or unit == "h":
            return f"{rate:,.0f}/{unit}" if rate >= 10 else f"{rate:.1f}/{unit}"
    raise AssertionError


def format_span(ns: int) -> str:
    """Return a long duration: `60.2 s`, `12 min`, `3.5 h`, `2.1 days`."""
    seconds = ns / 1e9
    if seconds < 1:
        return format_duration(ns, digits=2)
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days"


def format_instant(ns: int, *, date: bool = True, milliseconds: bool = True) -> str:
    """Return a wall-clock instant in local time; an instant out of the calendar's range is a dash."""
    try:
        instant = datetime.fromtimestamp(ns // 1_000_000_000).astimezone()
    except (ValueError, OverflowError, OSError):
        return UNKNOWN
    text = instant.strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S")
    return f"{text}.{ns // 1_000_000 % 1000:03d}" if milliseconds else text


def format_count(count: int, noun: str) -> str:
    """Return `1 request`, `1,200 requests`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_bytes(count: int) -> str:
    """Return `812 bytes`, `3.4 kB`, `120 MB`."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size * 0.9995:
            return f"{count / size:.1f} {unit}" if count < size * 9.95 else f"{count / size:,.0f} {unit}"
    return format_count(count, "byte")


def clean(text: str, limit: int = 4096) -> str:
    """Return text from a request without what a terminal would act upon, on one line.

    Control and format characters (escape sequences, changes of the writing direction) and lone surrogates
    become a replacement character, white space of any kind single blanks.
    """
    text = " ".join(text[:limit].split())
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(character) in ("Cc", "Cf", "Cs") else character
        for character in text
    )


def _unit_of(ns: int) -> tuple[int, str]:
    return next((entry for entry in _UNITS if ns >= entry[0]), (1, "ns"))
