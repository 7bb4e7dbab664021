"""The terminal pages of a benchmark: its verdict and two results, with their sentences and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from reqpath.bench.figures import Verdict
from reqpath.bench.plan import ScheduledRun, Workload, make_plan, make_quick_plan
from reqpath.bench.statistics import Estimate
from reqpath.bench.verdict import compare_results, judge
from reqpath.render.bench import (
    comparison_to_json,
    render_comparison,
    render_shifts,
    render_verdict,
    verdict_to_json,
)
from reqpath.render.bench_sentence import format_estimate, render_control, render_verdicts
from tests.bench.results import CASES, make_result, make_slice

Draw = Callable[..., str]
Compare = Callable[[str, str], None]


def judge_case(name: str) -> Verdict:
    return judge(CASES[name]())


@pytest.mark.parametrize("name", CASES)
def test_the_page_is_as_recorded(name: str, draw: Draw, compare_golden: Compare) -> None:
    verdict = judge_case(name)
    compare_golden(f"bench-{name}.txt", draw(lambda console: render_verdict(verdict, console)))


def test_the_page_in_colour_is_as_recorded(draw: Draw, compare_golden: Compare) -> None:
    verdict = judge_case("bad-day")
    page = draw(lambda console: render_verdict(verdict, console), colour=True)
    compare_golden("bench-bad-day.ansi", page)


def test_two_results_are_as_recorded(draw: Draw, compare_golden: Compare) -> None:
    before = make_result(noise=0.005)
    after = make_result(
        make_quick_plan(seconds_s=5.0),
        seed=2,
        noise=0.005,
        plant=lambda run: {"flask.view": 900_000} if run.cell.hop1 == "tcp" else {},
        spoil=lambda run: {"saturated": True} if run.cell.hop1 == run.cell.hop2 == "unix" else {},
    )
    comparison = compare_results(before, after, anyway=True)
    compare_golden("bench-compare.txt", draw(lambda console: render_comparison(comparison, console)))


@pytest.mark.parametrize("width", [40, 80, 140])
def test_no_line_is_wider_than_the_console(width: int, draw: Draw) -> None:
    for name in CASES:
        verdict = judge_case(name)
        page = draw(lambda console, verdict=verdict: render_verdict(verdict, console), width)
        assert max(map(cell_len, page.splitlines())) <= width


def test_figures_are_whole_beside_long_names_and_questions_are_told_apart(draw: Draw) -> None:
    plan = make_plan(workloads=("point-query",), hop1=("unix",), connections=("pooled", "per-request"))
    page = draw(lambda console: render_verdict(judge(make_result(plan)), console))
    assert "…" not in page
    assert "  can do   sent     mean " in page
    compared = [line[:40] for line in page.splitlines() if line.startswith("point-query  app → MySQL")]
    assert len(set(compared)) == len(compared) == 2


def test_threads_that_wait_for_the_gil_are_told_as_such() -> None:
    sentences = render_verdicts(judge_case("matrix"))
    assert any("4 threads cost 4.7" in one and "of it waiting for the GIL" in one for one in sentences)


def test_a_saturated_cell_is_shown_as_saturated_and_nothing_else(draw: Draw) -> None:
    verdict = judge_case("bad-day")
    page = draw(lambda console: render_verdict(verdict, console))
    rows = [line for line in page.splitlines() if line.startswith("tcp → 4x1 → tcp")]
    assert len(rows) == 1
    assert "saturated" in rows[0]
    assert " ms" not in rows[0]
    assert " µs" not in rows[0]
    assert "point-query  tcp → 4x1 → tcp" not in page


def test_one_block_has_no_sentence_that_tells_of_a_difference() -> None:
    verdict = judge_case("one-block")
    for sentence in [*render_verdicts(verdict), render_control(verdict.control)]:
        assert "no verdict, 1 valid block" in sentence
        assert " save " not in sentence
        assert " cost " not in sentence


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        ((-38_000, -45_000, -31_000), "-38 µs [-45, -31]"),
        ((5_300_000, 5_220_000, 5_380_000), "+5.30 ms [+5.22, +5.38]"),
        ((40, -300, 600), "0 µs [-0.3, +0.6]"),
        ((0, 0, 0), "0 µs [0, 0]"),
        ((2_000_000_000, 1_000_000_000, 4_000_000_000), "+2 s [+1, +4]"),
    ],
)
def test_a_difference_is_written_with_its_interval_in_one_unit(
    estimate: tuple[float, float, float], text: str
) -> None:
    assert text == format_estimate(Estimate(8, *estimate, spread_ns=None, p=None))


DIFFERENCES = st.floats(-1e12, 1e12)


@given(DIFFERENCES, DIFFERENCES, DIFFERENCES)
def test_a_difference_the_other_way_reads_the_same_with_its_signs_changed(
    low: float, value: float, high: float
) -> None:
    low, value, high = sorted((low, value, high))
    there = Estimate(8, value, low, high, None, None)
    back = Estimate(8, -value, -high, -low, None, None)
    assert format_estimate(there, flip=True) == format_estimate(back)
    assert len(format_estimate(there)) < 50


def test_what_a_plan_says_can_not_reach_a_terminal(draw: Draw) -> None:
    evil = Workload("<b>x", "<script>alert(1)</script>\x1b[31m", "/")
    verdict = judge(make_result(make_quick_plan(workloads=[evil])))
    assert "\x1b" not in draw(lambda console: render_verdict(verdict, console))


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_as_json_has_its_sentences_and_every_figure(name: str) -> None:
    verdict = judge_case(name)
    document = json.loads(json.dumps(verdict_to_json(verdict)))
    assert document["sentences"] == render_verdicts(verdict)
    assert len(document["cells"]) == len(verdict.cells)
    if verdict.questions[0].mean is not None:
        shown = document["questions"][0]["mean"]
        assert shown["client"]["value_ns"] == verdict.questions[0].mean.client.value_ns


def test_segments_that_do_not_add_up_are_told(draw: Draw) -> None:
    """The sums of one run's segments are wrong by more than any interval."""

    def spoil(run: ScheduledRun) -> Mapping[str, Any]:
        if run.cell.hop1 == "unix":
            return {}
        whole = make_slice(1000, {"flask.view": 2_000_000})
        return {"whole": type(whole)(requests=1000, client_ns=9_000_000_000, segments_ns=whole.segments_ns)}

    verdict = judge(make_result(spoil=spoil))
    assert "the segments sum up to" in draw(lambda console: render_verdict(verdict, console))


def test_two_results_as_json_have_sentences_and_what_is_compared() -> None:
    plan = make_quick_plan()
    slower = make_result(plan, seed=2, plant=lambda run: {"mysql.query": 700_000 * (run.cell.hop2 == "tcp")})
    comparison = compare_results(make_result(plan, noise=0.005), slower)
    document = json.loads(json.dumps(comparison_to_json(comparison)))
    assert list(document) == ["sentences", "differences", "cells", "alone"]
    assert document["sentences"] == render_shifts(comparison)
    outcomes = {one["cell"]["hop2"]: one["mean"]["outcome"] for one in document["cells"]}
    assert outcomes == {"tcp": "different", "unix": "none"}
    assert all(one["mean"]["resolvable_ns"] is None for one in document["cells"])
    assert "in mysql.query" in document["sentences"][0]


def test_two_results_without_a_difference_say_so() -> None:
    same = make_result(make_quick_plan())
    assert render_shifts(compare_results(same, same)) == [
        "No difference between the two results can be told."
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bad-day", "60 failed, 2,000 were dropped, 35 met a full listen queue"),
        ("matrix", "0 failed, 0 were dropped, 0 met a full listen queue; in valid runs Little's law held to"),
    ],
)
def test_what_became_of_all_arrivals_is_told(name: str, words: str, draw: Draw) -> None:
    verdict = judge_case(name)
    assert words in " ".join(draw(lambda console: render_verdict(verdict, console)).split())
