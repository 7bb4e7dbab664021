"""What a result has beyond its verdict: the same requests, runs and blocks as the verdict's figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from reqpath.bench.detail import FEWEST_BEYOND, describe_result
from reqpath.bench.histogram import make_histogram, merge_histograms, percentile_ns, percentiles_ns
from reqpath.bench.plan import ScheduledRun, make_quick_plan
from reqpath.bench.result import Reason
from reqpath.bench.statistics import hodges_lehmann
from reqpath.bench.verdict import judge
from tests.bench.results import CASES, make_result


@pytest.mark.parametrize("name", CASES)
def test_a_distribution_is_of_the_requests_of_the_verdicts_percentiles(name: str) -> None:
    result = CASES[name]()
    detail = describe_result(result)
    for cell in judge(result).cells:
        found = detail.distributions.get(cell.cell.key)
        if not cell.valid:
            assert found is None
            continue
        assert found is not None
        for percent, exact_ns in ((50, cell.p50_ns), (90, cell.p90_ns), (99, cell.p99_ns)):
            if percent in found.percentiles_ns:
                assert exact_ns == found.percentiles_ns[percent]
        assert (50 in found.percentiles_ns) == (found.requests >= 2 * FEWEST_BEYOND)


def test_many_percentiles_at_once_are_those_by_themselves() -> None:
    histogram = make_histogram(range(1_000, 900_000, 1_700))
    percents = [0.0, 12.5, 50.0, 90.0, 99.0, 99.9, 100.0]
    assert percentiles_ns(histogram, percents) == {
        percent: percentile_ns(histogram, percent) for percent in percents
    }
    assert percentiles_ns(make_histogram(), percents) == {}


def test_a_distribution_rises_and_ends_where_too_few_requests_are_beyond() -> None:
    result = make_result(make_quick_plan(blocks=2))
    (key, found), *_ = describe_result(result).distributions.items()
    requests = merge_histograms(
        run.latency for run in result.runs if run.cell == key and not run.twin
    ).get_total_count()
    assert found.requests == requests == 600
    shares, latencies_ns = zip(*found.points, strict=True)
    assert list(shares) == sorted(set(shares))
    assert list(latencies_ns) == sorted(latencies_ns)
    assert shares[0] == 0
    assert requests * (1 - shares[-1]) >= FEWEST_BEYOND * 0.999
    assert set(found.percentiles_ns) == {50, 75, 90, 95}
    assert found.highest_ns is not None
    assert found.highest_ns >= latencies_ns[-1]


def test_runs_are_told_in_the_order_in_which_they_were_made() -> None:
    result = make_result(make_quick_plan(blocks=2))
    runs = describe_result(result).runs
    assert [run.number for run in runs] == list(range(1, 11))
    assert [(run.cell, run.twin, run.block) for run in runs] == [
        (run.cell, run.twin, run.block) for run in result.runs
    ]
    assert [run.mean_ns for run in runs] == [run.whole.client_ns / run.whole.requests for run in result.runs]
    assert {run.left_out for run in runs} == {""}


def test_a_run_that_does_not_count_says_why_and_a_saturated_one_has_no_times() -> None:
    text = "the processors were busy 97 % of the time"

    def spoil(run: ScheduledRun) -> Mapping[str, Any]:
        if run.cell.hop1 == run.cell.hop2 == "tcp":
            return {"saturated": run.block > 0, "limits": (Reason("saturated", text),) if run.block else ()}
        return (
            {"invalid": (Reason("steal", "taken"), Reason("generator lag", "late"))} if run.block == 1 else {}
        )

    runs = describe_result(make_result(make_quick_plan(blocks=4), spoil=spoil)).runs
    for run in runs:
        if run.cell == "point-query/tcp/tcp/4x1/pooled":
            expected = f"saturated; {text}" if run.block else "most other runs of it were saturated"
            assert (run.left_out, run.mean_ns, run.slowest_ns) == (expected, None, None)
        else:
            assert run.left_out == ("taken; late" if run.block == 1 else "")
            assert run.mean_ns is not None


def test_of_a_run_that_was_made_again_the_later_one_counts() -> None:
    result = make_result(make_quick_plan(blocks=1))
    first = result.runs[0]
    spoilt = replace(first, invalid=(Reason("steal", "taken"),))
    again = replace(result, runs=(spoilt, *result.runs))
    assert [run.left_out for run in describe_result(again).runs] == ["taken", "", "", "", "", ""]


def test_the_controls_blocks_give_the_verdicts_estimate() -> None:
    result = CASES["matrix"]()
    control_ns = describe_result(result).control_ns
    assert [block for block, _ in control_ns] == list(range(10))
    mean = judge(result).control.mean
    assert mean is not None
    assert mean.client.value_ns == pytest.approx(hodges_lehmann([ns for _, ns in control_ns]), rel=1e-9)
