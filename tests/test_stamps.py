"""The stamps that arrive as text: each good form is read, and anything else is None."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.stamps import (
    ENVIRON_KEYS,
    _read_one_by_one,
    parse_microseconds,
    parse_nginx_stamp,
    parse_request_start,
    parse_seconds,
    parse_traceparent,
    read_stamps,
)

S = 1_000_000_000
MS = 1_000_000
US = 1_000
NOW_S = 1_732_371_000

#: What a client or a broken proxy may send instead of digits.
garbage = st.one_of(
    st.text(max_size=60),
    st.text("0123456789.-+eE_ ,;=tD\u0660\u0661\u00b2\uff11nainf", max_size=40),
)


def mutated(good: str) -> st.SearchStrategy[str]:
    """Return `good` with a piece cut out and another put there."""
    return st.builds(
        lambda start, length, piece: good[:start] + piece + good[start + length :],
        st.integers(0, len(good)),
        st.integers(0, 6),
        st.text("0123456789abcdefF.-, =tDx\u0661\ud800", max_size=6) | st.text(max_size=4),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1732371000.125", (NOW_S * S + 125 * MS, MS)),
        ("1732371000.123456", (NOW_S * S + 123_456 * US, US)),
        ("1732371000.123456789", (NOW_S * S + 123_456_789, 1)),
        ("1732371000", (NOW_S * S, S)),
        ("0.000", (0, MS)),
        ("0.002", (2 * MS, MS)),
    ],
)
def test_seconds(text: str, expected: tuple[int, int]) -> None:
    assert parse_seconds(text) == expected


NOT_SECONDS = [
    "",
    ".",
    ".5",
    "1.",
    "-1.5",
    "+1.5",
    "1e9",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "Infinity",
    "1_0.5",
    " 1.5",
    "1.5 ",
    "1.5\n",
    "1,5",
    "1.2.3",
    "0x10",
    "\u0661\u0662.5",
    "\uff11.5",
    "\u00b2.5",
    "1.\u0665",
    "1732371000125.5",
    "17323710001.5",
    "1.0123456789",
    "9" * 5000,
    "1." + "9" * 5000,
]


@pytest.mark.parametrize("text", NOT_SECONDS)
def test_what_is_no_number_of_seconds(text: str) -> None:
    assert parse_seconds(text) is None
    assert parse_nginx_stamp(text) is None


@given(ns=st.integers(0, 10**19 - 1), places=st.integers(1, 9))
def test_any_instant_in_seconds_is_read_back(ns: int, places: int) -> None:
    unit_ns = 10 ** (9 - places)
    ns -= ns % unit_ns
    text = f"{ns // S}.{ns % S // unit_ns:0{places}d}"
    assert parse_seconds(text) == (ns, unit_ns)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1732371000.125-0.002", (NOW_S * S + 123 * MS, MS)),
        ("1732371000.125-0.000", (NOW_S * S + 125 * MS, MS)),
        ("1732371000.125456-0.002", (NOW_S * S + 123_456 * US, MS)),
        ("1732371000.125456", (NOW_S * S + 125_456 * US, US)),
    ],
)
def test_nginxs_stamp_may_say_how_long_ago_the_request_began(text: str, expected: tuple[int, int]) -> None:
    assert parse_nginx_stamp(text) == expected


@pytest.mark.parametrize("text", ["-", "1732371000.125-", "-0.002", "1732371000.125--0.002", "1.5-1.5-1.5"])
def test_half_a_stamp_is_none(text: str) -> None:
    assert parse_nginx_stamp(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1732371000123601", NOW_S * S + 123_601 * US),
        ("0", 0),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("+5", None),
        (" 5", None),
        ("5\n", None),
        ("1_0", None),
        ("\u0665", None),
        ("\u00b2", None),
        ("9" * 20, None),
        ("9" * 5000, None),
    ],
)
def test_microseconds(text: str, expected: int | None) -> None:
    assert parse_microseconds(text) == expected


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_traceparent() -> None:
    expected = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True)
    assert parse_traceparent(TRACEPARENT) == expected
    assert parse_traceparent(TRACEPARENT[:-2] + "00") == (*expected[:2], False)
    assert parse_traceparent(TRACEPARENT[:-2] + "03") == expected
    assert parse_traceparent("cc" + TRACEPARENT[2:]) == expected
    assert parse_traceparent("cc" + TRACEPARENT[2:] + "-what-the-future-will-be") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        TRACEPARENT.upper(),
        "ff" + TRACEPARENT[2:],
        TRACEPARENT + "-more",
        TRACEPARENT + "-",
        TRACEPARENT + "\n",
        " " + TRACEPARENT,
        TRACEPARENT[:-1],
        TRACEPARENT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        TRACEPARENT.replace("b7ad6b7169203331", "0" * 16),
        TRACEPARENT.replace("a", "g"),
        TRACEPARENT.replace("-", "_"),
        TRACEPARENT.replace("0", "\u0660"),
        TRACEPARENT + "," + TRACEPARENT,
    ],
)
def test_what_is_no_traceparent(text: str) -> None:
    assert parse_traceparent(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # nginx: $msec
        ("1732371000.125", (None, NOW_S * S + 125 * MS, MS)),
        ("t=1732371000.125", (None, NOW_S * S + 125 * MS, MS)),
        # nginx: t=$msec D=$request_time, which counts back
        ("t=1732371000.125 D=0.025", (NOW_S * S + 100 * MS, NOW_S * S + 125 * MS, MS)),
        ("t=1732371000.125456 D=0.025456", (NOW_S * S + 100 * MS, NOW_S * S + 125_456 * US, US)),
        # whole seconds: an old HAProxy
        ("1732371000", (None, NOW_S * S, S)),
        ("t=1732371000", (None, NOW_S * S, S)),
        # milliseconds: Heroku
        ("1732371000125", (None, NOW_S * S + 125 * MS, MS)),
        # microseconds: Apache, with D in µs, which counts on
        ("t=1732371000125456", (None, NOW_S * S + 125_456 * US, US)),
        ("t=1732371000125456 D=1500", (NOW_S * S + 125_456 * US, NOW_S * S + 126_956 * US, US)),
        ("t=1732371000125456  D=1500", (NOW_S * S + 125_456 * US, NOW_S * S + 126_956 * US, US)),
        # nanoseconds: Render
        ("1732371000125456789", (None, NOW_S * S + 125_456_789, 1)),
        # trailing words, and several values of which the first counts
        (
            "t=1732371000125456 D=1500 l=0.1 i=99 b=3",
            (NOW_S * S + 125_456 * US, NOW_S * S + 126_956 * US, US),
        ),
        ("t=1732371000125 host=web1", (None, NOW_S * S + 125 * MS, MS)),
        ("1732371000.125, 1732371009.125", (None, NOW_S * S + 125 * MS, MS)),
        ("t=1732371000125,t=garbage", (None, NOW_S * S + 125 * MS, MS)),
        ("  t=1732371000.125  ", (None, NOW_S * S + 125 * MS, MS)),
    ],
)
def test_every_form_of_the_queue_time_header(text: str, expected: tuple[int | None, int, int]) -> None:
    assert parse_request_start(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *NOT_SECONDS[:4],
        "t=",
        "t=t=1732371000",
        "t=nan",
        "t=inf",
        "t=-1732371000.5",
        "t=1732371000.5 D=",
        "t=1732371000.5 D=-1",
        "t=1732371000.5 D=nan",
        "t=1732371000.5 D=1e9",
        "t=1732371000.5 D=0.5.5",
        "17323710001",
        "173237100012",
        "17323710001255",
        "1732371000125.5",
        "173237100012345678901",
        "t=\u0661\u0667\u0663\u0662\u0663\u0667\u0661\u0660\u0660\u0660",
        ",1732371000",
        "Root=1-67891233-abcdef012345678912345678",
        "D=1500",
        "9" * 10_000,
    ],
)
def test_what_is_no_queue_time(text: str) -> None:
    assert parse_request_start(text) is None


@given(text=garbage | mutated("1732371000.125-0.002") | mutated("1732371000.123456"))
def test_garbage_for_nginxs_stamps_never_raises(text: str) -> None:
    for parsed in (parse_seconds(text), parse_nginx_stamp(text)):
        if parsed is not None:
            assert isinstance(parsed[0], int)
            assert parsed[1] in {10**n for n in range(10)}
            assert set(text) <= set("0123456789.-")


@given(text=garbage | mutated("1732371000123601"))
def test_garbage_for_uwsgis_stamps_never_raises(text: str) -> None:
    parsed = parse_microseconds(text)
    assert parsed is None or (set(text) <= set("0123456789") and parsed == int(text) * US)


@given(text=garbage | mutated(TRACEPARENT) | mutated("cc" + TRACEPARENT[2:] + "-more"))
def test_garbage_for_a_traceparent_never_raises(text: str) -> None:
    parsed = parse_traceparent(text)
    if parsed is not None:
        trace_id, parent_id, _ = parsed
        assert text[2:53].startswith(f"-{trace_id}-{parent_id}-")
        assert 0 < int(trace_id, 16) < 1 << 128
        assert 0 < int(parent_id, 16) < 1 << 64


@given(text=garbage | mutated("t=1732371000.125 D=0.025") | mutated("t=1732371000125456 D=1500, t=5"))
def test_garbage_for_the_queue_time_never_raises(text: str) -> None:
    parsed = parse_request_start(text)
    if parsed is not None:
        start_ns, pass_ns, resolution_ns = parsed
        assert isinstance(pass_ns, int)
        assert pass_ns >= 0
        assert start_ns is None or start_ns <= pass_ns
        assert resolution_ns > 0


USUAL = {
    "REQPATH_TRACEPARENT": TRACEPARENT,
    "REQPATH_NGINX": "1732371000.123456,1732371000.123498",
    "REQPATH_UWSGI": "1732371000123601,1732371000123633",
}


def copied(environ: dict[str, str]) -> list[str | None]:
    """Return what a worker copies of an environ."""
    return [environ.get(key) for key in ENVIRON_KEYS]


@given(
    changes=st.fixed_dictionaries({}, optional={name: mutated(good) for name, good in USUAL.items()}),
    missing=st.sets(st.sampled_from(sorted(USUAL)), max_size=2),
    distance_ns=st.sampled_from([0, 4 * S, 6 * S, -3600 * S, -90_000 * S]),
)
def test_the_short_way_for_the_usual_request_reads_what_the_long_one_does(
    changes: dict[str, str], missing: set[str], distance_ns: int
) -> None:
    environ = copied({name: text for name, text in (USUAL | changes).items() if name not in missing})
    now_ns = NOW_S * S + 200 * MS - distance_ns
    assert read_stamps(environ, now_ns) == _read_one_by_one(environ, now_ns)


def test_the_usual_request_is_read_whole() -> None:
    stamps = read_stamps(copied(USUAL), NOW_S * S + 200 * MS)
    assert stamps == (
        *("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True),
        *(NOW_S * S + 123_456 * US, NOW_S * S + 123_498 * US, US),
        *(NOW_S * S + 123_601 * US, NOW_S * S + 123_633 * US, []),
    )
