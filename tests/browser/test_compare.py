"""The page of a comparison as its reader meets it."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page

from reqpath.analyse.differences import Comparison
from reqpath.analyse.estimate import Estimate
from reqpath.path import RequestPath
from reqpath.render.bench_sentence import format_estimate
from reqpath.render.compare import comparison_to_json
from reqpath.render.page_compare import render_comparison_page
from reqpath.render.units import format_duration
from tests.analyse.comparisons import compare, make_traffic
from tests.browser.conftest import OpenPage
from tests.browser.test_report import CONTROL, MARKUP, luminance
from tests.factories import make_path

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def slower() -> Comparison:
    return compare(make_traffic(1), make_traffic(2, query_ns=5_000_000))


@pytest.fixture(scope="module")
def html(slower: Comparison) -> str:
    return render_comparison_page(slower)


def read_values(table: Locator) -> list[list[float | None]]:
    """Return the exact values behind a table's figures, row by row."""
    values: list[list[float | None]] = table.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].filter(cell => !cell.matches('.name, .word'))"
        ".map(cell => cell.dataset.value === undefined ? null : Number(cell.dataset.value)))"
    )
    return values


def read_column(page: Page, section: str, number: int) -> list[str]:
    return page.locator(f"#{section} tbody tr td:nth-child({number})").all_inner_texts()


def test_the_parts_are_in_the_order_of_the_questions(html: str, open_page: OpenPage) -> None:
    page = open_page(html)
    assert page.locator("h2").all_inner_texts() == [
        "The two sides",
        "What changed, where",
        "The path of each",
        "Routes, and their mix",
        "Over time",
        "What else is to be known",
    ]
    assert re.match(
        r"B is [\d.]+ ms \[.*\] slower than A's .* in mysql.query", page.locator("h1").inner_text()
    )


def test_its_figures_are_those_of_json(html: str, slower: Comparison, open_page: OpenPage) -> None:
    page = open_page(html)
    document = comparison_to_json(slower)
    sides = read_values(page.locator("#latency table"))
    assert sides == [
        [
            side["requests"],
            side["rate_per_s"],
            *(side["latency"][name] for name in ("mean_ns", "p50_ns", "p90_ns", "p99_ns", "max_ns")),
            side["errors"],
        ]
        for side in (document["first"], document["second"])
    ]
    rows = read_values(page.locator("#difference table"))
    assert rows[:-1] == [
        [part["first_ns"], part["second_ns"], part["difference"]["value_ns"], float(part["differs"])]
        for part in document["parts"]
    ]
    assert rows[-1][2] == document["total"]["difference"]["value_ns"]
    assert read_column(page, "difference", 4) == [
        format_estimate(part.difference) for part in (*slower.parts, slower.total)
    ]
    assert read_values(page.locator("#routes table")) == [
        [
            route["first_requests"],
            route["second_requests"],
            route["first_sum_ns"] / route["first_requests"],
            route["second_sum_ns"] / route["second_requests"],
            route["difference"]["value_ns"],
            pytest.approx(route["within_ns"] + route["mix_ns"], rel=1e-12),
        ]
        for route in document["routes"]
    ]


def test_its_text_of_estimates_is_the_terminals(html: str, open_page: OpenPage) -> None:
    page = open_page(html)
    noise = random.Random(3)
    found = []
    for _ in range(200):
        value = noise.choice((-1, 1)) * 10 ** noise.uniform(0, 10)
        reach = abs(value) * 10 ** noise.uniform(-3, 2)
        found.append(Estimate(24, value, value - reach, value + reach, 1.0, 0.5))
    found += [Estimate(3, 1_234_567.0, None, None, None, None), Estimate(9, 0.0, 0.0, 0.0, 0.0, 1.0)]
    texts = page.evaluate(
        "all => all.map(([value_ns, low_ns, high_ns]) => parts.estimate({value_ns, low_ns, high_ns}))",
        [[each.value_ns, each.low_ns, each.high_ns] for each in found],
    )
    assert texts == [format_estimate(each) for each in found]


def test_the_waterfall_leads_from_nothing_to_the_whole_difference(
    html: str, slower: Comparison, open_page: OpenPage
) -> None:
    page = open_page(html)
    svg = page.locator("#difference svg")
    label = svg.get_attribute("aria-label") or ""
    for part in (*slower.parts, slower.total):
        assert f"{part.name} {format_estimate(part.difference)}" in label
    bars = svg.locator("[data-mark=rect] rect")
    boxes = bars.evaluate_all("all => all.map(each => each.getBBox()).map(box => [box.x, box.x + box.width])")
    assert len(boxes) == len(slower.parts) + 1
    # As large as they are: the query's is nearly the whole.
    names = [part.name for part in slower.parts]
    widths = [right - left for left, right in boxes]
    share = widths[names.index("mysql.query")] / widths[-1]
    values = {part.name: part.difference.value_ns for part in (*slower.parts, slower.total)}
    assert share == pytest.approx(values["mysql.query"] / values["total"], abs=0.05)
    # Each begins where the one before ended; the last one begins at 0.
    at = slower.parts[0].difference.value_ns > 0
    end = boxes[0][1] if at else boxes[0][0]
    for (left, right), part in zip(boxes[1:-1], slower.parts[1:], strict=True):
        start, stop = (left, right) if part.difference.value_ns > 0 else (right, left)
        assert abs(start - end) < 4
        end = stop


def test_a_single_route_can_be_looked_at_by_keyboard(
    html: str, slower: Comparison, open_page: OpenPage
) -> None:
    page = open_page(html)
    choice = page.get_by_label("requests that are compared")
    choice.focus()
    page.keyboard.press("ArrowDown")
    assert "within routes" in choice.evaluate("each => each.selectedOptions[0].textContent")
    assert read_values(page.locator("#difference table"))[-1] == [
        None,
        None,
        slower.total.within.value_ns,
        float(slower.total.within.excludes_zero),
    ]
    choice.select_option(label="POST /orders")
    orders = next(route for route in slower.routes if route.route == "POST /orders")
    assert orders.difference is not None
    assert read_values(page.locator("#difference table"))[-1][2] == orders.difference.value_ns
    assert format_estimate(orders.difference) in (
        page.locator("#difference svg").get_attribute("aria-label") or ""
    )


def test_comparisons_without_a_verdict_are_pages_too(open_page: OpenPage) -> None:
    page = open_page(render_comparison_page(compare(make_traffic(1, 12), make_traffic(2, 12))))
    assert page.locator("h1").inner_text().startswith("No verdict: A has 12 requests")
    assert page.locator("#difference svg").count() == 1
    page = open_page(render_comparison_page(compare([], make_traffic(1))))
    assert page.locator("h2").all_inner_texts() == ["The two sides", "What else is to be known"]
    one = make_path(12_000_000)
    page = open_page(render_comparison_page(compare([one], [one])))
    assert page.locator("#routes").count() == 0


@pytest.mark.parametrize("text", [MARKUP, CONTROL, "x" * 5_000, "</SCRIPT ><!--<script>", "__proto__"])
def test_hostile_text_is_shown_as_text(text: str, open_page: OpenPage) -> None:
    hostile: list[RequestPath] = [
        make_path(20_000_000, number=number, at_ns=number * 20_000_000, route=f"/{text}")
        for number in range(60)
    ]
    comparison = compare([*hostile, *make_traffic(1)], [*hostile, *make_traffic(2)])
    page = open_page(render_comparison_page(comparison))
    assert page.locator("img, iframe, object, embed, b").count() == 0
    assert page.locator("script").count() == 5
    shown = page.locator("body").inner_text()
    assert not re.search(r"[\x00\x1b\u202e\u2066\u200f]", shown)
    if text in (MARKUP, "__proto__"):
        assert f"GET /{text}" in read_column(page, "routes", 1)
        assert f"GET /{text}" in page.locator("#of option").all_inner_texts()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(scheme: Any, html: str, open_page: OpenPage) -> None:
    page = open_page(html, color_scheme=scheme)
    ground = luminance(page, "document.documentElement", "backgroundColor")
    assert (ground > 0.9) == (scheme == "light")
    for selector in ("h1", ".soft", "#difference td", "#difference svg text", "select"):
        ink = luminance(page, f"document.querySelector('{selector}')", "color")
        # Source: WCAG 2.2, 1.4.3.
        assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) >= 4.5, selector


def test_it_prints_light(html: str, open_page: OpenPage) -> None:
    page = open_page(html, color_scheme="dark")
    page.emulate_media(media="print")
    assert luminance(page, "document.documentElement", "backgroundColor") == 1.0
    assert page.pdf().startswith(b"%PDF")


def test_it_fits_a_narrow_screen(html: str, open_page: OpenPage) -> None:
    page = open_page(html, viewport={"width": 400, "height": 800}, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    for svg in page.locator("svg").all():
        box = svg.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 400


def test_every_part_has_a_name_for_a_screen_reader(html: str, open_page: OpenPage) -> None:
    page = open_page(html)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('svg, table, section, figure:not([hidden]), [role], button, select')]"
        ".filter(each => !(each.ariaLabel || each.getAttribute('aria-labelledby') || each.textContent.trim()"
        " || each.labels?.length)).map(each => each.outerHTML.slice(0, 80))"
    )
    assert unnamed == []
    assert page.locator("h1").count() == 1


def test_every_axis_has_its_unit(html: str, open_page: OpenPage) -> None:
    page = open_page(html)
    for selector, labels in {
        "#difference": ["B less A, summed up from above", "ms"],
        "#path": ["mean time, in the order of the path", "ms"],
        "#routes": ["B less A", "ms"],
        "#slices": ["slice of the side's time", "mean time", "ms"],
    }.items():
        text = " ".join(page.locator(f"{selector} svg").all_text_contents())
        for label in labels:
            assert label in text


def test_resolutions_are_those_of_the_terminal(open_page: OpenPage) -> None:
    comparison = compare(make_traffic(1, resolution_ns=1_000_000), make_traffic(2, resolution_ns=1_000_000))
    page = open_page(render_comparison_page(comparison))
    latency = comparison.first.latency
    assert read_column(page, "latency", 5)[0] == format_duration(latency.p50_ns, 1_000_000)
