"""The terminal page of a benchmark's verdict, and of two results beside each other."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from reqpath.render.bench_sentence import (
    FACTORS,
    format_estimate,
    name_cell,
    name_level,
    render_control,
    render_verdicts,
)
from reqpath.render.layout import build_notes, stack_sections
from reqpath.render.palette import PALETTE
from reqpath.render.text import MAX_WIDTH, build_bar, build_legend
from reqpath.render.units import UNKNOWN, clean, format_count, format_duration, format_rate, format_share

if TYPE_CHECKING:
    from reqpath.bench.figures import (
        CellFigures,
        CellShift,
        Comparison,
        Question,
        Remark,
        ResultComparison,
        Verdict,
    )
    from reqpath.bench.result import Host

_DIM: Final = "dim"
#: A segment with less of the first level's time is listed only when it carries the difference.
_LEAST_SHARE: Final = 0.01
_BAR: Final = 44


def render_verdict(verdict: Verdict, console: Console) -> None:
    """Print the verdict: sentences, the tiers of each difference, every cell's figures, what to know."""
    width = min(console.width, MAX_WIDTH)
    colour = console.color_system is not None
    console.print(build_verdict(verdict, width, colour=colour), highlight=False, markup=False)


def build_verdict(verdict: Verdict, width: int, *, colour: bool) -> RenderableType:
    """Build the page, at most `width` columns wide."""
    return stack_sections(
        [
            _build_head(verdict),
            _build_sentences([*render_verdicts(verdict), render_control(verdict.control)]),
            _build_questions(verdict),
            *(
                _build_parts(question)
                for question in verdict.questions
                if any(one and one.outcome == "different" for one in (question.mean, question.slowest))
            ),
            *(_build_cells(verdict, workload.name) for workload in verdict.plan.workloads),
            _build_bars(verdict, width, colour=colour),
            build_notes([*list_notes(verdict), *count_arrivals(verdict)]),
        ],
        width,
    )


def render_comparison(comparison: ResultComparison, console: Console) -> None:
    """Print two results beside each other."""
    width = min(console.width, MAX_WIDTH)
    notes = [
        (f"differs too: {clean(difference, 200)}", "so the difference can be due to that")
        for difference in comparison.differences
    ]
    notes += [(f"only in one result: {clean(key, 200)}", "not compared") for key in comparison.alone]
    notes += [
        (f"no verdict on {name_shift(shift)}", shift.mean.reason)
        for shift in comparison.cells
        if shift.mean is not None and shift.mean.outcome == "undecided"
    ]
    notes.append(
        (
            "two benchmarks share no blocks",
            "what else changed between them counts as a difference of the cells",
        )
    )
    console.print(
        stack_sections(
            [
                Text("reqpath bench compare", style="bold"),
                _build_sentences(render_shifts(comparison)),
                *(
                    _build_shifts(list(shifts))
                    for _, shifts in itertools.groupby(comparison.cells, _workload_of)
                ),
                build_notes(notes),
            ],
            width,
        ),
        highlight=False,
        markup=False,
    )


def render_shifts(comparison: ResultComparison) -> list[str]:
    """Say in which cells two results differ; at least one sentence."""
    different = [
        (shift, shift.mean) for shift in comparison.cells if shift.mean and shift.mean.outcome == "different"
    ]
    sentences = [
        f"{name_shift(shift)}: {format_estimate(mean.client)}"
        + "".join(f", {format_estimate(part.difference)} in {part.name}" for part in mean.carriers[:3])
        for shift, mean in different
    ]
    return sentences or ["No difference between the two results can be told."]


def comparison_to_json(comparison: ResultComparison) -> dict[str, Any]:
    """Return the comparison of two results as the object of docs/bench-json.md."""
    return {"sentences": render_shifts(comparison)} | dataclasses.asdict(comparison)


def _workload_of(shift: CellShift) -> str:
    return shift.workload.name


def _build_shifts(shifts: list[CellShift]) -> RenderableType:
    table = _table(clean(shifts[0].workload.name), "before", "difference", "slowest 1 %")
    for shift in shifts:
        name = name_cell(shift.cell, database=shift.workload.database)
        if shift.mean is None or shift.slowest is None:
            table.add_row(name, "", Text(shift.reason, style=_DIM))
            continue
        table.add_row(name, format_duration(shift.mean.base_ns), _mark(shift.mean), _mark(shift.slowest))
    return table


def name_shift(shift: CellShift) -> str:
    """Return the name of a cell that two results have."""
    return f"{clean(shift.workload.name)}  {name_cell(shift.cell, database=shift.workload.database)}"


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as the object of docs/bench-json.md."""
    document = dataclasses.asdict(verdict)
    del document["host"], document["plan"]
    return {
        "sentences": render_verdicts(verdict),
        "control_sentence": render_control(verdict.control),
    } | document


def describe_host(host: Host) -> str:
    """Return a host in one line."""
    cores = format_count(host.cores, "core")
    governor = f", governor {host.governor}" if host.governor else ""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(host.versions.items()))
    return clean(
        f"{host.cpu_model or 'unknown CPU'}, {cores}{governor}, Linux {host.kernel}; {versions}", 1000
    )


def describe_runs(verdict: Verdict) -> str:
    """Return how much was run, in one line."""
    plan = verdict.plan
    planned = plan.blocks * (len(plan.cells) + 1)
    bad = verdict.runs - verdict.valid
    return (
        f"{format_count(len(plan.cells), 'cell')} in {verdict.blocks} of {format_count(plan.blocks, 'block')}"
        f": {verdict.runs} of {planned} runs of {plan.seconds_s:g} s{f', {bad} not valid' if bad else ''}"
    )


def list_notes(verdict: Verdict) -> list[tuple[str, str]]:
    """List what is to be known beside the figures, each with what it means."""
    notes = []
    if not verdict.complete:
        notes.append(
            (f"{verdict.runs} runs were made", "the benchmark was interrupted; --resume makes the others")
        )
    if verdict.blocks < verdict.blocks_needed:
        notes.append(
            (
                f"{format_count(verdict.blocks, 'block')}",
                f"these comparisons need {verdict.blocks_needed}; in fewer, all can agree by chance",
            )
        )
    notes += [(f"invalid {_of(remark)}", f"{remark.name}; {remark.example}") for remark in verdict.invalid]
    notes += [(f"{remark.name} {_of(remark)}", remark.example) for remark in verdict.limits]
    for question in verdict.questions:
        for pair in question.pairs:
            if pair.left_out and question.mean is not None:
                what = f"{pair.first.key} and {pair.second.key}"
                notes.append((f"not compared {what}", pair.left_out))
        for one in (question.mean, question.slowest):
            if one is not None and not one.adds_up:
                notes.append(
                    (
                        f"{question.workload.name}, {FACTORS[question.factor]}",
                        f"the segments sum up to {format_duration(one.parts_sum_ns, sign=True)} "
                        f"and the client has {format_estimate(one.client)}",
                    )
                )
    if verdict.resolution_ns >= 1_000_000:
        notes.append(
            (
                "nginx's stamps are good to 1 ms",
                "nginx.* and queue are means over many rounded ones; its perl module brings 1 µs",
            )
        )
    return notes


def count_arrivals(verdict: Verdict) -> list[tuple[str, str]]:
    """Say what became of all arrivals, of invalid runs too, and whether Little's law held; A/A apart."""
    cells = verdict.cells
    planned = sum(cell.planned for cell in cells)
    if not planned:
        return []
    failed, dropped = sum(sum(cell.failures.values()) for cell in cells), sum(cell.dropped for cell in cells)
    overflows = [cell.listen_overflows for cell in cells if cell.listen_overflows is not None]
    full = f"{sum(overflows):,}" if overflows else "an unknown number"
    off = max((abs(cell.little - 1) for cell in cells if cell.little is not None), default=None)
    little = "" if off is None else f"; in valid runs Little's law held to {off:.1%}"
    text = f"{failed:,} failed, {dropped:,} were dropped, {full} met a full listen queue{little}"
    return [(f"of {planned:,} arrivals, A/A apart", text)]


def _build_head(verdict: Verdict) -> RenderableType:
    titles = ", ".join(workload.title for workload in verdict.plan.workloads)
    return Group(
        Text.assemble(("reqpath bench", "bold"), f"  {clean(titles)}"),
        Text(describe_runs(verdict), style=_DIM),
        Text(describe_host(verdict.host), style=_DIM),
    )


def _build_sentences(sentences: Sequence[str]) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0))
    for sentence in sentences:
        table.add_row("·", Text(clean(sentence), style="bold"))
    return table


def _build_questions(verdict: Verdict) -> RenderableType:
    table = _table("compared", "difference", "found from")

    def add(workload: str, what: str, mean: Comparison | None) -> None:
        table.add_row(
            Text.assemble(clean(workload), (f"  {what}", _DIM)),
            _mark(mean) if mean else "not compared",
            format_duration(mean.resolvable_ns, digits=2) if mean else UNKNOWN,
        )

    for question in verdict.questions:
        levels = f"{question.first} → {question.second}"
        named = question.factor in ("hop1", "hop2", "planted_us")
        what = f"{FACTORS[question.factor]}  {levels}" if named else levels
        what += ", per request" if question.connection == "per-request" else ""
        add(question.workload.name, what, question.mean)
    add(verdict.control.cell.workload, "A/A", verdict.control.mean)
    return table


def _build_parts(question: Question) -> RenderableType | None:
    mean, slowest = question.mean, question.slowest
    if mean is None or slowest is None:
        return None
    first = name_level(question.factor, question.first)
    second = name_level(question.factor, question.second)
    table = _table("segment", "before", "difference", "slowest 1 %")
    of_slowest = {part.name: part for part in slowest.parts}
    for part in mean.parts:
        tail = of_slowest.get(part.name)
        carries = part in mean.carriers or tail in slowest.carriers
        if part.base_ns < mean.base_ns * _LEAST_SHARE and not carries:
            continue
        letter, hex_colour = PALETTE[part.tier]
        style = "" if carries else _DIM
        table.add_row(
            Text.assemble((letter, hex_colour), " ", (part.name, style)),
            Text(format_duration(part.base_ns, digits=2), style=style),
            Text(format_estimate(part.difference), style=style),
            Text("" if tail is None else format_estimate(tail.difference), style=style),
        )
    table.add_section()
    table.add_row(
        "  sum of all",
        format_duration(sum(part.base_ns for part in mean.parts), digits=3),
        format_duration(mean.parts_sum_ns, sign=True),
        format_duration(slowest.parts_sum_ns, sign=True),
    )
    table.add_row(
        Text("  client", style="bold"),
        Text(format_duration(mean.base_ns, digits=3), style="bold"),
        Text(format_estimate(mean.client), style="bold"),
        Text(format_estimate(slowest.client), style="bold"),
    )
    title = f"{clean(question.workload.title)}: {second} instead of {first}"
    return Group(Text(title, style=_DIM), table)


def _build_cells(verdict: Verdict, workload: str) -> RenderableType:
    table = _table(workload, "can do", "sent", "mean", "p50", "p90", "p99", "failed")
    for cell in verdict.cells:
        if cell.cell.workload != workload:
            continue
        failed = format_share(cell.failed / cell.planned) if cell.planned else UNKNOWN
        table.add_row(
            name_cell(cell.cell, database=cell.workload.database),
            UNKNOWN if cell.capacity_per_s is None else format_rate(cell.capacity_per_s),
            UNKNOWN if cell.rate_per_s is None else format_rate(cell.rate_per_s),
            *describe_times(cell),
            failed,
        )
    return table


def describe_times(cell: CellFigures) -> tuple[str, str, str, str]:
    """Return mean, p50, p90 and p99 of a cell; of a saturated one that it is."""
    if cell.saturated:
        return "saturated", "", "", ""
    if not cell.valid:
        return ("no valid run" if cell.runs else UNKNOWN), "", "", ""
    return (
        format_duration(cell.mean_ns),
        format_duration(cell.p50_ns),
        format_duration(cell.p90_ns),
        format_duration(cell.p99_ns),
    )


def _build_bars(verdict: Verdict, width: int, *, colour: bool) -> RenderableType | None:
    drawn = [cell for cell in verdict.cells if cell.mean_ns]
    if not drawn:
        return None
    longest_ns: dict[str, float] = {}
    for cell in drawn:
        longest_ns[cell.workload.name] = max(longest_ns.get(cell.workload.name, 0.0), cell.mean_ns or 0.0)
    table = Table.grid(padding=(0, 1, 0, 0))
    seen: list[tuple[str, float]] = []
    names = [
        f"{clean(cell.workload.name)}  {name_cell(cell.cell, database=cell.workload.database)}"
        for cell in drawn
    ]
    for cell, name in zip(drawn, names, strict=True):
        parts = cell_parts(cell.segments_ns)
        seen += parts
        share = (cell.mean_ns or 0.0) / longest_ns[cell.workload.name]
        cells = max(8, round(share * min(_BAR, width - max(map(len, names)) - 1)))
        table.add_row(Text(name, style=_DIM, no_wrap=True), build_bar(parts, cells, colour=colour))
    return Group(Text("where the mean goes", style=_DIM), table, build_legend(seen))


def cell_parts(segments_ns: dict[str, float]) -> list[tuple[str, float]]:
    """Return each segment's tier and time, in the order in which a request meets them."""
    from reqpath.tiers import SEGMENTS

    tiers = {segment.name: segment.tier for segment in SEGMENTS}
    return [
        (tiers.get(name, "client" if name.startswith("client.") else "residual"), ns)
        for name, ns in segments_ns.items()
    ]


def _mark(comparison: Comparison) -> Text:
    """Return the difference, bold where it is one and dim where it is not."""
    style = {"different": "bold", "none": _DIM, "undecided": _DIM}[comparison.outcome]
    return Text(format_estimate(comparison.client), style=style)


def format_p(p: float | None) -> str:
    """Return a p with three digits after the point."""
    if p is None:
        return UNKNOWN
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _of(remark: Remark) -> str:
    return f"in {format_count(remark.runs, 'run')}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=_DIM)
    # Rather than the figures, which could not be read when cut short.
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
