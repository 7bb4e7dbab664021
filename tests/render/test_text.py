"""The terminal page of a breakdown."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from reqpath.analyse.breakdown import build_breakdown
from reqpath.analyse.figures import Breakdown
from reqpath.path import RequestPath
from reqpath.record import Operation
from reqpath.render.palette import PALETTE
from reqpath.render.text import build_bar, cut_middle, render_report
from reqpath.spool import SpoolLosses
from reqpath.tiers import TIERS
from tests.factories import (
    NOW_NS,
    make_nginx_record,
    make_path,
    make_shop_paths,
    make_worker_record,
    make_writer_info,
)

Draw = Callable[..., str]
Compare = Callable[[str, str], None]


def render(breakdown: Breakdown) -> Callable[[Console], None]:
    return lambda console: render_report(breakdown, console)


def make_bad_day() -> Breakdown:
    """Return a breakdown in which everything that can be wrong is."""
    paths = make_shop_paths(300)
    for number, path in enumerate(paths):
        if number % 10 == 0:
            paths[number] = RequestPath(path.worker, path.info, None)
        elif number % 10 == 1 and path.nginx is not None:
            path.nginx.end_ns -= 6_000_000
    paths.append(RequestPath(make_worker_record(rejected_stamps=["accept"]), make_writer_info(), None))
    paths.append(RequestPath(None, None, make_nginx_record(status=413)))
    losses = SpoolLosses(7, 1, 5, 33, {"core.rqp": "not a spool file"})
    return build_breakdown(paths, losses)


CASES = {
    "shop": lambda: build_breakdown(make_shop_paths()),
    "few": lambda: build_breakdown(make_shop_paths(7)),
    "no-nginx": lambda: build_breakdown(
        RequestPath(
            make_worker_record(parent_id="", trace_id=f"{n:032x}", app_start_ns=NOW_NS + n * 20_000_000),
            make_writer_info(),
            None,
        )
        for n in range(300)
    ),
    "stock-nginx": lambda: build_breakdown(
        make_path(8_000_000 + n % 9 * 1_000_000, number=n, at_ns=n * 10_000_000, resolution_ns=1_000_000)
        for n in range(300)
    ),
    "bad-day": make_bad_day,
}


@pytest.mark.parametrize("name", CASES)
def test_the_page_is_as_recorded(name: str, draw: Draw, compare_golden: Compare) -> None:
    compare_golden(f"report-{name}.txt", draw(render(CASES[name]())))


def test_the_page_in_colour_is_as_recorded(draw: Draw, compare_golden: Compare) -> None:
    compare_golden("report-shop.ansi", draw(render(CASES["shop"]()), colour=True))


def test_a_narrow_terminal_gets_the_most_telling_columns(draw: Draw, compare_golden: Compare) -> None:
    compare_golden("report-shop-narrow.txt", draw(render(CASES["shop"]()), 44))


@pytest.mark.parametrize("width", [24, 40, 63, 64, 80, 200])
@pytest.mark.parametrize("name", CASES)
def test_no_line_is_wider_than_the_terminal_or_a_hundred(name: str, width: int, draw: Draw) -> None:
    lines = draw(render(CASES[name]()), width).splitlines()
    assert max(cell_len(line) for line in lines) <= min(width, 100)


def test_the_first_screen_has_the_sentence_the_latency_and_every_segment_with_time(draw: Draw) -> None:
    screen = draw(render(CASES["shop"]())).splitlines()[:24]
    text = "\n".join(screen)
    assert "of the slowest 1 % is mysql.query on POST /orders" in " ".join(screen)
    for part in ("p99", "queue", "uwsgi.gil", "flask.view", "mysql.query", "nginx.send", "residual", "total"):
        assert part in text


def test_without_colour_there_is_no_escape(draw: Draw) -> None:
    assert "\x1b" not in draw(render(CASES["bad-day"]()))


def test_milliseconds_never_become_microseconds(draw: Draw) -> None:
    text = draw(render(CASES["stock-nginx"]()))
    for name in ("nginx.receive", "queue", "nginx.send", "residual", "total"):
        (line,) = (line for line in text.splitlines() if re.match(rf"..{name} ", line))
        assert "µs" not in line
        assert "." not in line.replace(name, "").partition("ms")[0]


def test_what_requests_bring_along_is_neither_markup_nor_an_escape(draw: Draw) -> None:
    evil = "\x1b[2J[bold red]\u202e/x\r\n\x9b31m\x07[/]"
    path = make_path(9_000_000, route=evil, method="G\x1bT", rejected_stamps=[evil])
    assert path.worker is not None
    path.worker.operations = [Operation("query", 0, 5_000_000, statement=evil)]
    text = draw(render(build_breakdown([path], SpoolLosses(foreign_files={evil: evil}))))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "[bold red]" in text


@given(st.lists(st.tuples(st.sampled_from([*TIERS, "residual"]), st.floats(-1e3, 1e12))), st.integers(0, 100))
def test_a_bar_is_as_wide_as_it_should_be_and_in_order(parts: list[tuple[str, float]], width: int) -> None:
    bar = build_bar(parts, width, colour=False).plain
    assert len(bar) in (0, width)
    letters = "".join(PALETTE[tier][0] for tier, value in parts if value > 0)
    assert re.sub(r"(.)\1+", r"\1", bar) in _subsequences_hint(letters, bar)


def _subsequences_hint(letters: str, bar: str) -> list[str]:
    """Return the bar's own letters if they come in the order of `letters`, else nothing."""
    wanted = re.sub(r"(.)\1+", r"\1", bar)
    position = 0
    for letter in wanted:
        position = letters.find(letter, position)
        if position < 0:
            return []
    return [wanted]


def test_every_tier_has_a_colour_and_a_letter_of_its_own() -> None:
    assert set(PALETTE) == {*TIERS, "client", "residual"}
    assert len({letter for letter, _ in PALETTE.values()}) == len(PALETTE)


@pytest.mark.parametrize(
    ("width", "cut"),
    [
        (40, "GET /products/<int:product_id>/photos"),
        (19, "GET /prod…d>/photos"),
        (2, "G…"),
        (1, "…"),
    ],
)
def test_a_long_name_keeps_both_ends(width: int, cut: str) -> None:
    assert cut_middle("GET /products/<int:product_id>/photos", width) == cut


@given(st.text(), st.integers(1, 60))
def test_a_cut_name_fits(text: str, width: int) -> None:
    cut = cut_middle(text, width)
    assert cell_len(cut) <= width
    assert (cut == text) == (cell_len(text) <= width)


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_a_long_route_takes_no_room_from_the_figures(width: int, draw: Draw) -> None:
    worker = make_worker_record(route="/products/<int:product_id>/photos/<path:name>/of/the/customers")
    text = draw(render(build_breakdown([RequestPath(worker, make_writer_info(), None)])), width)
    header, row = text[text.index("slowest  " if width < 64 else "slowest requests") :].splitlines()[:2]
    assert "…" not in header
    assert row.count("…") == 1
    assert re.search(r" \d\S* [mµ]?s +200 ", row)
