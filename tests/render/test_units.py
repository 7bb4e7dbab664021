"""Figures as text."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.render.units import (
    clean,
    format_count,
    format_duration,
    format_instant,
    format_plus_minus,
    format_rate,
    format_share,
    format_span,
)


@pytest.mark.parametrize(
    ("ns", "resolution_ns", "expected"),
    [
        (None, 1, "-"),
        (0, 1, "0"),
        (0, 1_000_000, "<1 ms"),
        (300, 1, "<1 µs"),
        (812_000, 1, "812 µs"),
        (999_700, 1, "1.00 ms"),
        (2_134_000, 1, "2.13 ms"),
        (41_230_000, 1, "41.2 ms"),
        (41_230_000, 1_000_000, "41 ms"),
        (400_000, 1_000_000, "<1 ms"),
        (600_000, 1_000_000, "1 ms"),
        (25_000, 1_000, "25 µs"),
        (9_996_000, 1, "10.0 ms"),
        (1_234_000_000, 1_000_000, "1.23 s"),
        (83_000_000_000, 1, "83.0 s"),
        (5_000_000_000_000, 1, "5,000 s"),
        (-10_400_000, 1, "-10.4 ms"),
    ],
)
def test_a_duration_has_its_unit_and_no_more_than_its_resolution(
    ns: float | None, resolution_ns: int, expected: str
) -> None:
    assert format_duration(ns, resolution_ns) == expected


def test_a_difference_has_its_sign() -> None:
    assert [format_duration(ns, sign=True) for ns in (37_000_000, -37_000_000, 0)] == [
        "+37.0 ms",
        "-37.0 ms",
        "0",
    ]


@given(st.integers(-(10**15), 10**15), st.sampled_from([1, 1_000, 1_000_000]), st.integers(2, 3))
def test_a_duration_is_right_to_its_digits_and_resolution(ns: int, resolution_ns: int, digits: int) -> None:
    text = format_duration(ns, resolution_ns, digits=digits)
    found = re.fullmatch(r"(-?)([\d,]+(?:\.\d+)?) (µs|ms|s)", text)
    if found is None:
        assert abs(ns) < max(resolution_ns, 1_000)
        return
    unit_ns = {"µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000}[found[3]]
    value_ns = float(found[2].replace(",", "")) * unit_ns * (-1 if found[1] else 1)
    assert abs(value_ns - ns) <= max(abs(ns) * 10 ** (1 - digits), resolution_ns, 1_000) * 0.5001
    if resolution_ns == 1_000_000:
        assert found[3] != "µs"
        assert "." not in found[2] or found[3] == "s"


def test_plus_minus_is_said_where_it_matters() -> None:
    assert format_plus_minus(12_000_000, 1_000_000) == "12 ms ±1 ms"
    assert format_plus_minus(1_200_000_000, 1_000_000) == "1.20 s"
    assert format_plus_minus(12_000_000, 1_000) == "12.0 ms"


def test_shares_have_as_many_digits_as_help() -> None:
    shares = (0, 0.0004, 0.0234, 0.412, 0.9876, 0.99999, 1, -0.02)
    assert [format_share(share) for share in shares] == [
        "0 %",
        "<0.1 %",
        "2.3 %",
        "41 %",
        "98.8 %",
        "100 %",
        "100 %",
        "-2.0 %",
    ]


def test_rates_spans_and_counts_read_well() -> None:
    assert [format_rate(rate) for rate in (667.2, 4.2, 0.5, 0.001)] == ["667/s", "4.2/s", "30/min", "3.6/h"]
    assert [format_span(s * 10**9) for s in (5, 600, 9_000, 300_000)] == [
        "5.0 s",
        "10 min",
        "2.5 h",
        "3.5 days",
    ]
    assert [format_count(count, "request") for count in (1, 1_200)] == ["1 request", "1,200 requests"]


def test_an_instant_beyond_the_calendar_is_a_dash() -> None:
    assert format_instant(1 << 80) == "-"
    assert format_instant(1_800_000_000_123_456_789) == "2027-01-15 08:00:00.123"


@given(st.text())
def test_clean_text_is_one_line_without_controls(text: str) -> None:
    cleaned = clean(text)
    assert all(unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in cleaned)
    assert cleaned == clean(cleaned)
