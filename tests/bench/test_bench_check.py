"""What benchmarks/bench_check.py makes of results, which are made up."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from reqpath.bench.plan import Load, Plan, ScheduledRun
from reqpath.bench.result import Result
from reqpath.bench.verdict import judge
from tests.bench.results import make_result


@pytest.fixture(scope="module")
def check() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "bench_check.py"
    spec = importlib.util.spec_from_file_location("bench_check", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where its dataclasses look for their annotations.
    sys.modules["bench_check"] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["bench_check"]
    return module


def plan_planted(check: ModuleType) -> Plan:
    plan: Plan = check.make_check_plan(12, 6.0, 1.0, Load(), seed=1, planted_us=("0", "30", "300"))
    return plan


def make_planted(check: ModuleType, segment: str = "mysql.query", **choices: Any) -> Result:
    def plant(run: ScheduledRun) -> Mapping[str, float]:
        # What is planted stands in the place of the segment's own time.
        return {segment: run.cell.planted_ns} if run.cell.planted_ns else {}

    return make_result(plan_planted(check), plant=plant, **choices)


def test_what_was_planted_is_found_in_its_tier(check: ModuleType) -> None:
    code, text, found = check.judge_all_planted(judge(make_planted(check, noise=0.005, drift=0.003)))
    assert code == check.PASSED, text
    assert [one.planted_us for one in found] == [30, 300]
    assert found[1].outcome == "different"
    assert found[1].tier == "mysql.query"
    assert "300 µs planted in MySQL cost" in found[1].sentence
    assert "all of it in mysql.query" in found[1].sentence


def test_noise_hides_the_small_one_and_the_check_says_what_it_could_resolve(check: ModuleType) -> None:
    code, text, found = check.judge_all_planted(judge(make_planted(check, noise=0.1)))
    assert (found[0].outcome, found[0].own_outcome) == ("none", "none")
    assert "30 µs: not found, as this run could resolve" in text
    assert (code, found[1].outcome) == (check.PASSED, "different"), text


def test_what_shows_up_in_another_tier_fails(check: ModuleType) -> None:
    code, text, _found = check.judge_all_planted(judge(make_planted(check, "flask.view")))
    assert code == check.FAILED
    assert "most of it in flask.view and not in mysql.query" in text


def test_a_delay_that_is_not_there_fails(check: ModuleType) -> None:
    result = make_result(plan_planted(check), noise=0.005, drift=0.003)
    code, text, _found = check.judge_all_planted(judge(result))
    assert code == check.FAILED
    assert "300 µs: not found, although this run could resolve" in text


def test_too_few_blocks_give_no_verdict(check: ModuleType) -> None:
    code, _text, _found = check.judge_all_planted(judge(make_planted(check, runs=12)))
    assert code == check.UNDECIDED


def make_repetition(check: ModuleType, **choices: Any) -> Any:
    plan = check.make_check_plan(10, 4.0, 1.0, Load(), seed=1)
    return check.judge_repetition(make_result(plan, **choices), 90.0)


def test_a_set_up_does_not_differ_from_itself(check: ModuleType) -> None:
    one = make_repetition(check)
    assert (one.outcome, one.blocks, one.runs) == ("none", 10, 20)
    code, text = check.judge_repetitions([one] * 10)
    assert (code, text[:12]) == (check.PASSED, "passed: 0 of")


def test_one_of_ten_may_differ_and_two_may_not(check: ModuleType) -> None:
    one = make_repetition(check)
    twin = make_repetition(
        check, plant=lambda run: {"flask.view": 900_000} if run.twin else {}, noise=0.005, drift=0.003
    )
    assert twin.outcome == "different"
    assert check.judge_repetitions([one] * 9 + [twin])[0] == check.PASSED
    assert check.judge_repetitions([one] * 8 + [twin] * 2)[0] == check.FAILED


def test_a_repetition_without_enough_valid_runs_is_no_proof(check: ModuleType) -> None:
    few = make_repetition(check, runs=4)
    none = check.judge_repetition(replace(make_result(plan_planted(check)), runs=()), 1.0)
    assert (few.outcome, none.outcome, none.mean_us) == ("undecided", "undecided", None)
    one = make_repetition(check)
    for repetition in (few, none):
        assert check.judge_repetitions([one] * 9 + [repetition])[0] == check.UNDECIDED


def test_a_comparison_without_a_verdict_is_made_once_more(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Plan] = []

    def make(plan: Plan, _keep: str | None, _name: str) -> Result:
        made.append(plan)
        # The second one has too few runs.
        return make_result(plan, seed=plan.seed, runs=4 if len(made) == 2 else None)

    monkeypatch.setattr(check, "run_plan", make)
    output = tmp_path / "aa.json"
    done = CliRunner().invoke(check.main, ["aa", "--repetitions", "3", "--output", str(output)])
    assert done.exit_code == check.PASSED, done.output
    assert [plan.seed for plan in made] == [1, 2, 1002, 3]
    assert [plan.load.rates_per_s for plan in made] == [(), *[(("point-query", 240.0),)] * 3]
    document = json.loads(output.read_text())
    assert (document["check"], document["passed"]) == ("aa", True)
    assert [one["seed"] for one in document["found"]] == [1, 1002, 3]


def test_the_planted_check_writes_what_it_found(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "run_plan", lambda plan, *_: make_result(plan))
    output = tmp_path / "planted.json"
    done = CliRunner().invoke(check.main, ["planted", "--output", str(output)])
    # Nothing was planted in what was made up.
    assert done.exit_code == check.FAILED, done.output
    document = json.loads(output.read_text())
    assert [one["planted_us"] for one in document["found"]] == [30, 300]
    assert not document["passed"]
    assert "300 µs: not found, although this run could resolve" in document["verdict"]
