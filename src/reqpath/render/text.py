"""The breakdown as a terminal page of 80 columns, by rich.

The first screen answers the question: the sentence, the latency, the path as one ordered bar, the segments.
Below it: what the worker's time was, routes, statements, the slowest requests, workers and transports, and
what is missing or was lost. Whatever comes from a request is cleaned and never read as markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from reqpath.analyse import figures
from reqpath.analyse.figures import Breakdown, SegmentFigures
from reqpath.render.layout import build_notes, stack_sections
from reqpath.render.palette import PALETTE
from reqpath.render.sentence import render_sentence
from reqpath.render.units import (
    clean,
    format_count,
    format_duration,
    format_instant,
    format_rate,
    format_share,
    format_span,
)
from reqpath.tiers import STAMPS

if TYPE_CHECKING:
    from reqpath.traces.counts import TraceCounts

#: Wider lines are harder to read, not more telling.
MAX_WIDTH: Final = 100
#: Below this the tables keep their most telling columns only.
NARROW: Final = 64
_DIM: Final = "dim"
_ROWS: Final = 8
#: Of a route's cell, however little room there is.
_LEAST_NAME: Final = 12

Cells = Sequence[tuple[str, float]]


def render_report(breakdown: Breakdown, console: Console, *, rows: int = _ROWS) -> None:
    """Print the breakdown; `rows` bounds the tables of routes and of statements."""
    console.print(
        build_report(breakdown, min(console.width, MAX_WIDTH), colour=has_colour(console), rows=rows)
    )


def has_colour(console: Console) -> bool:
    """Whether colours will be seen, so that a bar needs no letters."""
    return console.color_system is not None and not console.no_color


def build_report(breakdown: Breakdown, width: int, *, colour: bool, rows: int = _ROWS) -> RenderableType:
    """Return the page for `width` columns."""
    sections: list[RenderableType | None] = [
        _build_head(breakdown),
        _build_bars(breakdown.whole, width, colour=colour),
        _build_segments(breakdown.whole, width),
        _build_lens(breakdown.whole, width),
        _build_routes(breakdown, width, rows),
        _build_statements(breakdown, width, rows),
        _build_slowest(breakdown, width),
        _build_workers(breakdown),
        build_notes(list_notes(breakdown)),
    ]
    return stack_sections(sections, width)


def build_bar(parts: Cells, width: int, *, colour: bool) -> Text:
    """Return one bar of `width` cells for the parts, (tier, magnitude), in order.

    With colour a part is a coloured field with its letter in the middle, without it is its letter repeated.
    """
    bar = Text(no_wrap=True)
    for tier, cells in _share_cells(parts, width):
        letter, hex_colour = PALETTE[tier]
        if colour:
            bar.append(letter.center(cells), style=f"#1c1c1c on {hex_colour}")
        else:
            bar.append(letter * cells)
    return bar


def build_legend(parts: Cells) -> Text:
    """Return the letters and names of the tiers that have any time in `parts`."""
    seen = {tier for tier, value in parts if value > 0}
    legend = Text()
    for tier, (letter, hex_colour) in PALETTE.items():
        if tier in seen:
            legend.append(letter, style=f"#1c1c1c on {hex_colour}")
            legend.append(f" {tier}   ")
    legend.rstrip()
    return legend


def _share_cells(parts: Cells, width: int) -> list[tuple[str, int]]:
    """Share `width` cells out by largest remainder, after one cell for each part that has any time."""
    merged: list[tuple[str, float]] = []
    for tier, value in parts:
        if value <= 0:
            continue
        if merged and merged[-1][0] == tier:
            merged[-1] = (tier, merged[-1][1] + value)
        else:
            merged.append((tier, value))
    total = sum(value for _, value in merged)
    # Less than a tenth of a cell is not drawn.
    merged = [(tier, value) for tier, value in merged if value * width * 10 >= total]
    total = sum(value for _, value in merged)
    if not merged or width < len(merged):
        return []
    exact = [value / total * (width - len(merged)) for _, value in merged]
    cells = [1 + int(share) for share in exact]
    by_remainder = sorted(range(len(merged)), key=lambda i: int(exact[i]) - exact[i])
    for i in by_remainder[: width - sum(cells)]:
        cells[i] += 1
    return [(tier, count) for (tier, _), count in zip(merged, cells, strict=True)]


def _build_head(breakdown: Breakdown) -> RenderableType:
    whole = breakdown.whole
    line = Text(format_count(whole.requests, "request"), style="bold")
    if breakdown.first_ns is not None and breakdown.last_ns is not None:
        line.append(f" in {format_span(breakdown.span_ns)}", style="not bold")
        if breakdown.rate_per_s is not None:
            line.append(f", {format_rate(breakdown.rate_per_s)}", style="not bold")
        if whole.errors:
            line.append(f", {format_count(whole.errors, 'error')}", style="not bold red")
        same_day = format_instant(breakdown.first_ns)[:10] == format_instant(breakdown.last_ns)[:10]
        first = format_instant(breakdown.first_ns, milliseconds=False)
        last = format_instant(breakdown.last_ns, date=not same_day, milliseconds=False)
        line.append(f"  {first} to {last}", style="not bold dim")
    total, resolution_ns = whole.total, whole.resolution_ns
    latency = Text()
    for name, ns in (
        ("mean", total.mean_ns),
        ("p50", total.p50_ns),
        ("p90", total.p90_ns),
        ("p99", total.p99_ns),
        ("max", total.max_ns),
    ):
        latency.append(f"{name} ", style=_DIM)
        latency.append(f"{format_duration(ns, resolution_ns)}   ")
    latency.rstrip()
    lines: list[RenderableType] = [line, "", Text(render_sentence(breakdown), style="bold"), "", latency]
    left_out = describe_left_out(whole)
    return Group(*lines, *([Text(left_out, style=_DIM)] if left_out else []))


def describe_left_out(whole: figures.Group) -> str | None:
    """Say which ends of the requests the totals don't have, in more than half of them."""
    missing = {stamp for stamp, count in whole.missing_stamps.items() if count * 2 > whole.requests}
    if not missing & {"nginx_start", "nginx_end"}:
        return None
    first, last = "nginx's start", "nginx's end"
    if "nginx_start" in missing:
        first = "the app's start" if "accept" in missing else "uWSGI's accept"
    if "nginx_end" in missing:
        last = "the body's end"
    return f"From {first} to {last}: the client waited longer, see what is missing."


def _build_bars(whole: figures.Group, width: int, *, colour: bool) -> RenderableType | None:
    table = Table.grid(
        Column(no_wrap=True),
        Column(no_wrap=True, justify="right"),
        Column(no_wrap=True),
        padding=(0, 1, 0, 0),
    )
    seen: list[str] = []
    for name, part, median in (("median", whole.median, True), ("slowest", whole.slowest, False)):
        parts = [
            (segment.tier, (segment.median_ns if median else segment.slowest_ns) or 0.0)
            for segment in whole.segments
        ]
        residual_ns = whole.residual.median_ns if median else whole.residual.slowest_ns
        parts.append(("residual", residual_ns))
        time = format_duration(part.mean_ns, whole.resolution_ns)
        table.add_row(Text(name, style=_DIM), time, build_bar(parts, width - 18, colour=colour))
        seen += [tier for tier, value in parts if value > 0 and tier not in seen]
    if not seen:
        return None
    return Group(table, build_legend([(tier, 1.0) for tier in seen]))


def _build_segments(whole: figures.Group, width: int) -> RenderableType:
    narrow = width < NARROW
    table = _table(
        "segment", "median path", f"slowest {'1 %' if whole.requests > 100 else 'one'}", width=width
    )
    if not narrow:
        for name in ("difference", "share"):
            table.add_column(name, justify="right", no_wrap=True)
    nothing = []
    for segment in whole.segments:
        if not segment.known:
            continue
        if not segment.share:
            nothing.append(segment.name)
            continue
        table.add_row(
            _label(segment),
            *_slices(segment.median_ns, segment.slowest_ns, segment.resolution_ns, narrow=narrow),
            *([] if narrow else [format_share(segment.share)]),
        )
    residual, resolution_ns = whole.residual, whole.resolution_ns
    table.add_row(
        Text.assemble((PALETTE["residual"][0], PALETTE["residual"][1]), " residual"),
        *_slices(residual.median_ns, residual.slowest_ns, resolution_ns, narrow=narrow),
        *([] if narrow else [format_share(residual.share)]),
    )
    table.add_section()
    table.add_row(
        "  total",
        *_slices(whole.median.mean_ns, whole.slowest.mean_ns, resolution_ns, narrow=narrow),
        *([] if narrow else [""]),
        style="bold",
    )
    attributed = Text(
        f"Attributed: {format_share(whole.attributed_share)} of the time, "
        f"{format_share(whole.attributed_median)} of the median request's.",
        style=_DIM,
    )
    if nothing:
        attributed.append(f" No time in {', '.join(nothing)}.")
    return Group(table, attributed)


def _slices(
    median_ns: float | None, slowest_ns: float | None, resolution_ns: int, *, narrow: bool
) -> list[str]:
    cells = [format_duration(median_ns, resolution_ns), format_duration(slowest_ns, resolution_ns)]
    if not narrow:
        difference_ns = None if median_ns is None or slowest_ns is None else slowest_ns - median_ns
        cells.append(format_duration(difference_ns, resolution_ns, sign=True))
    return cells


def _label(segment: SegmentFigures) -> Text:
    letter, hex_colour = PALETTE[segment.tier]
    return Text.assemble((letter, hex_colour), f" {segment.name}")


def _build_lens(whole: figures.Group, width: int) -> RenderableType | None:
    if not whole.lens.known:
        return None
    table = _table("worker's time", "median path", "slowest", width=width)
    meanings = {
        "wall": "from app start to the end",
        "cpu": "the thread ran",
        "run queue": "could run, the CPUs were busy",
        "blocked": "it slept",
        "calls": "at most: database calls, sending",
        "other": "at least: the GIL, locks, other",
    }
    narrow = width < NARROW
    if not narrow:
        table.add_column("", no_wrap=True, overflow="ellipsis", style=_DIM)
    for part in whole.lens.parts:
        table.add_row(
            f"{'    ' if part.name in ('calls', 'other') else '  '}{part.name}",
            format_duration(part.median_ns),
            format_duration(part.slowest_ns),
            *([] if narrow else [meanings[part.name]]),
        )
    if whole.lens.known == whole.requests:
        return table
    known = f"Measured in {_of_all(whole.lens.known, whole.requests)}."
    return Group(table, Text(known, style=_DIM))


def _build_routes(breakdown: Breakdown, width: int, rows: int) -> RenderableType | None:
    if not breakdown.routes:
        return None
    narrow = width < NARROW
    table = _table("route", "requests", "p50", "p99", width=width, expand=True)
    if not narrow:
        for name in ("of time", "errors"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("slowest in", no_wrap=True)
    total_ns = breakdown.whole.total.mean_ns * breakdown.whole.requests or 1.0
    for group in breakdown.routes[:rows]:
        resolution_ns = group.resolution_ns
        cells: list[RenderableType] = [
            _Name(clean(group.route or "")),
            f"{group.requests:,}",
            format_duration(group.total.p50_ns, resolution_ns, digits=2),
            format_duration(group.total.p99_ns, resolution_ns, digits=2),
        ]
        if not narrow:
            longest = max(group.segments, key=lambda segment: segment.slowest_ns or 0.0)
            cells += [
                format_share(group.total.mean_ns * group.requests / total_ns),
                f"{group.errors:,}" if group.errors else "",
                longest.name if longest.slowest_ns else "",
            ]
        table.add_row(*cells)
    return _with_more(table, len(breakdown.routes) - rows, "route")


def _build_statements(breakdown: Breakdown, width: int, rows: int) -> RenderableType | None:
    if not breakdown.statements:
        return None
    table = _table("statement", "count", "mean", "p99", "total", width=width, expand=True)
    for statement in breakdown.statements[:rows]:
        name = statement.statement if statement.statement is not None else f"({statement.kind})"
        text = Text(clean(name))
        if statement.errors:
            text = Text.assemble((f"{format_count(statement.errors, 'error')}: ", "red"), text)
        table.add_row(
            text,
            f"{statement.count:,}",
            format_duration(statement.mean_ns),
            format_duration(statement.p99_ns),
            format_duration(statement.total_ns),
        )
    more = _with_more(table, len(breakdown.statements) - rows, "statement")
    mean = breakdown.whole.operations_mean
    note = Text(f"{mean:.1f} database operations a request.", style=_DIM)
    return Group(more, note)


def _build_slowest(breakdown: Breakdown, width: int) -> RenderableType | None:
    if not breakdown.slowest:
        return None
    first = "slowest requests" if width >= NARROW else "slowest"
    table = _table(first, "total", "status", width=width, expand=True)
    table.add_column("the most in", no_wrap=True)
    if width >= NARROW:
        table.add_column("trace", no_wrap=True)
    for request in breakdown.slowest:
        cells: list[RenderableType] = [
            _Name(clean(request.route)),
            format_duration(request.total_ns, request.resolution_ns),
            "-" if request.status is None else str(request.status),
            request.longest,
        ]
        if width >= NARROW:
            cells.append(Text(clean(request.trace_id[:12]), style=_DIM))
        table.add_row(*cells)
    return table


def _build_workers(breakdown: Breakdown) -> RenderableType | None:
    lines = Text()
    hops = (
        ("nginx to uWSGI", breakdown.hop_transports, "request"),
        ("app to MySQL", breakdown.database_transports, "operation"),
    )
    for name, counts, noun in hops:
        known = {transport: count for transport, count in counts.items() if transport is not None}
        if known:
            parts = [
                f"{transport} ({format_count(count, noun)})" for transport, count in sorted(known.items())
            ]
            lines.append(f"{name}  ", style=_DIM)
            lines.append(f"{', '.join(parts)}\n")
    workers = breakdown.workers
    if not workers:
        return lines if lines.plain else None
    lines.append(format_count(len(workers), "worker"), style=_DIM)
    kinds = sorted({f"{worker.slots} {worker.concurrency}" for worker in workers if worker.slots > 1})
    if kinds:
        lines.append(f" of {', '.join(kinds)}", style=_DIM)
    hosts = {worker.host for worker in workers}
    lines.append("  busy ", style=_DIM)
    names = []
    for worker in workers[:16]:
        name = f"pid {worker.pids[-1]}" if worker.worker is None else f"{worker.worker}"
        host = f"{clean(worker.host, 40)}/" if len(hosts) > 1 else ""
        names.append(f"{host}{name}: {format_share(worker.busy_share)}")
    lines.append("  ".join(names))
    if len(workers) > 16:
        lines.append(f"  and {len(workers) - 16} more", style=_DIM)
    return lines


def list_notes(breakdown: Breakdown) -> list[tuple[str, str]]:
    """List what is missing, not believed, contradictory or lost, each with what to do or what was done."""
    whole = breakdown.whole
    notes: list[tuple[str, str]] = []
    by_hint: dict[str, list[str]] = {}
    for stamp, count in whole.missing_stamps.items():
        by_hint.setdefault(STAMPS[stamp][1], []).append(f"{stamp} in {_of_all(count, whole.requests)}")
    notes += [(f"missing {', '.join(stamps)}", hint) for hint, stamps in by_hint.items()]
    notes += [
        (f"rejected {clean(stamp, 40)} in {format_count(count, 'request')}", "it was there and not believed")
        for stamp, count in breakdown.rejected_stamps.items()
    ]
    if whole.skewed:
        notes.append(
            (
                f"skewed {_list_counts(whole.skewed)}",
                "the stamps contradict each other; the segment is unknown",
            )
        )
    if whole.clamped:
        notes.append(
            (f"set to 0: {_list_counts(whole.clamped)}", "negative within the resolution of the stamps")
        )
    if whole.abandoned:
        notes.append(
            (
                f"abandoned {format_count(whole.abandoned, 'request')}",
                "the worker went on after nginx gave up",
            )
        )
    if breakdown.retried:
        notes.append(
            (f"retried {format_count(breakdown.retried, 'request')}", "nginx took it to another worker")
        )
    notes += _list_losses(breakdown)
    if breakdown.traces is not None:
        notes += _list_trace_notes(breakdown.traces)
    resolution = _describe_resolution(whole)
    if resolution:
        notes.append(resolution)
    return notes


def _list_losses(breakdown: Breakdown) -> list[tuple[str, str]]:
    losses = breakdown.losses
    notes = []
    if losses.lost_records:
        reason = "written but not in the spool"
        if losses.evicted_records:
            files = format_count(losses.evicted_files, "file")
            reason += f"; the spool's bound removed {files} with {losses.evicted_records:,} of them"
        notes.append((f"lost {format_count(losses.lost_records, 'record')}", reason))
    if losses.torn_bytes:
        notes.append(
            (f"torn {format_count(losses.torn_bytes, 'byte')}", "after the last whole record of a file")
        )
    for name, reason in list(losses.foreign_files.items())[:3]:
        notes.append((f"skipped file {clean(name, 60)}", clean(reason, 100)))
    if len(losses.foreign_files) > 3:
        notes.append((f"skipped {len(losses.foreign_files) - 3} more files", "not a spool's"))
    if breakdown.dropped_operations:
        notes.append(
            (
                f"not listed {format_count(breakdown.dropped_operations, 'operation')}",
                "beyond max_operations of a request; their time is in the segments",
            )
        )
    return notes


def _list_trace_notes(traces: TraceCounts) -> list[tuple[str, str]]:
    """What to know of figures that were read from traces."""
    notes = [
        (
            f"read from {format_count(traces.traces, 'trace')}",
            "requests that were not kept as one are in the spool's report alone",
        )
    ]
    if traces.plain:
        notes.append(
            (
                f"without reqpath {format_count(traces.plain, 'request')}",
                "other instrumentation's spans: Flask and templates are in wsgi.app, fetching in mysql.query",
            )
        )
    if traces.without_request:
        notes.append((f"no request in {format_count(traces.without_request, 'trace')}", "left out"))
    if traces.unreadable:
        notes.append((f"unreadable {format_count(traces.unreadable, 'line')} or spans", "torn, or not OTLP"))
    if traces.cut_windows:
        notes.append(
            (
                f"incomplete {traces.cut_windows:,} ms",
                "Jaeger has more traces of them than it tells of at once",
            )
        )
    return notes


def _describe_resolution(whole: figures.Group) -> tuple[str, str] | None:
    coarse = sum(count for ns, count in whole.resolutions.items() if ns >= 1_000_000)
    if not coarse:
        return None
    fine = whole.requests - coarse
    return (
        "nginx's stamps are good to 1 ms" + (f" in {_of_all(coarse, whole.requests)}" if fine else ""),
        "so are nginx.*, queue and the totals; its perl module brings 1 µs: `reqpath config nginx`",
    )


def _table(first: str, *others: str, width: int, expand: bool = False) -> Table:
    """Return a table without lines; with `expand` the first column has what the others leave of `width`."""
    table = Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=_DIM, width=width * expand or None
    )
    table.add_column(first, no_wrap=True, overflow="ellipsis", ratio=1 if expand else None)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


class _Name:
    """A route in a cell: cut in its middle, since those of an app begin alike."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        """Return the least and the greatest width, in cells."""
        width = min(cell_len(self._text), options.max_width)
        return Measurement(min(width, _LEAST_NAME), width)

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield what fits into the cell."""
        yield Text(cut_middle(self._text, options.max_width), no_wrap=True, overflow="ellipsis")


def cut_middle(text: str, width: int) -> str:
    """Return a text in at most `width` cells, with an ellipsis for what of its middle is too much."""
    if cell_len(text) <= width:
        return text
    tail_width = (width - 1) // 2
    tail = text[len(text) - tail_width :] if tail_width > 0 else ""
    while cell_len(tail) > tail_width:
        tail = tail[1:]
    return f"{set_cell_size(text, width - 1 - tail_width).rstrip()}…{tail}"


def _with_more(table: Table, more: int, noun: str) -> RenderableType:
    if more <= 0:
        return table
    return Group(table, Text(f"and {format_count(more, noun)} more in --json", style=_DIM))


def _of_all(count: int, requests: int) -> str:
    return "all requests" if count == requests else f"{count:,} of {format_count(requests, 'request')}"


def _list_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{clean(name, 40)} in {count:,}" for name, count in counts.items())
