"""A benchmark's verdict as one HTML page that needs nothing else: tables, and bars as inline SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from reqpath.render.bench import (
    cell_parts,
    describe_host,
    describe_runs,
    describe_times,
    format_p,
    list_notes,
)
from reqpath.render.bench_sentence import (
    FACTORS,
    format_estimate,
    name_cell,
    name_level,
    render_control,
    render_verdicts,
)
from reqpath.render.palette import PALETTE
from reqpath.render.units import UNKNOWN, clean, format_duration, format_instant, format_rate, format_share

if TYPE_CHECKING:
    from reqpath.bench.figures import CellFigures, Comparison, Question, Verdict

#: Units of a bar's width; the page makes it as wide as there is room.
_BAR: Final = 640
_EXPLANATION: Final = (
    "Differences of means over blocks, with their 95 % intervals. Found from: what would have been found "
    "with 80 % chance. p: Wilcoxon's, adjusted by Holm among all comparisons."
)
#: Parts of the worker's time. Source: docs/tiers.md.
_LENS: Final = {
    "cpu": "thread on the CPU",
    "run queue": "thread waiting for a CPU",
    "calls": "thread blocked in calls, at most",
    "other": "thread blocked for the GIL or a lock",
}
_STYLE: Final = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }
th { font-weight: 600; text-align: right; border-bottom: 1px solid #8888; }
th, td { padding: .15rem .8rem .15rem 0; } th { vertical-align: bottom; }
td { text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.dim { opacity: .6; } .different td { font-weight: 600; } tr.sum td { border-top: 1px solid #8888; }
.tier { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
pre { overflow-x: auto; } svg { vertical-align: middle; width: 100%; min-width: 12rem; height: 16px; }
table.bars { display: table; width: 100%; } table.bars td:last-child { width: 60%; }
"""


def render_verdict_html(verdict: Verdict) -> str:
    """Render the whole page."""
    titles = ", ".join(workload.title for workload in verdict.plan.workloads)
    sections = [
        f"<h1>reqpath bench: {_text(titles)}</h1>",
        f"<p class=dim>{_text(format_instant(verdict.created_ns, milliseconds=False))} · "
        f"{_text(describe_runs(verdict))}<br>{_text(describe_host(verdict.host))}</p>",
        _render_list([*render_verdicts(verdict), render_control(verdict.control)]),
        "<h2>What was compared</h2>",
        _render_questions(verdict),
        f"<p class=dim>{_text(_EXPLANATION)}</p>",
        *(_render_parts(question) for question in verdict.questions),
        "<h2>Every set-up</h2>",
        _render_cells(verdict),
        "<h2>Where the time goes</h2>",
        _render_bars(verdict),
    ]
    notes = list_notes(verdict)
    if notes:
        sections += ["<h2>To be known</h2>", _render_list(f"{what}: {meaning}" for what, meaning in notes)]
    if verdict.command:
        sections += ["<h2>Again</h2>", f"<pre>{_text(verdict.command)}</pre>"]
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>reqpath bench: {_text(titles)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _render_questions(verdict: Verdict) -> str:
    rows = [
        _row(
            [question.workload.title, FACTORS[question.factor], f"{question.first} → {question.second}"],
            question.mean,
            question.slowest,
        )
        for question in verdict.questions
    ]
    control = verdict.control
    rows.append(_row([control.cell.workload, "A/A", name_cell(control.cell)], control.mean, control.slowest))
    return _table(
        (
            "for",
            "compared",
            "levels",
            "base",
            "difference",
            "found from",
            "p",
            "slowest 1 %",
            "found from",
            "p",
        ),
        rows,
    )


def _row(names: list[str], mean: Comparison | None, slowest: Comparison | None) -> tuple[str, list[str]]:
    if mean is None or slowest is None:
        return "dim", [*names, "", "not compared", *[""] * 5]
    values = [format_duration(mean.base_ns)]
    for one in (mean, slowest):
        values += [
            format_estimate(one.client),
            format_duration(one.resolvable_ns, digits=2),
            format_p(one.p_adjusted),
        ]
    different = "different" in (mean.outcome, slowest.outcome)
    return "different" if different else "", [*names, *values]


def _render_parts(question: Question) -> str:
    mean, slowest = question.mean, question.slowest
    if mean is None or slowest is None:
        return ""
    second, first = (name_level(question.factor, level) for level in (question.second, question.first))
    of_slowest = {part.name: part for part in slowest.parts}
    rows: list[tuple[str, list[str]]] = []
    for part in mean.parts:
        tail = of_slowest.get(part.name)
        rows.append(
            (
                "different" if part in mean.carriers or tail in slowest.carriers else "",
                [
                    part.name,
                    format_duration(part.base_ns),
                    format_estimate(part.difference),
                    format_estimate(tail.difference) if tail else UNKNOWN,
                ],
            )
        )
    sums = [
        "sum of the segments",
        format_duration(sum(part.base_ns for part in mean.parts)),
        format_duration(mean.parts_sum_ns, sign=True),
        format_duration(slowest.parts_sum_ns, sign=True),
    ]
    client = [
        "client",
        format_duration(mean.base_ns),
        format_estimate(mean.client),
        format_estimate(slowest.client),
    ]
    rows += [("sum", sums), ("different", client)]
    if mean.lens:
        of_slowest = {part.name: part for part in slowest.lens}
        rows += [
            (
                "dim",
                [
                    _LENS[part.name],
                    format_duration(part.base_ns),
                    format_estimate(part.difference),
                    format_estimate(of_slowest[part.name].difference) if part.name in of_slowest else UNKNOWN,
                ],
            )
            for part in mean.lens
        ]
    title = f"{question.workload.title}: {second} instead of {first}"
    return f"<h2>{_text(title)}</h2>\n" + _table(
        ("segment", "before", "difference", "slowest 1 %"),
        rows,
        tiers={part.name: part.tier for part in mean.parts},
    )


def _render_cells(verdict: Verdict) -> str:
    rows = []
    for cell in verdict.cells:
        failures = ", ".join(f"{count:,} {kind}" for kind, count in sorted(cell.failures.items()))
        rows.append(
            (
                "dim" if cell.saturated or not cell.valid else "",
                [
                    cell.workload.title,
                    name_cell(cell.cell, database=cell.workload.database),
                    f"{cell.valid} of {cell.runs}",
                    UNKNOWN if cell.capacity_per_s is None else format_rate(cell.capacity_per_s),
                    UNKNOWN if cell.rate_per_s is None else format_rate(cell.rate_per_s),
                    UNKNOWN if cell.answered_per_s is None else format_rate(cell.answered_per_s),
                    *describe_times(cell),
                    format_duration(cell.lag_p99_ns),
                    UNKNOWN if cell.little is None else format_share(cell.little),
                    (failures or "0") if cell.planned else UNKNOWN,
                    f"{cell.dropped:,}",
                    UNKNOWN if cell.listen_overflows is None else f"{cell.listen_overflows:,}",
                ],
            )
        )
    head = ("for", "set-up", "valid runs", "can do", "sent", "answered", "mean", "p50", "p90", "p99")
    more = ("generator's lag, p99", "under way, of λ·W", "failed", "dropped", "listen overflows")
    return _table((*head, *more), rows)


def _render_bars(verdict: Verdict) -> str:
    rows = []
    for cell in verdict.cells:
        for name, total_ns, segments_ns in (
            ("mean", cell.mean_ns, cell.segments_ns),
            ("slowest 1 %", cell.slowest_ns, cell.slowest_segments_ns),
        ):
            if not total_ns:
                continue
            of_all = [
                (other.mean_ns if name == "mean" else other.slowest_ns) or 0.0
                for other in verdict.cells
                if other.workload == cell.workload
            ]
            words = (cell.workload.title, _name(cell), name, format_duration(total_ns))
            before = "".join(f"<td>{_text(word)}</td>" for word in words)
            rows.append(f"<tr>{before}<td>{_render_bar(segments_ns, max(of_all))}</td></tr>")
    legend = " ".join(
        f'<span><span class=tier style="background:{colour}"></span>{tier}</span>'
        for tier, (_, colour) in PALETTE.items()
    )
    return f"<p>{legend}</p>\n<table class=bars>\n" + "\n".join(rows) + "\n</table>"


def _render_bar(segments_ns: dict[str, float], longest_ns: float) -> str:
    at = 0.0
    drawn = []
    for name, (tier, ns) in zip(segments_ns, cell_parts(segments_ns), strict=True):
        width = max(0.0, ns) / longest_ns * _BAR
        if width < 0.05:
            continue
        drawn.append(
            f'<rect x="{at:.1f}" width="{width:.1f}" height="16" fill="{PALETTE[tier][1]}">'
            f"<title>{_text(name)}: {_text(format_duration(ns))}</title></rect>"
        )
        at += width
    return f'<svg viewBox="0 0 {_BAR} 16" preserveAspectRatio="none" role="img">{"".join(drawn)}</svg>'


def _name(cell: CellFigures) -> str:
    return name_cell(cell.cell, database=cell.workload.database)


def _table(
    head: Sequence[str], rows: Iterable[tuple[str, list[str]]], tiers: dict[str, str] | None = None
) -> str:
    """Render a table; each row has a class, and a first cell that names a segment has its tier's colour."""
    lines = ["<table>", f"<tr>{''.join(f'<th>{_text(name)}</th>' for name in head)}</tr>"]
    for kind, values in rows:
        tier = (tiers or {}).get(values[0])
        swatch = f'<span class=tier style="background:{PALETTE[tier][1]}"></span>' if tier else ""
        cells = "".join(
            f"<td>{swatch if number == 0 else ''}{_text(value)}</td>" for number, value in enumerate(values)
        )
        lines.append(f'<tr class="{kind}">{cells}</tr>' if kind else f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</table>"])


def _render_list(items: Iterable[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{_text(item)}</li>" for item in items) + "\n</ul>"


def _text(value: str) -> str:
    return escape(clean(value))
