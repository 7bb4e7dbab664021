"""The benchmark's page as its reader meets it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from msgspec.structs import replace
from playwright.sync_api import Page

from reqpath.bench.detail import describe_result
from reqpath.bench.figures import Control, Question
from reqpath.bench.plan import Workload, make_quick_plan
from reqpath.bench.result import Capacity, CapacityStep, Configuration, Result
from reqpath.bench.verdict import judge
from reqpath.render.bench_sentence import format_estimate, order_questions, render_control, render_verdicts
from reqpath.render.page_bench import render_bench_page
from reqpath.render.units import format_duration, format_rate
from tests.bench.results import CASES, HOST, make_result
from tests.browser.conftest import OpenPage

pytestmark = pytest.mark.browser


def render(result: Result) -> str:
    return render_bench_page(judge(result), describe_result(result))


@pytest.fixture(scope="module")
def matrix() -> Result:
    return CASES["matrix"]()


@pytest.fixture(scope="module")
def matrix_page(matrix: Result) -> str:
    return render(matrix)


def read_table(page: Page, name: str) -> list[dict[str, tuple[str, float | None]]]:
    """Return a table's rows: column → what is read, and the exact value behind it."""
    table = page.locator(f"table[aria-label='{name}']")
    heads = [head.split("\n")[0] for head in table.locator("thead th").all_text_contents()]
    rows: list[list[list[Any]]] = table.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => [cell.textContent,"
        " isNaN(Number(cell.dataset.value)) ? null : Number(cell.dataset.value)]))"
    )
    return [dict(zip(heads, ((text, value) for text, value in row), strict=True)) for row in rows]


@pytest.mark.parametrize("name", CASES)
def test_it_begins_with_the_sentences_and_each_part_has_a_question_as_its_heading(
    name: str, open_page: OpenPage
) -> None:
    result = CASES[name]()
    verdict = judge(result)
    page = open_page(render(result))
    assert page.locator("#sentences li").all_inner_texts() == [
        *render_verdicts(verdict),
        render_control(verdict.control),
    ]
    headings = page.locator("h2").all_inner_texts()
    assert all(heading.endswith("?") for heading in headings)
    assert headings[0] == "Which choices make a difference, and how large is it?"
    assert page.locator("section svg").count() == page.locator("section h2 ~ * svg, section h2 ~ svg").count()
    assert page.locator("main > svg, main > figure").count() == 0


def test_every_chart_has_a_text_for_those_who_do_not_see_it(matrix_page: str, open_page: OpenPage) -> None:
    page = open_page(matrix_page)
    charts = page.locator("figure svg[role=img]")
    # Two of answers, two for each of five questions, two of latencies, four of tiers, two of capacity, the
    # control, two of the runs.
    assert charts.count() == 2 + 2 * 5 + 2 + 4 + 2 + 1 + 2
    for label in charts.evaluate_all("all => all.map(each => each.getAttribute('aria-label'))"):
        assert re.search(r"\d", label)
    assert page.locator("svg:not([role=img])").count() == 0


def test_the_differences_are_those_of_the_verdict(
    matrix: Result, matrix_page: str, open_page: OpenPage
) -> None:
    verdict = judge(matrix)
    page = open_page(matrix_page)
    questions = order_questions(verdict)
    rows = read_table(page, "comparisons")
    assert len(rows) == len(questions) + 1
    compared: list[Question | Control] = [*questions, verdict.control]
    for row, asked in zip(rows, compared, strict=True):
        assert asked.mean is not None
        assert asked.slowest is not None
        assert row["base"][1] == asked.mean.base_ns
        assert row["difference"] == (format_estimate(asked.mean.client), asked.mean.client.value_ns)
        assert row["slowest 1 %"] == (format_estimate(asked.slowest.client), asked.slowest.client.value_ns)
        assert row["found from"] == (
            format_duration(asked.mean.resolvable_ns, digits=2),
            asked.mean.resolvable_ns,
        )
        assert row["p"][1] == asked.mean.p_adjusted
    for number, question in enumerate(questions):
        assert question.mean is not None
        assert question.slowest is not None
        section = page.locator(f"#question-{number}")
        texts = section.locator("table").first.locator("tbody tr").all_inner_texts()
        expected = [
            [
                format_duration(part.base_ns),
                format_estimate(part.difference),
                format_estimate(tail.difference),
            ]
            for part, tail in zip(question.mean.parts, question.slowest.parts, strict=True)
        ]
        assert [text.split("\t")[1:] for text in texts[:-2]] == expected
        assert texts[-1].split("\t") == [
            "client",
            format_duration(question.mean.base_ns),
            format_estimate(question.mean.client),
            format_estimate(question.slowest.client),
        ]
        # The waterfall has each segment and the whole.
        drawn = section.locator("svg").first.text_content() or ""
        assert all(part.name in drawn for part in question.mean.parts)
        assert "client" in drawn


def test_the_answers_lead_to_their_questions(matrix_page: str, open_page: OpenPage) -> None:
    page = open_page(matrix_page)
    link = page.locator("#compared a").first
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**#question-0")
    page.wait_for_function("document.getElementById('question-0').getBoundingClientRect().top < innerHeight")


def test_each_set_ups_latencies_tiers_and_arrivals_are_those_of_the_verdict(
    matrix: Result, matrix_page: str, open_page: OpenPage
) -> None:
    verdict = judge(matrix)
    page = open_page(matrix_page)
    latencies = read_table(page, "latency of each set-up")
    arrivals = read_table(page, "what became of what was sent")
    tiers = read_table(page, "time in each tier")
    capacities = read_table(page, "capacity of each set-up")
    assert len(latencies) == len(verdict.cells)
    for number, cell in enumerate(verdict.cells):
        for column, ns in (
            ("mean", cell.mean_ns),
            ("p50", cell.p50_ns),
            ("p90", cell.p90_ns),
            ("p99", cell.p99_ns),
        ):
            assert latencies[number][column] == (format_duration(ns), ns)
        assert latencies[number]["valid runs"][0] == f"{cell.valid} of {cell.runs}"
        assert arrivals[number]["arrivals"][1] == cell.planned
        assert arrivals[number]["answered"][1] == cell.answered_per_s
        assert arrivals[number]["under way, of λ·W"][1] == cell.little
        assert arrivals[number]["generator's lag, p99"][1] == cell.lag_p99_ns
        assert cell.capacity_per_s is not None
        assert capacities[number]["can do"] == (format_rate(cell.capacity_per_s), cell.capacity_per_s)
        assert capacities[number]["sent"][1] == cell.rate_per_s
        for row, total_ns in zip(
            tiers[2 * number : 2 * number + 2], (cell.mean_ns, cell.slowest_ns), strict=True
        ):
            assert row["client"][1] == total_ns
            parts = [
                value for name, (_, value) in row.items() if name not in ("for", "set-up", "of", "client")
            ]
            assert sum(value for value in parts if value) == pytest.approx(total_ns)


def test_a_saturated_set_up_is_shown_as_that_and_has_no_times(open_page: OpenPage) -> None:
    page = open_page(render(CASES["bad-day"]()))
    row = read_table(page, "latency of each set-up")[0]
    assert row["set-up"][0] == "tcp → 4x1 → tcp"
    assert row["mean"] == ("saturated", None)
    assert {row[name] for name in ("p50", "p90", "p99", "slowest")} == {("", None)}
    assert all(row["set-up"][0] != "tcp → 4x1 → tcp" for row in read_table(page, "time in each tier"))
    assert "saturated" in (page.locator("#capacity svg").text_content() or "")
    for run in read_table(page, "runs"):
        if run["set-up"][0].startswith("tcp → 4x1 → tcp"):
            assert (run["mean"], run["slowest 1 %"]) == (("saturated", None), ("", None))
    assert "60 timeout" in read_table(page, "what became of what was sent")[0]["failed"][0]
    assert "saturated" in page.locator("table[aria-label='pairs of set-ups']").first.inner_text()


def test_runs_that_do_not_count_are_told_with_their_reason(open_page: OpenPage) -> None:
    page = open_page(render(CASES["bad-day"]()))
    rows = read_table(page, "runs that do not count")
    assert page.locator("#invalid .question").inner_text().startswith(f"{len(rows)} runs of 27")
    reasons = {row["why"][0] for row in rows}
    assert reasons == {"saturated", "other guests took 12 % of the CPU time"}
    text = page.locator("#notes").inner_text()
    assert "the benchmark was interrupted; --resume makes the others" in text
    assert "2,000 were dropped" in text
    none = open_page(render(CASES["matrix"]()))
    assert none.locator("#invalid .question").inner_text() == "None: all 130 count."


def test_every_run_is_there_when_asked_for(matrix: Result, matrix_page: str, open_page: OpenPage) -> None:
    page = open_page(matrix_page)
    page.locator("#drift button", has_text="Show all 130").click()
    rows = read_table(page, "runs")
    assert [row["run"][1] for row in rows] == list(range(1, 131))
    assert [row["block"][1] for row in rows] == [run.block + 1 for run in matrix.runs]
    assert [row["mean"][1] for row in rows] == [
        run.whole.client_ns / run.whole.requests for run in matrix.runs
    ]
    assert sum("A/A" in row["set-up"][0] for row in rows) == 10


def test_the_control_is_shown_block_by_block(matrix_page: str, open_page: OpenPage) -> None:
    page = open_page(matrix_page)
    assert page.locator("#control circle").count() == 10
    page.locator("#control summary").click()
    page.locator("#control button", has_text="Show all 10").click()
    assert len(read_table(page, "differences of a set-up from itself")) == 10


def test_it_tells_how_it_was_set_up_and_how_to_run_it_again(open_page: OpenPage) -> None:
    result = make_result(make_quick_plan(blocks=2))
    text = "http {\n    server { listen 80; }\n}\n"
    steps = (CapacityStep(4, 300.0, 0), CapacityStep(8, 400.0, 3))
    result = replace(
        result,
        configurations=tuple(
            Configuration(cell=cell.key, files={"nginx.conf": text, "uwsgi.ini": f"socket = {number}\n"})
            for number, cell in enumerate(result.plan.cells)
        ),
        capacities=tuple(
            Capacity(cell=cell.key, requests_per_s=400.0, steps=steps, tool="wrk 4.1.0")
            for cell in result.plan.cells
        ),
    )
    page = open_page(render(result), permissions=["clipboard-read", "clipboard-write"])
    again = page.locator("#again")
    command = again.locator(".command").first
    assert command.locator(".code").inner_text() == "reqpath bench --quick"
    command.locator("button").click()
    command.locator("button", has_text="copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "reqpath bench --quick"
    shown = again.inner_text()
    for expected in ("Example CPU @ 2.50GHz", "processors\n2", "nginx\n1.22.1", "GET /query, 240/s planned"):
        assert expected in shown
    assert again.locator("details").count() == 2
    again.locator("summary", has_text="nginx.conf").click()
    assert again.locator("pre").first.inner_text() == text.rstrip()
    assert again.locator("pre").count() == 5
    row = read_table(page, "capacity of each set-up")[0]
    assert row["with 8 connections"] == ("400/s, 3 errors", 400.0)
    assert row["of it"][0] == "60 %"
    assert "wrk 4.1.0" in page.locator("#capacity .question").inner_text()


MARKUP = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
CONTROL = "a\x1b[31mc\u202egnp.exe\u2066d"


@pytest.mark.parametrize("text", [MARKUP, CONTROL, "x" * 3_000, "__proto__", "${1}"])
def test_hostile_text_is_shown_as_text(text: str, open_page: OpenPage) -> None:
    result = make_result(make_quick_plan(workloads=[Workload(text, text, f"/{text}")], blocks=2, app=text))
    result = replace(
        result,
        host=replace(HOST, cpu_model=text, kernel=text, versions={text: text}),
        command=text,
        configurations=tuple(Configuration(cell=cell.key, files={text: text}) for cell in result.plan.cells),
    )
    page = open_page(render(result))
    assert page.locator("img, iframe, object, embed").count() == 0
    assert page.locator("script").count() == 5
    shown = page.locator("body").inner_text()
    assert not re.search(r"[\x00\x1b\u202e\u2066]", shown)
    if text in (MARKUP, "__proto__", "${1}"):
        assert text in page.locator("#again .code").first.inner_text()
        assert text in page.locator("#sentences").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def luminance(page: Page, element: str, attribute: str) -> float:
    colour = page.evaluate(f"getComputedStyle({element}).{attribute}")
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_in_light_and_dark(
    scheme: Any, matrix_page: str, open_page: OpenPage
) -> None:
    page = open_page(matrix_page, color_scheme=scheme)
    ground = luminance(page, "document.documentElement", "backgroundColor")
    assert (ground > 0.9) == (scheme == "light")
    # Source: WCAG 2.2, 1.4.3 and 1.4.11.
    for selector in ("h1", ".soft", "#compared td", "svg text", "a", "button.act", ".verdicts li"):
        ink = luminance(page, f"document.querySelector('{selector}')", "color")
        assert contrast(ground, ink) >= 4.5, selector
    samples = page.locator("#latency .sample").count()
    assert samples == 12
    for number in range(samples):
        line = luminance(page, f"document.querySelectorAll('#latency .sample')[{number}]", "borderTopColor")
        assert contrast(ground, line) >= 3


def test_it_prints_light_and_without_what_can_only_be_clicked(matrix_page: str, open_page: OpenPage) -> None:
    page = open_page(matrix_page, color_scheme="dark")
    page.emulate_media(media="print")
    assert luminance(page, "document.documentElement", "backgroundColor") == 1.0
    assert not page.locator("button.act").first.is_visible()
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("name", CASES)
def test_it_fits_a_narrow_screen(name: str, open_page: OpenPage) -> None:
    page = open_page(render(CASES[name]()), viewport={"width": 400, "height": 800}, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    for svg in page.locator("svg").all():
        box = svg.bounding_box()
        assert box is None or box["x"] + box["width"] <= 400


def test_tables_scroll_and_sort_by_the_keyboard(matrix_page: str, open_page: OpenPage) -> None:
    page = open_page(matrix_page)
    head = page.locator("table[aria-label='latency of each set-up'] th", has_text="p99").first
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    values = [row["p99"][1] or 0.0 for row in read_table(page, "latency of each set-up")]
    assert values == sorted(values, reverse=True)
    assert page.locator(".scroll:not([tabindex='0'])").count() == 0
