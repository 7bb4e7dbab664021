"""The report's page as its reader meets it."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable
from typing import Any

import pytest
from playwright.sync_api import Locator, Page

from reqpath.analyse.breakdown import build_breakdown
from reqpath.analyse.cube import Cube, CubeBuilder
from reqpath.analyse.figures import Breakdown
from reqpath.path import RequestPath
from reqpath.record import Operation
from reqpath.render.document import breakdown_to_json
from reqpath.render.page_report import render_report_page
from reqpath.render.units import format_duration, format_rate, format_share
from reqpath.spool import SpoolLosses
from tests.browser.conftest import OpenPage
from tests.factories import make_nginx_record, make_path, make_shop_paths, make_worker_record

pytestmark = pytest.mark.browser


def build(paths: Iterable[RequestPath], losses: SpoolLosses | None = None) -> tuple[Breakdown, Cube]:
    builder = CubeBuilder()
    breakdown = build_breakdown(builder.watch(paths), losses)
    return breakdown, builder.build(breakdown)


def render(paths: Iterable[RequestPath], **options: Any) -> str:
    return render_report_page(*build(paths), **options)


@pytest.fixture(scope="module")
def shop() -> str:
    return render(make_shop_paths(), jaeger="http://localhost:16686")


def read_values(table: Locator) -> list[list[float | None]]:
    """Return the exact values behind a table's figures, row by row."""
    values: list[list[float | None]] = table.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].filter(cell => !cell.matches('.name, .word'))"
        ".map(cell => cell.dataset.value === undefined ? null : Number(cell.dataset.value)))"
    )
    return values


def read_column(page: Page, section: str, number: int) -> list[str]:
    return page.locator(f"#{section} tbody tr td:nth-child({number})").all_inner_texts()


def drag(page: Page, left: float, top: float, right: float, bottom: float) -> None:
    """Drag over a part of the heat map, all four as shares of its width and height."""
    plot = page.locator("#heat .overlay")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * left, box["y"] + box["height"] * top)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * right, box["y"] + box["height"] * bottom, steps=4)
    page.mouse.up()


def test_the_parts_are_in_the_order_of_the_questions(shop: str, open_page: OpenPage) -> None:
    page = open_page(shop)
    assert page.locator("h2").all_inner_texts() == [
        "The path",
        "Latency over time",
        "The tiers' share, from the fastest to the slowest",
        "What differs",
        "Routes",
        "Queries",
        "The slowest requests",
        "What is unknown, and how to get it",
    ]
    assert page.locator("#page > *").nth(1).get_attribute("id") == "sentence"


def test_the_sentence_is_there_before_any_script_has_run(shop: str, browser: Any, tmp_path: Any) -> None:
    (tmp_path / "page.html").write_text(shop)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    assert (
        page.locator("h1").inner_text().startswith("64 % of the slowest 1 % is mysql.query on POST /orders")
    )
    assert "Open the file in a browser" in page.locator("noscript").inner_text()
    context.close()


@pytest.mark.parametrize("count", [7, 1_000])
def test_its_figures_are_those_of_json(count: int, open_page: OpenPage) -> None:
    breakdown, cube = build(make_shop_paths(count))
    report = breakdown_to_json(breakdown)
    page = open_page(render_report_page(breakdown, cube))
    total = report["total_ns"]
    shown = page.locator("#latency dd")
    assert shown.evaluate_all("all => all.map(each => Number(each.dataset.value))") == list(total.values())
    resolution_ns = breakdown.whole.resolution_ns
    assert shown.all_inner_texts() == [format_duration(ns, resolution_ns) for ns in total.values()]
    segments = [each for each in report["segments"] if each["known"] and each["share"]]
    expected = [
        [
            each["median_path_ns"],
            each["slowest_ns"],
            each["slowest_ns"] - each["median_path_ns"],
            each["share"],
        ]
        for each in [*segments, report["residual"]]
    ]
    assert read_values(page.locator("#path table"))[:-1] == expected
    assert read_column(page, "path", 3)[: len(segments)] == [
        format_duration(each["slowest_ns"], each["resolution_ns"]) for each in segments
    ]
    assert read_values(page.locator("#path table"))[-1][:2] == [
        report["median_path"]["total_ns"],
        report["slowest"]["total_ns"],
    ]
    routes = report["routes"]
    all_ns = total["mean"] * report["requests"]
    assert read_values(page.locator("#routes table")) == [
        [
            route["requests"],
            pytest.approx(route["total_ns"]["mean"] * route["requests"] / all_ns, rel=1e-12),
            *(route["total_ns"][name] for name in ("mean", "p50", "p99")),
            route["errors"],
            None,
        ]
        for route in routes
    ]
    assert read_column(page, "routes", 1) == [route["route"] for route in routes]
    assert read_values(page.locator("#queries table")) == [
        [each[name] for name in ("count", "mean_ns", "p99_ns", "total_ns", "errors")]
        for each in report["statements"]
    ]


def test_its_text_of_figures_is_the_terminals(shop: str, open_page: OpenPage) -> None:
    page = open_page(shop)
    random.seed(5)
    durations: list[tuple[float, int, int, bool]] = [
        (sign * scale * random.choice([random.random(), 0.5, 1.0, 0.9995]), resolution, digits, sign < 0)
        for sign in (1, -1)
        for scale in (10**power for power in range(13))
        for resolution in (1, 1_000, 1_000_000)
        for digits in (2, 3)
    ]
    durations += [(0, 1, 3, False), (0, 1_000_000, 3, True), (999_700, 1, 3, False), (12_345, 1, 3, False)]
    texts = page.evaluate(
        "all => all.map(([ns, fine, digits, sign]) => parts.duration(ns, fine, digits, sign))", durations
    )
    assert texts == [
        format_duration(ns, fine, digits=digits, sign=sign) for ns, fine, digits, sign in durations
    ]
    shares = [0, 1, 0.0004, 0.001, 0.0995, 0.2, 0.334, 0.901, 0.98765, 0.9996, -0.05]
    assert page.evaluate("all => all.map(parts.share)", shares) == [format_share(each) for each in shares]
    rates = [0.0001, 0.01, 0.2, 1, 9.94, 10, 99.6, 12_345.6]
    assert page.evaluate("all => all.map(parts.rate)", rates) == [format_rate(each) for each in rates]


def test_a_tier_of_next_to_no_time_is_still_in_the_bar(open_page: OpenPage) -> None:
    page = open_page(render([make_path(1_000_000_000)]))
    widths = page.locator("#path svg g[data-mark=rect] rect").evaluate_all(
        "all => all.map(each => Number(each.getAttribute('width')))"
    )
    assert len(widths) > 10
    assert min(widths) > 0


def test_dragging_over_the_heat_map_narrows_all_that_is_below(shop: str, open_page: OpenPage) -> None:
    page = open_page(shop)
    assert page.locator("#selected").inner_text() == "All 1,000 requests"
    before = page.locator("#path").inner_text()
    # The upper half of the picture: the slow orders, and none of the others.
    drag(page, 0.0, 0.0, 1.0, 0.5)
    assert page.locator("#selected").inner_text().startswith("10 of 1,000 requests selected: ")
    assert read_column(page, "routes", 1) == ["POST /orders"]
    assert read_column(page, "routes", 2) == ["10"]
    assert read_column(page, "queries", 1) == ["INSERT INTO orders (customer, item) VALUES (?, ?)"]
    assert read_values(page.locator("#queries table"))[0][:2] == [10, 60_000_000]
    assert page.locator("#requests .request").count() == 10
    assert set(page.locator("#requests summary .name").all_inner_texts()) == {"POST /orders"}
    assert "10 selected requests against the other 990." in page.locator("#differ").inner_text()
    assert page.locator("#differ tbody tr").first.inner_text().split("\t")[:4] == [
        "route",
        "POST /orders",
        "100 %",
        "0 %",
    ]
    assert page.locator("#path").inner_text() == before
    page.locator("#clear").click()
    assert page.locator("#selected").inner_text() == "All 1,000 requests"
    assert len(read_column(page, "routes", 1)) == 3


def test_a_selection_is_what_its_cells_hold(shop: str, open_page: OpenPage) -> None:
    page = open_page(shop)
    drag(page, 0.2, 0.0, 0.6, 1.0)
    text = page.locator("#selected").inner_text()
    match = re.search(r": (\S+) to (\S+) UTC", text)
    assert match is not None, text

    def seconds(clock: str) -> float:
        hours, minutes, rest = clock.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(rest)

    first, last = seconds(match[1]), seconds(match[2])
    inside = [
        path
        for path in make_shop_paths()
        if first <= (path.timing.start_ns / 1e9 + offset(page)) % 86_400 < last
    ]
    assert 300 < len(inside) < 500
    assert text.startswith(f"{len(inside)} of 1,000 requests")
    by_route = {
        route: [path for path in inside if path.route == route] for route in {p.route for p in inside}
    }
    rows = dict(zip(read_column(page, "routes", 1), read_values(page.locator("#routes table")), strict=True))
    assert rows.keys() == by_route.keys()
    for route, paths in by_route.items():
        totals = sorted(path.timing.total_ns for path in paths)
        requests, _, mean_ns, p50_ns, p99_ns, errors, _ = rows[route]
        assert (requests, errors) == (len(paths), sum(path.status == 500 for path in paths))
        assert mean_ns == sum(totals) / len(totals)
        # As fine as a row of the heat map is high, at most a tenth of a decade.
        for found, share in ((p50_ns, 0.5), (p99_ns, 0.99)):
            exact = totals[math.ceil(len(totals) * share) - 1]
            assert found == pytest.approx(exact, rel=0.3)


def offset(page: Page) -> float:
    minutes: float = page.evaluate("JSON.parse(document.getElementById('data').textContent).grid.offset_min")
    return minutes * 60


def test_the_slow_ones_are_a_button_away(shop: str, open_page: OpenPage) -> None:
    page = open_page(shop)
    page.locator("#select-slow").click()
    assert page.locator("#selected").inner_text().startswith("10 of 1,000 requests selected")
    assert page.locator("#heat .selection").is_visible()


def test_a_selection_can_be_made_with_the_keyboard(shop: str, open_page: OpenPage) -> None:
    page = open_page(shop)
    page.locator("#heat summary").focus()
    page.keyboard.press("Enter")
    slider = page.locator("#slider-latency-from")
    slider.focus()
    page.keyboard.press("End")
    assert "selected" in page.locator("#selected").inner_text()
    assert set(read_column(page, "routes", 1)) == {"POST /orders"}
    assert (slider.get_attribute("aria-valuetext") or "").endswith("ms")
    page.keyboard.press("Home")
    assert page.locator("#selected").inner_text() == "All 1,000 requests"


def test_tables_sort_by_each_column_both_ways(shop: str, open_page: OpenPage) -> None:
    page = open_page(shop)
    header = page.locator("#routes th", has_text="p99")
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert read_column(page, "routes", 1) == ["POST /orders", "GET /items/<int:id>", "GET /about"]
    # By the keyboard.
    header.locator("button").press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert read_column(page, "routes", 1) == ["GET /about", "GET /items/<int:id>", "POST /orders"]
    page.locator("#routes th button", has_text="route").click()
    assert read_column(page, "routes", 1) == ["GET /about", "GET /items/<int:id>", "POST /orders"]
    assert page.locator("#routes th[aria-sort]").count() == 1


def test_more_rows_than_a_screen_are_shown_when_asked_for(open_page: OpenPage) -> None:
    page = open_page(render(make_path(number=n, route=f"/r{n}") for n in range(30)))
    assert len(read_column(page, "routes", 1)) == 12
    page.locator("#routes button", has_text="Show all 30").click()
    assert len(read_column(page, "routes", 1)) == 30
    page.locator("#routes button", has_text="Show fewer").click()
    assert len(read_column(page, "routes", 1)) == 12


def test_a_request_has_its_waterfall_stamps_queries_attributes_and_trace(open_page: OpenPage) -> None:
    path = make_path(
        90_000_000, query_ns=60_000_000, attributes={"app.customer": 42, "app.tags": ["a", "b"]}, core=3
    )
    page = open_page(
        render([path], jaeger="http://localhost:16686"), permissions=["clipboard-read", "clipboard-write"]
    )
    request = page.locator("#requests .request")
    assert request.get_attribute("open") is not None
    waterfall = request.locator("svg[aria-label^=waterfall]")
    assert waterfall.locator("[data-mark=bar] rect").count() == 6
    drawn = waterfall.text_content() or ""
    assert "SELECT name FROM items" in drawn
    assert "time since the request's start" in drawn
    stamps = request.locator("table[aria-label=stamps] tr").all_inner_texts()
    assert [row.split("\t") for row in stamps[1:4]] == [
        ["nginx_start", "0", "1 µs"],
        ["nginx_pass", "500 µs", "1 µs"],
        ["accept", "2.500 ms", "1 µs"],
    ]
    assert stamps[-1].split("\t") == ["nginx_end", "90.000 ms", "1 µs"]
    text = request.inner_text()
    for expected in ("app.customer\n42", "app.tags\na, b", "core\n3", "first byte after 54.0 ms", "3 rows"):
        assert expected in text
    assert request.locator(".trace").inner_text() == path.trace_id
    link = request.locator("a")
    assert link.get_attribute("href") == f"http://localhost:16686/trace/{path.trace_id}"
    request.locator("button", has_text="copy").click()
    request.locator("button", has_text="copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == path.trace_id


def test_without_a_jaeger_there_is_no_link(open_page: OpenPage) -> None:
    page = open_page(render(make_shop_paths(10)))
    assert page.locator("a").count() == 0


def test_what_is_unknown_is_said_with_how_to_get_it(open_page: OpenPage) -> None:
    paths = [RequestPath(make_worker_record(trace_id=f"{n:032x}"), None, None) for n in range(5)]
    paths.append(RequestPath(None, None, make_nginx_record(status=413)))
    page = open_page(render_report_page(*build(paths, SpoolLosses(7, 1, 5, 33, {"core.rqp": "no spool"}))))
    text = page.locator("#unknown").inner_text()
    assert "missing accept in 5 of 6 requests" in text
    assert "route-run = addvar:REQPATH_UWSGI" in text
    assert "lost 7 records" in text
    # A dash is unknown, which is not zero.
    assert read_column(page, "path", 2)


MARKUP = "<img src=x onerror=alert(1)></script><script>alert(2)</script>&lt;b&gt;"
CONTROL = "a\x00b\x1b[31mc\u202egnp.exe\u2066d\u200fe\ud800"


def make_hostile_path(text: str) -> RequestPath:
    operation = Operation("query", 500_000, 900_000, 800_000, text, 1, error=text, server_address=text)
    return make_path(
        20_000_000,
        route=f"/{text}",
        path=f"/{text}",
        host=text,
        attributes={text: text, "list": [text]},
        operations=[operation],
        span_name=text,
        exception=(text, text, text),
        rejected_stamps=[text],
    )


@pytest.mark.parametrize(
    "text", [MARKUP, CONTROL, "x" * 10_000, "</SCRIPT ><!--<script>", "__proto__", "${1}"]
)
def test_hostile_text_is_shown_as_text(text: str, open_page: OpenPage) -> None:
    path = make_hostile_path(text)
    page = open_page(render([path, *make_shop_paths(20)]))
    assert page.locator("img, iframe, object, embed, b:not(summary b)").count() == 0
    assert page.locator("script").count() == 5
    shown = page.locator("body").inner_text()
    assert not re.search(r"[\x00\x1b\u202e\u2066\u200f]", shown)
    if text in (MARKUP, "__proto__", "${1}"):
        assert f"GET /{text}" in read_column(page, "routes", 1)
        assert text in read_column(page, "queries", 1)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_label_of_a_waterfall_is_text(open_page: OpenPage) -> None:
    page = open_page(render([make_hostile_path(MARKUP)]))
    assert "<img src=x" in (page.locator("#requests svg[aria-label^=waterfall]").text_content() or "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(scheme: str, shop: str, open_page: OpenPage) -> None:
    page = open_page(shop, color_scheme=scheme)
    ground = luminance(page, "document.documentElement", "backgroundColor")
    assert (ground > 0.9) == (scheme == "light")
    for selector in ("h1", ".soft", "#path td", "svg text", "a", "button.act"):
        ink = luminance(page, f"document.querySelector('{selector}')", "color")
        # Source: WCAG 2.2, 1.4.3.
        assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) >= 4.5, selector


def luminance(page: Page, element: str, attribute: str) -> float:
    colour = page.evaluate(f"getComputedStyle({element}).{attribute}")
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_it_prints_light_and_without_what_can_only_be_clicked(shop: str, open_page: OpenPage) -> None:
    page = open_page(shop, color_scheme="dark")
    page.emulate_media(media="print")
    assert luminance(page, "document.documentElement", "backgroundColor") == 1.0
    assert not page.locator("#select-slow").is_visible()
    assert page.pdf().startswith(b"%PDF")


def test_on_paper_a_figure_keeps_its_unit_and_an_open_request_begins_where_there_is_room(
    shop: str, open_page: OpenPage
) -> None:
    # A4 with margins of a centimetre.
    page = open_page(shop, viewport={"width": 718, "height": 1_047})
    page.emulate_media(media="print")
    for part in ("path", "queries", "routes"):
        figures = page.locator(f"#{part} tbody td:not(.name)")
        wraps = figures.evaluate_all("all => all.map(each => getComputedStyle(each).whiteSpace)")
        assert set(wraps) == {"nowrap"}
        assert page.locator(f"#{part} .scroll").evaluate("each => each.scrollWidth <= each.clientWidth")
    # A head is repeated on each sheet, but buttons in it are not.
    heads = page.locator("th button").evaluate_all("all => all.map(each => getComputedStyle(each).display)")
    assert set(heads) == {"contents"}
    request = page.locator("#requests .request[open]")
    assert request.evaluate("each => getComputedStyle(each).breakInside") == "auto"
    # A sheet has nothing beyond its margin.
    outer = page.locator("#path svg text").evaluate_all(
        "all => all.map(each => each.getBoundingClientRect().right)"
    )
    assert max(outer) <= 718


def test_what_the_colours_of_the_heat_map_mean_holds_in_dark_too(shop: str, open_page: OpenPage) -> None:
    page = open_page(shop, color_scheme="dark")
    text = page.locator("#heat").inner_text()
    assert "the strongest colour is" in text
    assert "dark" not in text


def test_tables_fit_a_narrow_screen(shop: str, open_page: OpenPage) -> None:
    page = open_page(shop, viewport={"width": 400, "height": 800})
    for table in page.locator(".scroll").all():
        assert table.evaluate("each => each.scrollWidth <= each.clientWidth"), table.inner_text()
    heights = page.locator("#path tbody tr").evaluate_all("all => all.map(each => each.clientHeight)")
    assert max(heights) - min(heights) <= 2


def test_it_fits_a_narrow_screen(shop: str, open_page: OpenPage) -> None:
    page = open_page(shop, viewport={"width": 400, "height": 800}, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    for svg in page.locator("svg").all():
        box = svg.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 400


def test_every_part_has_a_name_for_a_screen_reader(shop: str, open_page: OpenPage) -> None:
    page = open_page(shop)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('svg, table, section, figure:not([hidden]), [role], input, button')]"
        ".filter(each => !(each.ariaLabel || each.getAttribute('aria-labelledby') || each.textContent.trim()"
        " || each.labels?.length)).map(each => each.outerHTML.slice(0, 80))"
    )
    assert unnamed == []
    assert page.locator("[role=status][aria-live=polite]").count() == 1
    assert page.locator("h1").count() == 1


def test_every_axis_has_its_unit(shop: str, open_page: OpenPage) -> None:
    page = open_page(shop)
    for selector, labels in {
        "#path": ["share of the request's time (%)"],
        "#heat": ["latency (log scale)", "ms", "time of the request's start (UTC"],
        "#shares": ["share of the time (%)", "percentile of latency (%)"],
        "#requests": ["time since the request's start", "ms"],
    }.items():
        text = " ".join(page.locator(f"{selector} svg").all_text_contents())
        for label in labels:
            assert label in text
