"""What a benchmark's result says: for each question a difference, in which tier it is, or that there is none.

A *question* is one factor with two of its levels, for one workload: TCP or Unix sockets from the app to the
database, for a point query. Its *pairs* of cells differ in that factor alone; a block's difference is the
mean over them. The layers below are `result` and `statistics`, the one above is `render.bench`::

    judge(result).questions[1].mean.client    →  Estimate(value_ns=-38_000.0, low_ns=-45_000.0, …)
    judge(result).questions[1].mean.carriers  →  (Part(name='mysql.query', …),)

Only valid runs count. A saturated cell is compared with nothing, and neither are two whose requests fail
differently often: what is missing among the answers of one would make it look fast.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

import msgspec

from reqpath.bench.figures import (
    CellFigures,
    CellShift,
    Comparison,
    Control,
    Pair,
    Part,
    Question,
    Remark,
    ResultComparison,
    Verdict,
)
from reqpath.bench.histogram import merge_histograms, percentile_ns
from reqpath.bench.plan import FACTORS, WORKERS, Cell, Factor, Plan, Workload
from reqpath.bench.result import CLIENT_SEGMENTS, Capacity, Host, Reason, Result, RunRecord, Slice
from reqpath.bench.statistics import (
    ALPHA,
    Estimate,
    adjust_holm,
    blocks_needed,
    estimate,
    estimate_shift,
    resolvable_ns,
)
from reqpath.errors import ResultError
from reqpath.tiers import SEGMENTS

Metric = Literal["whole", "slowest"]

#: Two cells whose failures are further apart than this share of what was sent are not compared.
FAILURES_APART: Final = 0.001
#: Two results whose rates are further apart are not compared.
RATES_APART: Final = 0.05
#: Factor → segments that it lies in. Workers have none of their own: they change what everything waits for.
OWN: Final[dict[Factor, tuple[str, ...]]] = {
    "hop1": ("queue", "uwsgi.read", "uwsgi.send", "nginx.send"),
    "hop2": ("mysql.connect", "mysql.query", "mysql.fetch", "mysql.commit"),
    "connection": ("mysql.connect", "mysql.query", "mysql.fetch", "mysql.commit"),
    "planted_us": ("mysql.connect", "mysql.query", "mysql.fetch", "mysql.commit"),
}
#: Parts of the lens. Source: `Slice.lens_ns`.
_LENS: Final = ("cpu", "run queue", "calls", "other")
_TIERS: Final = {segment.name: segment.tier for segment in SEGMENTS} | {
    "client.lag": "client",
    "client.network": "client",
    "residual": "residual",
}

#: What one run says; None: nothing.
Value = Callable[[RunRecord], float | None]
#: Of the memory of two hosts, how far apart it may be.
_SAME_MEMORY: Final = 0.01

#: Block → the valid runs of two cells in it.
Matched = dict[int, tuple[RunRecord, RunRecord]]


def judge(result: Result) -> Verdict:
    """Say what a result says."""
    table = _Table(result)
    asked = list(_ask(result.plan))
    # And the control.
    asked_in_all = len(asked) + 1
    control = Control(table.twin, *table.compare_control())
    questions = [table.answer(*question) for question in asked]
    whole = _decide([control.mean, *(question.mean for question in questions)], asked_in_all, control=True)
    slowest = _decide(
        [control.slowest, *(question.slowest for question in questions)], asked_in_all, control=True
    )
    own = _decide([question.own for question in questions], asked_in_all, control=False)
    return Verdict(
        plan=result.plan,
        host=result.host,
        created_ns=result.created_ns,
        command=result.command,
        blocks=len({run.block for run in result.runs}),
        blocks_needed=blocks_needed(asked_in_all),
        runs=result.made,
        valid=len({_place(run) for run in result.runs if run.is_valid}),
        complete=result.complete,
        questions=tuple(
            replace(question, mean=whole[number + 1], slowest=slowest[number + 1], own=own[number])
            for number, question in enumerate(questions)
        ),
        control=replace(control, mean=whole[0], slowest=slowest[0]),
        cells=tuple(table.describe(cell) for cell in result.plan.cells),
        invalid=_gather(run.invalid for run in result.runs),
        limits=_gather(run.limits for run in result.runs),
        resolution_ns=max((run.resolution_ns for run in result.runs), default=1),
    )


def find_counted(result: Result) -> tuple[dict[str, list[RunRecord]], list[RunRecord]]:
    """Return the runs of which each cell's figures are made, by its key, and those of the A/A twin.

    A saturated cell is not among them, and has no twin.
    """
    table = _Table(result)
    return table.counted_by_cell(), table.counted_twins()


def _ask(plan: Plan) -> Iterable[tuple[Workload, str | None, Factor, str, str]]:
    """Yield what the plan's cells can answer."""
    for workload in plan.workloads:
        cells = [cell for cell in plan.cells if cell.workload == workload.name]
        connections = list(dict.fromkeys(cell.connection for cell in cells))
        for factor in FACTORS:
            levels = sorted({getattr(cell, factor) for cell in cells}, key=_rank)
            for first, second in itertools.combinations(levels, 2):
                for connection in connections if factor != "connection" else (None,):
                    yield workload, connection, factor, first, second


def _rank(level: str) -> tuple[int, str]:
    # Four processes are what the others are measured against; of the rest, the alphabet's first is.
    if level.isdecimal():
        return int(level), level
    return (WORKERS.index(level), level) if level in WORKERS else (0, level)


class _Table:
    """The runs of a result, by cell and block."""

    def __init__(self, result: Result) -> None:
        self._result = result
        self.twin = result.plan.cell(result.plan.twin)
        self._runs: dict[str, dict[int, RunRecord]] = defaultdict(dict)
        self._twins: dict[int, RunRecord] = {}
        for run in result.runs:
            of_cell = self._twins if run.twin else self._runs[run.cell]
            # A run that was made again after an invalid one takes its place.
            if run.block not in of_cell or not of_cell[run.block].is_valid:
                of_cell[run.block] = run
        self._saturated = {
            cell.key for cell in result.plan.cells if _is_saturated(list(self._runs[cell.key].values()))
        }
        self._comparisons = len(list(_ask(result.plan))) + 1

    def compare_control(self) -> tuple[Comparison | None, Comparison | None]:
        if self.twin.key in self._saturated:
            return None, None
        matched = _match(self._runs[self.twin.key], self._twins)
        return self._compare([matched], parts=False)

    def answer(
        self, workload: Workload, connection: str | None, factor: Factor, first: str, second: str
    ) -> Question:
        """Build the question with what is compared; its outcome is decided among all."""
        pairs, matches = [], []
        for cell in self._result.plan.cells:
            if cell.workload != workload.name or getattr(cell, factor) != first:
                continue
            if connection is not None and cell.connection != connection:
                continue
            other = replace(cell, **{factor: second})  # type: ignore[arg-type]
            matched = _match(self._runs[cell.key], self._runs[other.key])
            reason = self._refuse(cell, other, len(matched))
            pair = Pair(cell, other, len(matched), reason, None)
            if not reason:
                pair = replace(pair, client=estimate(_over([matched], _client("whole"))))
                matches.append(matched)
            pairs.append(pair)
        mean, slowest = self._compare(matches)
        return Question(
            workload=workload,
            connection=connection,
            factor=factor,
            first=first,
            second=second,
            pairs=_tell_apart(pairs, matches),
            mean=mean,
            slowest=slowest,
            own=self._narrow(mean, matches, OWN[factor]) if mean and factor in OWN else None,
        )

    def _narrow(self, whole: Comparison, matches: Sequence[Matched], names: tuple[str, ...]) -> Comparison:
        """Return the comparison of some segments alone."""

        def value(run: RunRecord) -> float:
            return sum(_segment("whole", name)(run) for name in names)

        client = estimate(_over(matches, value), self._comparisons)
        parts = tuple(part for part in whole.parts if part.name in names)
        return Comparison(
            base_ns=sum(part.base_ns for part in parts),
            client=client,
            p_adjusted=client.p,
            resolvable_ns=self._resolvable_ns(client),
            parts=parts,
            lens=(),
        )

    def _resolvable_ns(self, difference: Estimate) -> float | None:
        if difference.spread_ns is None:
            return None
        return resolvable_ns(difference.spread_ns, difference.blocks, self._comparisons)

    def describe(self, cell: Cell) -> CellFigures:
        runs = list(self._runs[cell.key].values())
        saturated = cell.key in self._saturated
        valid = self.counted(cell)
        latency = merge_histograms(run.latency for run in valid)
        seconds_s = sum(run.seconds_s for run in runs)
        overflows = [run.listen_overflows for run in runs if run.listen_overflows is not None]
        ratios = [
            run.in_flight / run.in_flight_expected
            for run in valid
            if run.in_flight is not None and run.in_flight_expected
        ]
        return CellFigures(
            cell=cell,
            workload=self._result.plan.workload(cell.workload),
            runs=len(runs),
            valid=len(valid),
            saturated=saturated,
            capacity_per_s=_find_capacity(self._result.capacities, cell.key),
            rate_per_s=runs[0].rate_per_s if runs else self._result.rates.get(cell.workload),
            answered_per_s=sum(run.answered for run in runs) / seconds_s if seconds_s > 0 else None,
            planned=sum(run.planned for run in runs),
            failures=dict(sum((Counter(run.failures) for run in runs), Counter())),
            dropped=sum(run.dropped for run in runs),
            listen_overflows=sum(overflows) if overflows else None,
            mean_ns=_mean(map(_client("whole"), valid)),
            p50_ns=percentile_ns(latency, 50),
            p90_ns=percentile_ns(latency, 90),
            p99_ns=percentile_ns(latency, 99),
            lag_p99_ns=percentile_ns(merge_histograms(run.lag for run in runs), 99),
            little=max(ratios, key=lambda ratio: abs(ratio - 1), default=None),
            segments_ns=_segment_means(valid, "whole"),
            slowest_ns=_mean(map(_client("slowest"), valid)),
            slowest_segments_ns=_segment_means(valid, "slowest"),
        )

    def counted(self, cell: Cell) -> list[RunRecord]:
        """Return the runs of which a cell's figures are made."""
        if cell.key in self._saturated:
            return []
        return [run for run in self._runs[cell.key].values() if run.is_valid]

    def counted_by_cell(self) -> dict[str, list[RunRecord]]:
        cells = (cell for cell in self._result.plan.cells if cell.key not in self._saturated)
        return {cell.key: self.counted(cell) for cell in cells}

    def counted_twins(self) -> list[RunRecord]:
        if self.twin.key in self._saturated:
            return []
        return [run for run in self._twins.values() if run.is_valid]

    def _refuse(self, first: Cell, second: Cell, blocks: int) -> str:
        """Say why two cells are not compared; empty when they are."""
        if self._saturated & {first.key, second.key}:
            return "saturated"
        blocks_run = set(self._runs[first.key]) & set(self._runs[second.key])
        if not blocks_run:
            return "no block has run both"
        if blocks * 2 <= len(blocks_run):
            return f"valid in {blocks} of {len(blocks_run)} blocks"
        shares = [
            sum(run.failed for run in runs) / max(1, sum(run.planned for run in runs))
            for runs in (self._runs[first.key].values(), self._runs[second.key].values())
        ]
        if abs(shares[0] - shares[1]) > FAILURES_APART:
            return f"requests fail differently often: {shares[0]:.1%} and {shares[1]:.1%}"
        return ""

    def _compare(
        self, matches: list[Matched], *, parts: bool = True
    ) -> tuple[Comparison | None, Comparison | None]:
        if not any(matches):
            return None, None
        return self._build(matches, "whole", parts=parts), self._build(matches, "slowest", parts=parts)

    def _build(self, matches: list[Matched], metric: Metric, *, parts: bool) -> Comparison:
        firsts = [first for matched in matches for first, _ in matched.values()]
        both = [run for matched in matches for pair in matched.values() for run in pair]

        def part(name: str, tier: str, value: Value) -> Part | None:
            differences = _over(matches, value)
            if not differences:
                return None
            return Part(name, tier, _mean(map(value, firsts)) or 0.0, estimate(differences))

        client = estimate(_over(matches, _client(metric)), self._comparisons)
        return Comparison(
            base_ns=_mean(map(_client(metric), firsts)) or 0.0,
            client=client,
            p_adjusted=client.p,
            resolvable_ns=self._resolvable_ns(client),
            parts=_present(part(name, _TIERS[name], _segment(metric, name)) for name in _used(both, metric)),
            lens=_present(part(name, "", _lens(metric, name)) for name in _LENS),
        )


def _match(first: Mapping[int, RunRecord], second: Mapping[int, RunRecord]) -> Matched:
    return {
        block: (first[block], second[block])
        for block in sorted(set(first) & set(second))
        if first[block].is_valid and second[block].is_valid
    }


def _over(matches: Sequence[Matched], value: Value) -> list[float]:
    """Return each block's difference, over all pairs of cells.

    Where a pair has no valid runs in a block, what it usually has beyond the others is put in its place: else
    a block would differ by which pairs it lacks. Linear, so that parts add up in each block.
    """
    differences: list[dict[int, float]] = []
    for matched in matches:
        of_pair = {}
        for block, (first, second) in matched.items():
            before, after = value(first), value(second)
            if before is not None and after is not None:
                of_pair[block] = after - before
        if of_pair:
            differences.append(of_pair)
    usual = [sum(of_pair.values()) / len(of_pair) for of_pair in differences]
    overall = sum(usual) / max(1, len(usual))
    result = []
    for block in sorted({block for of_pair in differences for block in of_pair}):
        beyond = [
            of_pair[block] - mean
            for of_pair, mean in zip(differences, usual, strict=True)
            if block in of_pair
        ]
        result.append(overall + sum(beyond) / len(beyond))
    return result


def _tell_apart(pairs: list[Pair], matches: list[Matched]) -> tuple[Pair, ...]:
    """Mark the pairs whose difference is not that of the others."""
    if len(matches) < 2:
        return tuple(pairs)
    ps = []
    for number, matched in enumerate(matches):
        others = matches[:number] + matches[number + 1 :]
        contrasts = []
        for block, (first, second) in matched.items():
            rest = [other[block] for other in others if block in other]
            if rest:
                own = _client_ns(second, "whole") - _client_ns(first, "whole")
                contrasts.append(
                    own
                    - sum(_client_ns(after, "whole") - _client_ns(before, "whole") for before, after in rest)
                    / len(rest)
                )
        ps.append(estimate(contrasts, len(matches)).p if contrasts else None)
    adjusted = iter(adjust_holm([1.0 if p is None else p for p in ps]))
    return tuple(pair if pair.left_out else replace(pair, differs=next(adjusted) <= ALPHA) for pair in pairs)


def _decide(
    comparisons: Sequence[Comparison | None], asked: int, *, control: bool
) -> list[Comparison | None]:
    """Decide all comparisons of a metric among each other; with a `control`, that is the first.

    `asked` is among how many the blocks had to be enough for.
    """
    ps = [1.0 if one is None or one.client.p is None else one.client.p for one in comparisons]
    decided: list[Comparison | None] = []
    noise_ns = 0.0
    for number, (one, p) in enumerate(zip(comparisons, adjust_holm(ps), strict=True)):
        if one is None:
            decided.append(None)
            continue
        judged = _decide_one(one, p, asked, noise_ns)
        if control and number == 0 and judged.outcome == "different":
            noise_ns = judged.client.bound_ns or 0.0
        decided.append(judged)
    return decided


def _decide_one(comparison: Comparison, p: float, asked: int, noise_ns: float) -> Comparison:
    client = comparison.client
    if client.p is None:
        return replace(
            comparison,
            p_adjusted=None,
            reason=f"{client.blocks} valid {'block' if client.blocks == 1 else 'blocks'}, and "
            f"{asked} comparisons need {blocks_needed(asked)}",
        )
    comparison = replace(comparison, p_adjusted=p)
    if p > ALPHA or not client.excludes_zero:
        return replace(comparison, outcome="none")
    if abs(client.value_ns) <= noise_ns:
        return replace(comparison, reason="a cell differs as much from itself")
    return replace(comparison, outcome="different")


def compare_results(first: Result, second: Result, *, anyway: bool = False) -> ResultComparison:
    """Compare the cells that two results share.

    Raises:
        ResultError: they were made on different hosts or with different versions, and not `anyway`; or they
            share no cell.
    """
    differences = list_differences(first, second)
    if differences and not anyway:
        raise ResultError(
            "the results differ in more than what they measured:\n"
            + "\n".join(f"  {difference}" for difference in differences)
            + "\n--anyway compares them nevertheless"
        )
    keys = [{cell.key for cell in result.plan.cells} for result in (first, second)]
    shared = [cell for cell in first.plan.cells if cell.key in keys[1]]
    if not shared:
        raise ResultError("the results have no cell in common")
    tables = _Table(first), _Table(second)
    shifts = [_shift(cell, tables, len(shared)) for cell in shared]
    # There is no control: none of the runs says how much a cell differs between two benchmarks.
    means, slowest = (
        [
            one
            and replace(
                one, reason=f"valid runs are too few: {one.client.blocks}" if one.client.p is None else ""
            )
            for one in _decide(metric, len(shared), control=False)
        ]
        for metric in ([shift.mean for shift in shifts], [shift.slowest for shift in shifts])
    )
    return ResultComparison(
        differences=tuple(differences),
        cells=tuple(
            replace(shift, mean=mean, slowest=tail)
            for shift, mean, tail in zip(shifts, means, slowest, strict=True)
        ),
        alone=tuple(sorted(keys[0] ^ keys[1])),
    )


def list_differences(first: Result, second: Result) -> list[str]:
    """Say in words in what the hosts, the versions and the loads of two results differ."""
    found = []
    for field in msgspec.structs.fields(Host):
        before, after = getattr(first.host, field.name), getattr(second.host, field.name)
        # Of the same memory the kernel keeps some pages more or less at each start of the machine.
        if field.name == "memory_bytes" and math.isclose(before, after, rel_tol=_SAME_MEMORY):
            continue
        if field.name != "versions" and before != after:
            found.append(f"the host's {field.name.replace('_', ' ')}: {_word(before)} and {_word(after)}")
    for name in sorted(set(first.host.versions) | set(second.host.versions)):
        before, after = first.host.versions.get(name), second.host.versions.get(name)
        if before != after:
            found.append(f"{name}: {_word(before)} and {_word(after)}")
    for name in ("seconds_s", "warm_up_s", "app"):
        before, after = getattr(first.plan, name), getattr(second.plan, name)
        if before != after:
            found.append(f"the plan's {name.removesuffix('_s').replace('_', ' ')}: {before} and {after}")
    return found


def _shift(cell: Cell, tables: tuple[_Table, _Table], comparisons: int) -> CellShift:
    figures = [table.describe(cell) for table in tables]
    workload = figures[0].workload

    def refuse(reason: str) -> CellShift:
        return CellShift(cell, workload, None, None, reason)

    for which, one in zip(("first", "second"), figures, strict=True):
        if one.saturated:
            return refuse(f"saturated in the {which} result")
        if not one.valid:
            return refuse(f"the {which} result has no valid run of it")
    rates = [one.rate_per_s or 0.0 for one in figures]
    if abs(rates[0] - rates[1]) > RATES_APART * max(rates):
        return refuse(f"sent {rates[0]:.0f}/s and {rates[1]:.0f}/s")
    shares = [one.failed / max(1, one.planned) for one in figures]
    if abs(shares[0] - shares[1]) > FAILURES_APART:
        return refuse(f"requests fail differently often: {shares[0]:.1%} and {shares[1]:.1%}")
    runs = tables[0].counted(cell), tables[1].counted(cell)
    return CellShift(
        cell,
        workload,
        _shift_metric(*runs, "whole", comparisons),
        _shift_metric(*runs, "slowest", comparisons),
    )


def _shift_metric(
    before: list[RunRecord], after: list[RunRecord], metric: Metric, comparisons: int
) -> Comparison:
    def part(name: str, tier: str, value: Value) -> Part | None:
        first = [found for run in before if (found := value(run)) is not None]
        second = [found for run in after if (found := value(run)) is not None]
        if not first or not second:
            return None
        return Part(name, tier, _mean(first) or 0.0, estimate_shift(first, second))

    client = estimate_shift(
        [_client_ns(run, metric) for run in before], [_client_ns(run, metric) for run in after], comparisons
    )
    return Comparison(
        base_ns=_mean(_client_ns(run, metric) for run in before) or 0.0,
        client=client,
        p_adjusted=client.p,
        resolvable_ns=None,
        parts=_present(
            part(name, _TIERS[name], _segment(metric, name)) for name in _used([*before, *after], metric)
        ),
        lens=_present(part(name, "", _lens(metric, name)) for name in _LENS),
    )


def _place(run: RunRecord) -> tuple[int, str, bool]:
    """Return what a run has in common with the one that was made again in its place."""
    return run.block, run.cell, run.twin


def _is_saturated(runs: list[RunRecord]) -> bool:
    return sum(run.saturated for run in runs) * 2 > len(runs)


def _slice(run: RunRecord, metric: Metric) -> Slice:
    return run.whole if metric == "whole" else run.slowest


def _client_ns(run: RunRecord, metric: Metric) -> float:
    requests = _slice(run, metric)
    return requests.client_ns / requests.requests


def _client(metric: Metric) -> Value:
    return lambda run: _client_ns(run, metric)


def _segment(metric: Metric, name: str) -> Callable[[RunRecord], float]:
    return lambda run: _slice(run, metric).segments_ns.get(name, 0) / _slice(run, metric).requests


def _lens(metric: Metric, name: str) -> Value:
    def value(run: RunRecord) -> float | None:
        requests = _slice(run, metric)
        return requests.lens_ns.get(name, 0) / requests.lens_requests if requests.lens_requests else None

    return value


def _used(runs: list[RunRecord], metric: Metric) -> list[str]:
    """Return the segments that have any time in any of the runs."""
    return [
        name for name in CLIENT_SEGMENTS if any(_slice(run, metric).segments_ns.get(name) for run in runs)
    ]


def _segment_means(runs: list[RunRecord], metric: Metric) -> dict[str, float]:
    return {name: _mean(map(_segment(metric, name), runs)) or 0.0 for name in _used(runs, metric)}


def _find_capacity(capacities: Iterable[Capacity], key: str) -> float | None:
    return next((capacity.requests_per_s for capacity in capacities if capacity.cell == key), None)


def _present(parts: Iterable[Part | None]) -> tuple[Part, ...]:
    return tuple(part for part in parts if part is not None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _gather(reasons: Iterable[tuple[Reason, ...]]) -> tuple[Remark, ...]:
    found: dict[str, Remark] = {}
    for of_run in reasons:
        # A run can have several of one name: it is saturated in more than one way.
        for reason in {reason.name: reason for reason in reversed(of_run)}.values():
            before = found.get(reason.name, Remark(reason.name, reason.text, 0))
            found[reason.name] = replace(before, runs=before.runs + 1)
    return tuple(sorted(found.values(), key=lambda remark: -remark.runs))


def _word(value: object) -> str:
    return "unknown" if value in (None, "") else str(value)
