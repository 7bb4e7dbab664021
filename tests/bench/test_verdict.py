"""What a result says: a planted difference in its tier, none where there is none, nothing of a full cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from reqpath.bench.figures import Comparison, Question, Verdict
from reqpath.bench.plan import ScheduledRun, make_plan, make_quick_plan
from reqpath.bench.result import Reason, Result
from reqpath.bench.verdict import compare_results, judge, list_differences
from reqpath.errors import ResultError
from tests.bench.results import HOST, make_result

INVALID = {"invalid": (Reason("steal", "other guests took 12 % of the CPU time"),)}


def slow_queries(extra_ns: float) -> Any:
    """Plant that queries over TCP take longer."""
    return lambda run: {"mysql.query": extra_ns} if run.cell.hop2 == "tcp" else {}


def find(verdict: Verdict, factor: str) -> Question:
    return next(question for question in verdict.questions if question.factor == factor)


def compared(comparison: Comparison | None) -> Comparison:
    assert comparison is not None
    return comparison


def outcomes(verdict: Verdict) -> list[str]:
    means = [verdict.control.mean, *(question.mean for question in verdict.questions)]
    slowest = [verdict.control.slowest, *(question.slowest for question in verdict.questions)]
    return [compared(comparison).outcome for comparison in (*means, *slowest)]


def test_hardly_ever_is_a_difference_told_where_there_is_none() -> None:
    told = [
        set(outcomes(judge(make_result(make_quick_plan(seed=seed), seed=seed, drift=0.03))))
        for seed in range(8)
    ]
    # In each, chance has 0.05 for the means and as much for the slowest requests.
    assert sum("different" in one for one in told) <= 2
    assert all(one <= {"none", "different"} for one in told)


def test_a_set_up_does_not_differ_from_itself_in_nine_of_ten_repetitions() -> None:
    different = [
        compared(judge(make_result(make_quick_plan(seed=seed), seed=seed)).control.mean).outcome
        == "different"
        for seed in range(100, 110)
    ]
    assert sum(different) <= 1


@pytest.mark.parametrize("seed", range(6))
def test_a_planted_300_us_is_found_in_its_tier_with_its_interval_around_it(seed: int) -> None:
    verdict = judge(make_result(seed=seed, plant=slow_queries(300_000), noise=0.01))
    mean = compared(find(verdict, "hop2").mean)
    assert mean.outcome == "different"
    assert mean.client.low_ns is not None
    assert mean.client.high_ns is not None
    assert mean.client.low_ns < -300_000 < mean.client.high_ns
    assert [part.name for part in mean.carriers] == ["mysql.query"]
    assert mean.carriers[0].difference.value_ns == pytest.approx(-300_000, abs=20_000)
    assert compared(find(verdict, "hop1").mean).outcome == "none"


@pytest.mark.parametrize("noise", [0.0005, 0.01, 0.05])
def test_a_planted_30_us_is_found_or_said_to_be_too_small_to_be_found(noise: float) -> None:
    verdict = judge(make_result(plant=slow_queries(30_000), noise=noise, drift=noise / 10))
    mean = compared(find(verdict, "hop2").mean)
    assert mean.resolvable_ns is not None
    if mean.outcome == "different":
        assert [part.name for part in mean.carriers] == ["mysql.query"]
    else:
        assert mean.outcome == "none"
        assert mean.resolvable_ns > 30_000
        assert mean.client.bound_ns is not None
        assert mean.client.bound_ns > 30_000


def test_what_the_whole_hides_is_found_in_the_tier_that_the_factor_lies_in() -> None:
    verdict = judge(make_result(plant=slow_queries(30_000), noise=0.005, drift=0.001))
    question = find(verdict, "hop2")
    assert compared(question.mean).outcome == "none"
    own = compared(question.own)
    assert own.outcome == "different"
    assert own.client.value_ns == pytest.approx(-30_000, abs=10_000)
    assert compared(find(verdict, "hop1").own).outcome == "none"


def test_what_the_segments_differ_by_adds_up_to_what_the_client_does() -> None:
    def plant(run: ScheduledRun) -> Mapping[str, float]:
        return {"queue": 200_000, "flask.view": -80_000} if run.cell.hop1 == "tcp" else {}

    for seed in range(5):
        verdict = judge(make_result(plant=plant, seed=seed))
        for question in verdict.questions:
            for comparison in (question.mean, question.slowest):
                assert compared(comparison).adds_up
        for cell in verdict.cells:
            assert sum(cell.segments_ns.values()) == pytest.approx(cell.mean_ns)
            assert sum(cell.slowest_segments_ns.values()) == pytest.approx(cell.slowest_ns)


def test_a_segment_that_one_side_alone_has_is_a_part_too() -> None:
    verdict = judge(
        make_result(plant=lambda run: {"mysql.connect": 400_000.0} if run.cell.hop2 == "tcp" else {})
    )
    assert compared(find(verdict, "hop2").mean).carriers[0].name == "mysql.connect"


@pytest.mark.parametrize("blocks", range(1, 7))
def test_too_few_blocks_give_no_verdict(blocks: int) -> None:
    verdict = judge(make_result(make_quick_plan(blocks=blocks), plant=slow_queries(3_000_000)))
    assert set(outcomes(verdict)) == {"undecided"}
    mean = compared(find(verdict, "hop2").mean)
    assert mean.p_adjusted is None
    assert mean.resolvable_ns is None
    noun = "block" if blocks == 1 else "blocks"
    assert mean.reason == f"{blocks} valid {noun}, and 3 comparisons need 7"


def test_an_interrupted_benchmark_says_what_its_blocks_allow() -> None:
    plan = make_quick_plan()
    verdict = judge(make_result(plan, runs=7, plant=slow_queries(3_000_000)))
    assert (verdict.complete, verdict.blocks, verdict.runs) == (False, 2, 7)
    assert "different" not in outcomes(verdict)
    nothing = judge(make_result(plan, runs=0))
    assert (nothing.blocks, nothing.control.mean) == (0, None)
    assert all(question.mean is None for question in nothing.questions)
    assert {cell.runs for cell in nothing.cells} == {0}


def test_a_saturated_cell_has_no_times_and_is_compared_with_nothing() -> None:
    def fill(run: ScheduledRun) -> Mapping[str, Any]:
        return {"saturated": True, "dropped": 400} if run.cell.key.startswith("point-query/tcp/tcp") else {}

    verdict = judge(make_result(spoil=fill, plant=slow_queries(300_000)))
    full = [cell for cell in verdict.cells if cell.saturated]
    assert [cell.cell.key for cell in full] == ["point-query/tcp/tcp/4x1/pooled"]
    assert (full[0].mean_ns, full[0].p50_ns, full[0].p99_ns, full[0].slowest_ns) == (None,) * 4
    assert full[0].segments_ns == {}
    assert full[0].dropped == 8 * 400
    for question in verdict.questions:
        out = [pair for pair in question.pairs if pair.left_out]
        assert [pair.left_out for pair in out] == ["saturated"]
        assert [pair.client for pair in out] == [None]
    # What is left still answers.
    assert compared(find(verdict, "hop2").mean).outcome == "different"


def test_where_every_cell_is_saturated_nothing_is_said() -> None:
    verdict = judge(make_result(spoil=lambda _: {"saturated": True}))
    assert all(question.mean is None and question.slowest is None for question in verdict.questions)
    assert verdict.control.mean is None


def test_invalid_runs_count_for_nothing_and_say_why() -> None:
    def spoil(run: ScheduledRun) -> Mapping[str, Any]:
        return INVALID if run.block == 3 else {}

    def plant(run: ScheduledRun) -> Mapping[str, float]:
        return {"flask.view": 50_000_000} if run.block == 3 and run.cell.hop1 == "tcp" else {}

    clean = judge(make_result(spoil=spoil))
    spoilt = judge(make_result(spoil=spoil, plant=plant))
    assert clean.questions == spoilt.questions
    assert [cell.valid for cell in spoilt.cells] == [7] * 4
    assert [(remark.name, remark.runs) for remark in spoilt.invalid] == [("steal", 5)]
    assert compared(find(spoilt, "hop1").mean).client.blocks == 7


def test_a_run_that_is_saturated_in_two_ways_is_one_run() -> None:
    reasons = (Reason("saturated", "dropped"), Reason("saturated", "busy"), Reason("drift", "rose"))
    verdict = judge(make_result(spoil=lambda _: {"saturated": True, "limits": reasons}))
    assert {(one.name, one.example, one.runs) for one in verdict.limits} == {
        ("saturated", "dropped", verdict.runs),
        ("drift", "rose", verdict.runs),
    }


def test_a_pair_with_few_valid_blocks_is_left_out() -> None:
    def spoil(run: ScheduledRun) -> Mapping[str, Any]:
        return INVALID if run.block % 2 and run.cell.hop1 == run.cell.hop2 == "tcp" else {}

    verdict = judge(make_result(spoil=spoil))
    assert "valid in 4 of 8 blocks" in {pair.left_out for pair in find(verdict, "hop1").pairs}
    assert compared(find(verdict, "hop1").mean).client.blocks == 8


def test_a_block_that_lacks_a_pair_is_not_another_difference() -> None:
    """Where the pairs differ by much, what a missing one would have had is put in its place."""

    def plant(run: ScheduledRun) -> Mapping[str, float]:
        return {"queue": 2_000_000 if run.cell.hop2 == "unix" else 100_000} if run.cell.hop1 == "tcp" else {}

    def spoil(run: ScheduledRun) -> Mapping[str, Any]:
        return INVALID if run.block < 2 and run.cell.hop2 == "unix" else {}

    mean = compared(find(judge(make_result(plant=plant, spoil=spoil, noise=0.001)), "hop1").mean)
    assert mean.client.value_ns == pytest.approx(-1_050_000, rel=0.1)
    assert mean.outcome == "different"


def test_pairs_whose_differences_differ_are_marked() -> None:
    def plant(run: ScheduledRun) -> Mapping[str, float]:
        return {"queue": 2_000_000} if run.cell.hop1 == "tcp" and run.cell.hop2 == "unix" else {}

    marked = judge(make_result(plant=plant))
    assert [pair.differs for pair in find(marked, "hop1").pairs] == [True, True]
    assert [pair.differs for pair in find(judge(make_result()), "hop1").pairs] == [False, False]


def test_cells_that_fail_differently_often_are_not_compared() -> None:
    def spoil(run: ScheduledRun) -> Mapping[str, Any]:
        return {"failures": {"status 502": 40}} if run.cell.hop1 == "unix" else {}

    question = find(judge(make_result(spoil=spoil)), "hop1")
    assert question.mean is None
    assert {"requests fail differently often: 0.0% and 2.8%"} == {pair.left_out for pair in question.pairs}


def test_what_is_no_more_than_a_cell_differs_from_itself_is_undecided() -> None:
    def plant(run: ScheduledRun) -> Mapping[str, float]:
        return {"flask.view": 400_000 * run.twin + 200_000 * (run.cell.hop2 == "tcp")}

    verdict = judge(make_result(plant=plant, noise=0.002, seed=3))
    assert compared(verdict.control.mean).outcome == "different"
    mean = compared(find(verdict, "hop2").mean)
    assert (mean.outcome, mean.reason) == ("undecided", "a cell differs as much from itself")


def test_a_run_that_was_made_again_takes_the_place_of_the_invalid_one() -> None:
    result = make_result(spoil=lambda run: INVALID if run.block == 0 else {})
    again = [replace(run, invalid=()) for run in result.runs if run.block == 0]
    both = judge(replace(result, runs=(*result.runs, *again)))
    assert [cell.valid for cell in both.cells] == [8] * 4
    other_order = judge(replace(result, runs=(*again, *result.runs)))
    assert both.questions == other_order.questions


def test_the_default_matrix_asks_each_factor_of_each_workload_that_it_concerns() -> None:
    verdict = judge(make_result(make_plan(blocks=1)))
    assert Counter((question.workload.name, question.factor) for question in verdict.questions) == {
        ("point-query", "hop1"): 1,
        ("point-query", "hop2"): 1,
        ("point-query", "workers"): 1,
        ("cpu", "hop1"): 1,
        ("cpu", "workers"): 1,
    }
    assert [
        (question.first, question.second) for question in verdict.questions if question.factor == "workers"
    ] == [("4x1", "1x4")] * 2
    assert [len(question.pairs) for question in verdict.questions] == [4, 4, 4, 2, 2]
    assert verdict.blocks_needed <= make_plan().blocks


def test_connections_are_a_factor_of_their_own_and_keep_the_others_apart() -> None:
    plan = make_plan(
        workloads=["point-query"], workers=["4x1"], connections=["pooled", "per-request"], blocks=1
    )
    asked = Counter((question.factor, question.connection) for question in judge(make_result(plan)).questions)
    assert asked == {
        ("hop1", "pooled"): 1,
        ("hop1", "per-request"): 1,
        ("hop2", "pooled"): 1,
        ("hop2", "per-request"): 1,
        ("connection", None): 1,
    }


def test_a_cell_that_became_slower_is_found_between_two_results() -> None:
    before = make_result(seed=1, noise=0.005)
    after = make_result(seed=2, noise=0.005, plant=lambda _: {"flask.view": 900_000})
    comparison = compare_results(before, after)
    assert len(comparison.cells) == 4
    for shift in comparison.cells:
        mean = compared(shift.mean)
        assert mean.outcome == "different"
        assert [part.name for part in mean.carriers] == ["flask.view"]
        assert mean.client.value_ns == pytest.approx(900_000, rel=0.2)


def test_results_that_were_not_made_alike_are_refused_unless_told() -> None:
    before = make_result()
    host = replace(HOST, kernel="6.9", versions=HOST.versions | {"nginx": "1.26.0"})
    after = make_result(host=host)
    with pytest.raises(
        ResultError, match=r"the host's kernel: 6\.1\.0-18-amd64 and 6\.9\n  nginx: 1\.22\.1 and 1"
    ):
        compare_results(before, after)
    comparison = compare_results(before, after, anyway=True)
    assert comparison.differences == tuple(list_differences(before, after))
    assert len(comparison.differences) == 2


def test_what_the_kernel_keeps_of_the_memory_makes_no_other_host() -> None:
    before = make_result()
    page, half = (
        replace(HOST, memory_bytes=size) for size in (HOST.memory_bytes - 4096, HOST.memory_bytes // 2)
    )
    assert list_differences(before, make_result(host=page)) == []
    assert list_differences(before, make_result(host=half)) == [
        "the host's memory bytes: 8000000000 and 4000000000"
    ]


def test_cells_with_other_rates_or_saturated_in_one_result_are_not_compared() -> None:
    before = make_result()
    faster = compare_results(before, make_result(spoil=lambda _: {"rate_per_s": 300.0}))
    assert {"sent 240/s and 300/s"} == {shift.reason for shift in faster.cells}
    full = compare_results(before, make_result(spoil=lambda _: {"saturated": True}))
    assert {"saturated in the second result"} == {shift.reason for shift in full.cells}
    assert {None} == {shift.mean for shift in (*faster.cells, *full.cells)}


def test_too_few_runs_give_no_verdict_between_two_results() -> None:
    few = make_quick_plan(blocks=3)
    comparison = compare_results(make_result(few), make_result(few, plant=lambda _: {"queue": 9_000_000}))
    for shift in comparison.cells:
        mean = compared(shift.mean)
        assert (mean.outcome, mean.reason) == ("undecided", "valid runs are too few: 3")


def test_results_without_a_common_cell_are_refused() -> None:
    other: Result = make_result(make_quick_plan(workloads=["trivial"]))
    with pytest.raises(ResultError, match="no cell in common"):
        compare_results(make_result(), other)
