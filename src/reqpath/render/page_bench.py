"""A benchmark's verdict as a page: its sentences, a section for each question, every set-up and every run.

`render_bench_page(verdict, detail)` is the whole of it; `build_bench_data` is what the page's script gets::

    {"questions": [{"heading": …, "sentence": …, "parts": [{…}], …}], "cells": [{…}], "runs": [{…}], …}

A figure is there as the verdict has it. Cells and workloads are named by their place in their lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any, Final

from reqpath.render.bench import (
    cell_parts,
    count_arrivals,
    describe_host,
    describe_runs,
    format_p,
    list_notes,
)
from reqpath.render.bench_sentence import (
    FACTORS,
    name_cell,
    name_level,
    order_questions,
    render_control,
    render_question,
    render_verdicts,
)
from reqpath.render.page import build_page
from reqpath.render.palette import PALETTE
from reqpath.render.units import UNKNOWN, clean, format_bytes, format_instant, format_rate, format_share

if TYPE_CHECKING:
    from reqpath.bench.detail import Detail, Distribution, RunFigures
    from reqpath.bench.figures import CellFigures, Comparison, Pair, Part, Question, Verdict
    from reqpath.bench.plan import Plan
    from reqpath.bench.result import Capacity
    from reqpath.bench.statistics import Estimate

#: Parts of the worker's time. Source: docs/tiers.md.
_LENS: Final = {
    "cpu": "thread on the CPU",
    "run queue": "thread waiting for a CPU",
    "calls": "thread blocked in calls, at most",
    "other": "thread blocked for the GIL or a lock",
}


def render_bench_page(verdict: Verdict, detail: Detail) -> str:
    """Render the page."""
    title = f"reqpath bench: {', '.join(workload.title for workload in verdict.plan.workloads)}"
    when = format_instant(verdict.created_ns, milliseconds=False)
    sentences = [*render_verdicts(verdict), render_control(verdict.control)]
    body = (
        f'<main id="page">\n<p class="soft" id="what">{_text(describe_runs(verdict))} · {_text(when)}</p>\n'
        f'<h1>{_text(title)}</h1>\n<ul class="verdicts" id="sentences">\n'
        + "\n".join(f"<li>{_text(sentence)}</li>" for sentence in sentences)
        + f'\n</ul>\n<p class="soft" id="host">{_text(describe_host(verdict.host))}</p>\n'
        "<noscript><p>This page draws its figures by a script of its own, which this browser or viewer does "
        "not run. Open the file in a browser.</p></noscript>\n</main>"
    )
    return build_page(title, body, build_bench_data(verdict, detail), ("parts.js", "bench.js"))


def build_bench_data(verdict: Verdict, detail: Detail) -> dict[str, Any]:
    """Return what the page's script draws."""
    plan = verdict.plan
    names = [workload.name for workload in plan.workloads]
    places = {cell.key: place for place, cell in enumerate(plan.cells)}
    capacities = {capacity.cell: capacity for capacity in detail.capacities}
    files, configurations = _number_files(detail)
    return {
        "palette": {tier: letter for tier, (letter, _) in PALETTE.items()},
        "workloads": [
            {
                "title": workload.title,
                "cells": [n for n, cell in enumerate(plan.cells) if cell.workload == workload.name],
            }
            for workload in plan.workloads
        ],
        "questions": [
            _question_to_json(number, names.index(question.workload.name), question)
            for number, question in enumerate(order_questions(verdict))
        ],
        "control": {
            "cell": places[verdict.control.cell.key],
            "sentence": render_control(verdict.control),
            "mean": _comparison_to_json(verdict.control.mean),
            "slowest": _comparison_to_json(verdict.control.slowest),
            "blocks": detail.control_ns,
        },
        "cells": [
            {
                **_cell_to_json(cell),
                "workload": names.index(cell.workload.name),
                **_distribution_to_json(detail.distributions.get(cell.cell.key)),
                **_capacity_to_json(capacities.get(cell.cell.key)),
                "files": configurations.get(cell.cell.key, []),
            }
            for cell in verdict.cells
        ],
        "runs": [_run_to_json(run, places[run.cell]) for run in detail.runs if run.cell in places],
        "notes": [*list_notes(verdict), *count_arrivals(verdict)],
        "machine": _list_machine(verdict),
        "plan": _list_plan(plan, detail.rates),
        "files": files,
        "command": verdict.command,
    }


def _question_to_json(number: int, workload: int, question: Question) -> dict[str, Any]:
    mean, slowest = question.mean, question.slowest
    second, first = (name_level(question.factor, level) for level in (question.second, question.first))
    title = question.workload.title
    if question.connection == "per-request":
        title += " with a connection of its own"
    return {
        "id": f"question-{number}",
        "heading": f"What changes with {second} instead of {first}, for {title}?",
        "sentence": render_question(question),
        "workload": workload,
        "compared": FACTORS[question.factor]
        + (", per request" if question.connection == "per-request" else ""),
        "levels": f"{question.first} → {question.second}",
        "mean": _comparison_to_json(mean),
        "slowest": _comparison_to_json(slowest),
        "parts": _parts_to_json(mean, slowest) if mean and slowest else [],
        "lens": _lens_to_json(mean, slowest) if mean and slowest else [],
        "own": _comparison_to_json(question.own),
        "own_names": [part.name for part in question.own.parts] if question.own else [],
        "pairs": [_pair_to_json(pair, database=question.workload.database) for pair in question.pairs],
    }


def _comparison_to_json(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    return {
        "base_ns": comparison.base_ns,
        "client": _estimate_to_json(comparison.client),
        "sum_ns": comparison.parts_sum_ns if comparison.parts else None,
        "base_sum_ns": sum(part.base_ns for part in comparison.parts) if comparison.parts else None,
        "resolvable_ns": comparison.resolvable_ns,
        "p": comparison.p_adjusted,
        "p_text": format_p(comparison.p_adjusted),
        "outcome": comparison.outcome,
    }


def _estimate_to_json(estimate: Estimate) -> dict[str, Any]:
    return {
        "value_ns": estimate.value_ns,
        "low_ns": estimate.low_ns,
        "high_ns": estimate.high_ns,
    }


def _parts_to_json(mean: Comparison, slowest: Comparison) -> list[dict[str, Any]]:
    """Return a row for each segment that either comparison has, in the order of the path."""
    of_slowest = {part.name: part for part in slowest.parts}
    carriers = {part.name for part in (*mean.carriers, *slowest.carriers)}
    return [
        {
            **_part_to_json(part, of_slowest.get(part.name)),
            "tier": part.tier,
            "carries": part.name in carriers,
        }
        for part in mean.parts
    ]


def _lens_to_json(mean: Comparison, slowest: Comparison) -> list[dict[str, Any]]:
    of_slowest = {part.name: part for part in slowest.lens}
    return [
        {**_part_to_json(part, of_slowest.get(part.name)), "name": _LENS[part.name]} for part in mean.lens
    ]


def _part_to_json(part: Part, tail: Part | None) -> dict[str, Any]:
    return {
        "name": part.name,
        "base_ns": part.base_ns,
        "mean": _estimate_to_json(part.difference),
        "slowest": None if tail is None else _estimate_to_json(tail.difference),
    }


def _pair_to_json(pair: Pair, *, database: bool) -> dict[str, Any]:
    return {
        "first": name_cell(pair.first, database=database),
        "second": name_cell(pair.second, database=database),
        "blocks": pair.blocks,
        "client": None if pair.client is None else _estimate_to_json(pair.client),
        "note": pair.left_out or ("not as the others" if pair.differs else ""),
    }


def _cell_to_json(figures: CellFigures) -> dict[str, Any]:
    return {
        "name": name_cell(figures.cell, database=figures.workload.database),
        "runs": figures.runs,
        "valid": figures.valid,
        "saturated": figures.saturated,
        "capacity_per_s": figures.capacity_per_s,
        "rate_per_s": figures.rate_per_s,
        "answered_per_s": figures.answered_per_s,
        "mean_ns": figures.mean_ns,
        "p50_ns": figures.p50_ns,
        "p90_ns": figures.p90_ns,
        "p99_ns": figures.p99_ns,
        "slowest_ns": figures.slowest_ns,
        "lag_p99_ns": figures.lag_p99_ns,
        "little": figures.little,
        "planned": figures.planned,
        "failed": figures.failed,
        "failures": ", ".join(f"{count:,} {kind}" for kind, count in sorted(figures.failures.items())),
        "dropped": figures.dropped,
        "listen_overflows": figures.listen_overflows,
        "segments": _segments_to_json(figures.segments_ns),
        "slowest_segments": _segments_to_json(figures.slowest_segments_ns),
    }


def _segments_to_json(segments_ns: dict[str, float]) -> list[tuple[str, str, float]]:
    """Return each segment's name, tier and time, in the order in which a request meets them."""
    return [(name, tier, ns) for name, (tier, ns) in zip(segments_ns, cell_parts(segments_ns), strict=True)]


def _distribution_to_json(distribution: Distribution | None) -> dict[str, Any]:
    if distribution is None:
        return {"requests": 0, "points": [], "percentiles": [], "highest_ns": None}
    return {
        "requests": distribution.requests,
        "points": distribution.points,
        "percentiles": list(distribution.percentiles_ns.items()),
        "highest_ns": distribution.highest_ns,
    }


def _capacity_to_json(capacity: Capacity | None) -> dict[str, Any]:
    if capacity is None:
        return {"steps": [], "tool": ""}
    return {
        "steps": [(step.concurrency, step.requests_per_s, step.errors) for step in capacity.steps],
        "tool": capacity.tool,
    }


def _run_to_json(run: RunFigures, cell: int) -> dict[str, Any]:
    return {
        "number": run.number,
        "block": run.block + 1,
        "cell": cell,
        "twin": run.twin,
        # In whole ns it is more than a number of JavaScript's holds.
        "start_ms": run.start_ns / 1_000_000,
        "start": format_instant(run.start_ns, milliseconds=False),
        "planned": run.planned,
        "answered": run.answered,
        "mean_ns": run.mean_ns,
        "slowest_ns": run.slowest_ns,
        "cpu_share": run.cpu_share,
        "generator_share": run.generator_share,
        "steal_share": run.steal_share,
        "left_out": run.left_out,
    }


def _list_machine(verdict: Verdict) -> list[tuple[str, str]]:
    host = verdict.host
    return [
        ("CPU", host.cpu_model or UNKNOWN),
        ("processors", str(host.cores)),
        ("CPU's governor", host.governor or UNKNOWN),
        ("memory", format_bytes(host.memory_bytes) if host.memory_bytes else UNKNOWN),
        ("Linux", host.kernel),
        ("net.core.somaxconn", UNKNOWN if host.somaxconn is None else str(host.somaxconn)),
        *sorted(host.versions.items()),
        ("nginx's stamps are good to", _format_resolution(verdict.resolution_ns)),
        ("identity", host.identity or UNKNOWN),
    ]


def _format_resolution(ns: int) -> str:
    size, unit = next(each for each in ((1_000_000, "ms"), (1_000, "µs"), (1, "ns")) if ns >= each[0])
    return f"{ns // size} {unit}"


def _list_plan(plan: Plan, rates: dict[str, float]) -> list[tuple[str, str]]:
    """Return what was decided before the first run, and what came of it."""
    load, twin = plan.load, plan.cell(plan.twin)
    found = [
        (workload.title, f"GET {workload.path}{_format_sent(rates.get(workload.name))}")
        for workload in plan.workloads
    ]
    if plan.app:
        found.append(("app", plan.app))
    found += [
        ("blocks", f"{plan.blocks}, in an order by seed {plan.seed}"),
        ("a run", f"{plan.warm_up_s:g} s that are not counted, {plan.seconds_s:g} s that are"),
        ("run twice in each block (A/A)", name_cell(twin, database=plan.workload(twin.workload).database)),
    ]
    if load.rates_per_s:
        found.append(("load", "rates that were given"))
    else:
        steps = ", ".join(map(str, load.capacity_steps))
        found += [
            ("load", f"{format_share(load.share)} of the slowest set-up's capacity"),
            ("capacity", f"a closed loop of {steps} connections, {load.capacity_step_s:g} s each"),
        ]
    return [
        *found,
        ("at most under way", f"{load.max_in_flight:,} requests"),
        ("an answer has failed after", f"{load.timeout_s:g} s"),
    ]


def _format_sent(rate_per_s: float | None) -> str:
    return "" if rate_per_s is None else f", {format_rate(rate_per_s)} planned"


def _number_files(detail: Detail) -> tuple[list[Any], dict[str, list[tuple[str, int]]]]:
    """Return each text of a configuration once, as lines, and for each cell its files' names and texts."""
    numbers: dict[str, int] = {}
    by_cell = {
        each.cell: [(name, numbers.setdefault(text, len(numbers))) for name, text in each.files.items()]
        for each in detail.configurations
    }
    return [list(_split_lines(text)) for text in numbers], by_cell


def _split_lines(text: str) -> Iterable[tuple[int, str]]:
    """Yield each line's indentation and what is on it: on a page, white space in a text is single blanks."""
    for line in text.expandtabs(4).splitlines():
        yield len(line) - len(line.lstrip()), line.strip()


def _text(value: str) -> str:
    return escape(clean(value))
