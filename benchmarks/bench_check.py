"""Check `reqpath bench` against what it has to say: nothing where nothing differs, and what was planted.

Both use the benchmark's own machinery, on real servers, and its ordinary verdict::

    python benchmarks/bench_check.py aa        # a set-up beside itself, ten times: at most one "different"
    python benchmarks/bench_check.py planted   # 300 µs and 30 µs more in each query: found, in their tier

Each ends with a verdict, writes its figures as JSON, and exits with 0 when it passed, 1 when it did not and 2
when there is no verdict. The machine has to be quiet: what else runs makes runs invalid. docs/benchmark.md
tells how to read them.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import click
from rich.console import Console

from reqpath.bench.figures import Comparison, Question, Verdict
from reqpath.bench.plan import Load, Plan, make_plan
from reqpath.bench.result import Journal, Result, read_result
from reqpath.bench.run import Step, open_bench
from reqpath.bench.verdict import judge
from reqpath.errors import ReqPathError
from reqpath.render.bench import describe_host, list_notes
from reqpath.render.bench_sentence import render_control, render_question
from reqpath.render.units import format_duration
from reqpath.servers.process import exit_on_signals

WORKLOAD: Final = "point-query"
#: Where what is planted has to be found.
SEGMENT: Final = "mysql.query"
#: What is planted; the first has to be found, the second may be told to be too small.
PLANTED_US: Final = (300, 30)
#: By how much an interval may miss what is planted: a processor that is awake meanwhile does the rest a bit
#: faster, and one that has more to do keeps other requests waiting.
SLACK_NS: Final = 5_000
#: Of ten comparisons of a set-up with itself.
MOST_DIFFERENT: Final = 1
#: A comparison without a verdict is made so many times in all.
TRIES: Final = 2
#: Between the seeds of those.
STRIDE: Final = 1_000

PASSED, FAILED, UNDECIDED = 0, 1, 2

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Repetition:
    """One A/A comparison; durations in µs."""

    seed: int
    #: `different`, `none`, or `undecided` with too few valid blocks.
    outcome: str
    #: Of the slowest 1 %, which no sentence on A/A tells of.
    slowest_outcome: str
    #: Valid ones.
    blocks: int
    runs: int
    seconds_s: float
    sentence: str
    mean_us: float | None = None
    difference_us: float | None = None
    interval_us: tuple[float | None, float | None] = (None, None)
    p: float | None = None
    #: What would have been found in 4 of 5 such comparisons.
    resolvable_us: float | None = None


@dataclass(frozen=True, slots=True)
class Planted:
    """What was said of one planted delay; durations in µs."""

    planted_us: int
    #: Of the whole latency, and of the segments on the way to the database alone.
    outcome: str
    own_outcome: str
    difference_us: float
    interval_us: tuple[float | None, float | None]
    #: The segment that has most of it; empty: none has any.
    tier: str
    tier_us: float | None
    tier_interval_us: tuple[float | None, float | None]
    own_interval_us: tuple[float | None, float | None]
    #: What would have been found in 4 of 5 benchmarks, in the whole latency and in the segments alone.
    resolvable_us: float | None
    own_resolvable_us: float | None
    tiers_sum_us: float
    sentence: str
    passed: bool
    #: In words.
    finding: str


@dataclass(frozen=True, slots=True)
class Check:
    """What a check found; `result` is the last one."""

    name: str
    code: int
    verdict: str
    found: Sequence[Repetition] | Sequence[Planted]
    result: Result

    def document(self) -> dict[str, Any]:
        """Return all of it with where and how."""
        plan = self.result.plan
        return {
            "check": self.name,
            "passed": self.code == PASSED,
            "verdict": self.verdict,
            "command": shlex.join(["python", *sys.argv]),
            "created_ns": self.result.created_ns,
            "host": describe_host(self.result.host),
            "cells": [cell.key for cell in plan.cells],
            "blocks": plan.blocks,
            "seconds_s": plan.seconds_s,
            "warm_up_s": plan.warm_up_s,
            "rates_per_s": self.result.rates,
            "notes": [": ".join(note) for note in list_notes(judge(self.result))],
            "found": [asdict(one) for one in self.found],
        }


def run_plan(plan: Plan, keep: str | None, name: str) -> Result:
    """Run a plan and return its result; with `keep`, it is left there."""
    with tempfile.TemporaryDirectory(prefix="reqpath-check-") as directory:
        path = os.path.join(directory, f"{name}.jsonl")
        with open_bench(plan) as bench, Journal.create(path, bench.head) as journal:
            try:
                bench.measure(journal, tell_once())
            finally:
                if keep is not None:
                    shutil.copy(path, keep)
        return read_result(path)


def tell_once() -> Callable[[Step], None]:
    """Return what tells of each step when it begins."""
    told = ""

    def tell(step: Step) -> None:
        nonlocal told
        if step.what != told:
            told = step.what
            console.print(f"  {step.what}, {step.left_s:.0f} s left", highlight=False, style="dim")

    return tell


def judge_repetition(result: Result, seconds_s: float) -> Repetition:
    """Say what the A/A comparison of a result came to."""
    verdict = judge(result)
    mean, slowest = verdict.control.mean, verdict.control.slowest
    repetition = Repetition(
        seed=result.plan.seed,
        outcome=mean.outcome if mean else "undecided",
        slowest_outcome=slowest.outcome if slowest else "undecided",
        blocks=mean.client.blocks if mean else 0,
        runs=len(result.runs),
        seconds_s=round(seconds_s, 1),
        sentence=render_control(verdict.control),
    )
    if mean is None:
        return repetition
    return replace(
        repetition,
        mean_us=mean.base_ns / 1e3,
        difference_us=mean.client.value_ns / 1e3,
        interval_us=(_us(mean.client.low_ns), _us(mean.client.high_ns)),
        p=mean.p_adjusted,
        resolvable_us=_us(mean.resolvable_ns),
    )


def judge_repetitions(repetitions: Sequence[Repetition]) -> tuple[int, str]:
    """Return the exit code and the verdict. One in ten may be different, of more as large a share."""
    different = sum(one.outcome == "different" for one in repetitions)
    undecided = sum(one.outcome == "undecided" for one in repetitions)
    slowest = sum(one.slowest_outcome == "different" for one in repetitions)
    of = len(repetitions)
    text = f"{different} of {of} A/A comparisons said “different” (of the slowest 1 %: {slowest})"
    if different > max(MOST_DIFFERENT, of // 10):
        return FAILED, f"failed: {text}"
    if undecided:
        return UNDECIDED, f"no verdict: {undecided} of {of} had too few valid blocks; {text}"
    return PASSED, f"passed: {text}"


def judge_planted(question: Question, mean: Comparison, own: Comparison) -> Planted:
    """Say whether what was planted was found, where it was planted, and as large as it was."""
    planted_us = int(question.second)
    tier = mean.carriers[0] if mean.carriers else None
    passed, finding = _judge_found(planted_us * 1_000, mean, own)
    return Planted(
        planted_us=planted_us,
        outcome=mean.outcome,
        own_outcome=own.outcome,
        difference_us=mean.client.value_ns / 1e3,
        interval_us=(_us(mean.client.low_ns), _us(mean.client.high_ns)),
        tier=tier.name if tier else "",
        tier_us=tier.difference.value_ns / 1e3 if tier else None,
        tier_interval_us=(
            (_us(tier.difference.low_ns), _us(tier.difference.high_ns)) if tier else (None, None)
        ),
        own_interval_us=(_us(own.client.low_ns), _us(own.client.high_ns)),
        resolvable_us=_us(mean.resolvable_ns),
        own_resolvable_us=_us(own.resolvable_ns),
        tiers_sum_us=mean.parts_sum_ns / 1e3,
        sentence=render_question(question),
        passed=passed,
        finding=finding,
    )


def _judge_found(planted_ns: int, mean: Comparison, own: Comparison) -> tuple[bool, str]:
    in_whole, in_tier = mean.outcome == "different", own.outcome == "different"
    if not in_whole and not in_tier:
        least_ns = min(one.resolvable_ns or 0.0 for one in (mean, own))
        honest = least_ns > planted_ns and all(_holds(one, planted_ns) for one in (mean, own))
        resolved = f"this run could resolve {format_duration(least_ns, digits=2)}"
        return honest, f"not found, {'as' if honest else 'although'} {resolved}"
    wrong = []
    carriers = mean.carriers or own.carriers
    if not carriers or carriers[0].name != SEGMENT:
        wrong.append(f"most of it in {carriers[0].name if carriers else 'no tier'} and not in {SEGMENT}")
    wrong += [
        f"{name}'s interval is not around it"
        for name, one, found in (("the client", mean, in_whole), ("the tier", own, True))
        if found and not _holds(one, planted_ns)
    ]
    if not mean.adds_up:
        wrong.append("the tiers do not add up to the client's difference")
    where = "found in the whole latency and its tier" if in_whole else "found in its tier alone"
    return not wrong, "; ".join([where, *wrong])


def _holds(comparison: Comparison, planted_ns: int) -> bool:
    low_ns, high_ns = comparison.client.low_ns, comparison.client.high_ns
    if low_ns is None or high_ns is None:
        return False
    return low_ns - SLACK_NS <= planted_ns <= high_ns + SLACK_NS


def judge_all_planted(verdict: Verdict) -> tuple[int, str, list[Planted]]:
    """Return the exit code, the verdict and what it rests on."""
    asked = [question for question in verdict.questions if question.first == "0"]
    found = [
        judge_planted(question, question.mean, question.own)
        for question in asked
        if question.mean is not None and question.own is not None
    ]
    if len(found) < len(asked) or any("undecided" in (one.outcome, one.own_outcome) for one in found):
        return UNDECIDED, "no verdict: too few valid blocks", found
    largest = max(found, key=lambda one: one.planted_us)
    passed = all(one.passed for one in found) and largest.outcome == "different"
    text = "; ".join(f"{one.planted_us} µs: {one.finding}" for one in found)
    return (PASSED if passed else FAILED), f"{'passed' if passed else 'failed'}: {text}", found


def make_check_plan(blocks: int, seconds: float, warm_up: float, load: Load, **choices: Any) -> Plan:
    """Plan one set-up of sockets and workers."""
    return make_plan(
        workloads=(WORKLOAD,),
        hop1=("unix",),
        hop2=("unix",),
        workers=("4x1",),
        blocks=blocks,
        seconds_s=seconds,
        warm_up_s=warm_up,
        load=load,
        **choices,
    )


@click.group()
def main() -> None:
    """Check `reqpath bench` against what it has to say."""


def common(blocks: int, seconds: float, share: float, output: str) -> Callable[[Any], Any]:
    """Return the options that both checks have, with these defaults."""
    options = (
        click.option("--blocks", default=blocks, show_default=True),
        click.option("--seconds", default=seconds, show_default=True, help="Of each run."),
        click.option("--warm-up", default=1.0, show_default=True, help="Seconds before it."),
        click.option("--load", default=share, show_default=True, help="Of the capacity."),
        click.option("--seed", default=1, show_default=True),
        click.option("--output", default=output, show_default=True, help="The figures."),
        click.option(
            "--keep", type=click.Path(exists=True, file_okay=False), help="A directory for whole results."
        ),
    )

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@main.command()
@click.option("--repetitions", default=10, show_default=True)
@common(10, 4.0, 0.35, "check-aa.json")
def aa(*, repetitions: int, blocks: int, seconds: float, warm_up: float, load: float, seed: int,
       output: str, keep: str | None) -> None:  # fmt: skip
    """Compare a set-up with itself, time and again."""
    sent = Load(share=load)
    found: list[Repetition] = []
    for number in range(repetitions):
        for again in range(TRIES):
            console.print(f"A/A {number + 1} of {repetitions}{', again' if again else ''}", highlight=False)
            begin_s = time.monotonic()
            seeds = seed + number + again * STRIDE
            plan = make_check_plan(blocks, seconds, warm_up, sent, seed=seeds)
            result = run_plan(plan, keep, f"aa-{seeds}")
            one = judge_repetition(result, time.monotonic() - begin_s)
            console.print(f"  {one.seconds_s:.0f} s. {one.sentence}", highlight=False)
            # All are sent what the first one found.
            sent = Load(rates_per_s=tuple(result.rates.items()))
            if one.outcome != "undecided":
                break
        found.append(one)
    code, text = judge_repetitions(found)
    finish(Check("aa", code, text, found, result), output)


@main.command()
@common(12, 6.0, 0.2, "check-planted.json")
def planted(*, blocks: int, seconds: float, warm_up: float, load: float, seed: int, output: str,
            keep: str | None) -> None:  # fmt: skip
    """Plant a known delay in each query of a cell, and have it found."""
    levels = ("0", *map(str, sorted(PLANTED_US)))
    plan = make_check_plan(blocks, seconds, warm_up, Load(share=load), seed=seed, planted_us=levels)
    result = run_plan(plan, keep, "planted")
    code, text, found = judge_all_planted(judge(result))
    for one in found:
        console.print(f"{one.planted_us} µs: {one.sentence}", highlight=False, soft_wrap=True)
    finish(Check("planted", code, text, found, result), output)


def finish(check: Check, output: str) -> None:
    """Write the figures, say the verdict, and exit with its code."""
    with open(output, "w", encoding="utf-8") as file:
        json.dump(check.document(), file, indent=1, ensure_ascii=False)
        file.write("\n")
    console.print(f"{check.verdict}\nThe figures: {output}", highlight=False, soft_wrap=True)
    sys.exit(check.code)


def _us(ns: float | None) -> float | None:
    return None if ns is None else ns / 1e3


if __name__ == "__main__":
    try:
        with exit_on_signals():
            main(standalone_mode=False)
    except (ReqPathError, click.ClickException) as error:
        # A dead server's error has its whole log.
        lines = f"no verdict: {error}".splitlines()
        console.print("\n".join([lines[0], *lines[1:][-10:]]), highlight=False, markup=False, soft_wrap=True)
        sys.exit(UNDECIDED)
    except KeyboardInterrupt:
        sys.exit(130)
