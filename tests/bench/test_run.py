"""Which runs a session makes, again, or not at all; the runs themselves are made up."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from reqpath.bench.plan import Load, Plan, ScheduledRun, make_quick_plan
from reqpath.bench.result import Head, Journal, Reason, Result, RunRecord, read_result
from reqpath.bench.run import Bench, Step, _Session
from reqpath.bench.verdict import judge
from reqpath.servers.topology import App
from tests.bench.results import HOST, make_result

NOISE = (Reason("steal", "the machine's host took 9.0% of the processors' time"),)
PLAN = make_quick_plan(blocks=2, load=Load(rates_per_s=(("point-query", 100.0),)))


class MadeUp(_Session):
    """A session whose runs are taken from a result that is there, the first ones of some places invalid."""

    def __init__(
        self, plan: Plan, journal: Journal, before: Result | None, noisy: set[tuple[int, int]]
    ) -> None:
        self.steps: list[Step] = []
        head = Head(plan=plan, host=HOST, created_ns=0)
        bench = Bench(plan, App("app:app", "."), None, (), head, None)
        super().__init__(bench, journal, self.steps.append, before)
        self._records = {(run.block, run.order): run for run in make_result(plan).runs}
        self._noisy = noisy

    def _make_run(self, run: ScheduledRun) -> RunRecord:
        place = (run.block, run.order)
        record = self._records[place]
        if place in self._noisy:
            self._noisy.remove(place)
            record = msgspec.structs.replace(record, invalid=NOISE)
        return record


def measure(
    path: Path, *, noisy: set[tuple[int, int]] | None = None, before: Result | None = None
) -> tuple[Result, list[Step]]:
    if before is None:
        journal = Journal.create(str(path), Head(plan=PLAN, host=HOST, created_ns=0))
    else:
        journal, before = Journal.resume(str(path))
    with journal:
        session = MadeUp(PLAN, journal, before, noisy or set())
        session.run()
    return read_result(str(path)), session.steps


def test_every_run_of_the_schedule_is_made_in_its_order(tmp_path: Path) -> None:
    result, steps = measure(tmp_path / "b.jsonl")
    assert [(run.block, run.order) for run in result.runs] == [
        (run.block, run.order) for run in PLAN.schedule()
    ]
    assert result.complete
    assert result.rates == {"point-query": 100.0}
    assert [step.done for step in steps] == list(range(10))
    assert {step.steps for step in steps} == {10}
    # Made-up runs take no time, which is known after the first one.
    assert steps[0].left_s > steps[1].left_s >= 0


def test_an_invalid_run_is_made_once_more_at_the_end_of_its_block(tmp_path: Path) -> None:
    result, steps = measure(tmp_path / "b.jsonl", noisy={(0, 1), (0, 3)})
    assert [run.order for run in result.runs if run.block == 0] == [0, 1, 2, 3, 4, 1, 3]
    assert [run.order for run in result.runs if run.block == 1] == [0, 1, 2, 3, 4]
    assert steps[5].what.endswith(" again")
    assert steps[-1].done + 1 == steps[-1].steps == 12
    verdict = judge(result)
    assert (verdict.runs, verdict.valid, verdict.complete) == (10, 10, True)


def test_what_is_invalid_most_of_the_time_is_not_made_again(tmp_path: Path) -> None:
    result, _steps = measure(tmp_path / "b.jsonl", noisy={(0, 0), (0, 1), (0, 2)})
    assert len(result.runs) == 10
    assert judge(result).valid == 7


@pytest.mark.parametrize("made", [0, 1, 7, 9])
def test_what_goes_on_makes_what_is_left(tmp_path: Path, made: int) -> None:
    path = tmp_path / "b.jsonl"
    whole, _steps = measure(path)
    lines = path.read_bytes().splitlines(keepends=True)
    # The head, the rates and so many runs.
    path.write_bytes(b"".join(lines[: 2 + made]))
    result, steps = measure(path, before=read_result(str(path)))
    assert len(steps) == 10 - made
    assert result == whole
