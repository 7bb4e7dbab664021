"""What differs between two sets of requests, as a sentence, as a terminal page and as JSON.

B is 1.8 ms [1.2, 2.4] slower than A's 12.1 ms: 1.6 ms [1.1, 2.0] of it in mysql.query.

The JSON is documented in docs/compare.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from reqpath.analyse.differences import Comparison, Part, RouteDifference, Side, Unknown
from reqpath.render.bench_sentence import format_estimate
from reqpath.render.layout import build_notes, stack_sections
from reqpath.render.palette import PALETTE
from reqpath.render.text import MAX_WIDTH, NARROW, cut_middle, has_colour
from reqpath.render.units import (
    UNKNOWN,
    clean,
    format_count,
    format_duration,
    format_instant,
    format_rate,
    format_span,
)
from reqpath.tiers import STAMPS

#: Of this format: bumped when a field goes or changes its meaning; new fields come without.
VERSION: Final = 1
_DIM: Final = "dim"
_ROWS: Final = 8
#: A part with less of the whole difference than this is not named in the sentence.
_NAMED_SHARE: Final = 0.1
_MAX_NAMED: Final = 3
#: With more of it than this by the routes' shares, the sentence says so.
_MIX_SHARE: Final = 0.2
#: Room for a waterfall, in cells, and below which there is none.
_MAX_BAR: Final = 40
_LEAST_BAR: Final = 10
_STARTS: Final = {
    "nginx_start": "nginx's start",
    "accept": "uWSGI's accept",
    "app_start": "the app's start",
}
_ENDS: Final = {"nginx_end": "nginx's last byte", "closed": "the body's end"}


def render_sentence(comparison: Comparison) -> str:
    """Say what changed, and where."""
    total = comparison.total
    difference = total.difference
    if comparison.outcome == "undecided":
        text = f"No verdict: {comparison.reason}."
        if comparison.first.requests and comparison.second.requests:
            text += (
                f" So far B's mean is {format_duration(total.second_ns, total.resolution_ns)}, "
                f"A's {format_duration(total.first_ns, total.resolution_ns)}."
            )
        return text
    base = format_duration(total.first_ns, total.resolution_ns)
    if comparison.outcome == "none":
        bound_ns = max(difference.bound_ns or 0.0, total.floor_ns)
        text = (
            f"No difference between A and B above {format_duration(bound_ns, digits=2)} of {base}"
            if bound_ns
            else f"No difference between A and B: the mean of both is {base}"
        )
        told = _name_parts([part for part in comparison.parts if part.differs], sign=True)
        if told:
            text += f"; but {told}"
        return f"{text}{_describe_hidden_mix(total)}."
    slower = difference.value_ns > 0
    amount = format_estimate(difference, sign=False, flip=not slower)
    text = f"B is {amount} {'slower' if slower else 'faster'} than A's {base}"
    return f"{text}{_place(comparison)}{_describe_mix(total)}."


def _place(comparison: Comparison) -> str:
    """Say in which segments the difference is."""
    whole_ns = comparison.total.difference.value_ns
    told = [
        part
        for part in sorted(comparison.parts, key=lambda part: -abs(part.difference.value_ns))
        if part.differs and abs(part.difference.value_ns) >= _NAMED_SHARE * abs(whole_ns)
    ]
    along = [part for part in told if part.difference.value_ns * whole_ns > 0]
    against = [part for part in told if part.difference.value_ns * whole_ns < 0]
    if not along:
        text = ", in no single segment"
    else:
        flip = whole_ns < 0
        named = [
            f"{format_estimate(part.difference, sign=False, flip=flip)} "
            f"{'of it ' if number == 0 else ''}in {part.name}"
            for number, part in enumerate(along[:_MAX_NAMED])
        ]
        text = f": {_join(named)}"
    if against:
        text += f", against {_name_parts(against, sign=True)}"
    return text


def _describe_mix(total: Part) -> str:
    """Say how much of a difference is another mix of routes, where that is much."""
    mix, whole_ns = total.mix, total.difference.value_ns
    if not mix.excludes_zero or abs(mix.value_ns) < _MIX_SHARE * abs(whole_ns):
        return ""
    within = total.within
    if not within.excludes_zero:
        rest = f"within routes, no difference above {format_duration(within.bound_ns, digits=2)}"
        return f". It comes from another mix of routes; {rest}"
    return (
        f". Of it {format_estimate(mix)} is another mix of routes, {format_estimate(within)} is within routes"
    )


def _describe_hidden_mix(total: Part) -> str:
    """Say where routes became slower or faster, and another mix of them hides it."""
    if not (total.mix.excludes_zero and total.within.excludes_zero):
        return ""
    return (
        f". Within routes it is {format_estimate(total.within)}, and another mix of routes brings "
        f"{format_estimate(total.mix)}"
    )


def _name_parts(parts: Sequence[Part], *, sign: bool) -> str:
    ordered = sorted(parts, key=lambda part: -abs(part.difference.value_ns))
    return _join(
        [f"{format_estimate(part.difference, sign=sign)} in {part.name}" for part in ordered[:_MAX_NAMED]]
    )


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def list_notes(comparison: Comparison) -> list[tuple[str, str]]:
    """List what is to be known beside the figures, each with what it means."""
    sides = (("A", comparison.first), ("B", comparison.second))
    notes = [
        (f"{clean(each.what)}: {clean(each.first, 200)} in A, {clean(each.second, 200)} in B", each.meaning)
        for each in comparison.changed
    ]
    extent = describe_extent(comparison)
    if extent:
        notes.append((extent, "both sides have these stamps, so like is compared with like"))
    notes += [_describe_unknown(each, comparison) for each in comparison.unknown]
    hints: dict[str, list[str]] = {}
    for each in comparison.unknown:
        for stamp in each.stamps:
            hints.setdefault(STAMPS[stamp][1], []).append(stamp)
    notes += [
        (f"missing {', '.join(dict.fromkeys(stamps))}", f"to have it, {hint}")
        for hint, stamps in hints.items()
    ]
    for name, side in sides:
        if side.left_out:
            notes.append(
                (
                    f"left out {format_count(side.left_out, 'request')} of {name}",
                    "they don't have the stamps between which the others are compared",
                )
            )
        if side.broken:
            notes.append(
                (
                    f"left out {format_count(side.broken, 'request')} of {name}",
                    "they took days, by their stamps",
                )
            )
        if side.slices_cut > len(side.slices):
            notes.append((f"{name} has {_describe_slices(side)}", "what an interval of it comes from"))
        if side.traces:
            notes.append(
                (
                    f"{name} is read from traces",
                    "a collector keeps errors and slow requests first: their mean is not that of all",
                )
            )
    return notes


def describe_extent(comparison: Comparison) -> str:
    """Say from where to where requests are compared; empty where that is the whole of them."""
    if comparison.start == "nginx_start" and comparison.end == "nginx_end":
        return ""
    return f"compared from {_STARTS[comparison.start]} to {_ENDS[comparison.end]}"


def _describe_slices(side: Side) -> str:
    count = format_count(len(side.slices), "slice")
    return f"{count} of time; others of {side.slices_cut} were empty, or joined as they resembled each other"


def _describe_unknown(unknown: Unknown, comparison: Comparison) -> tuple[str, str]:
    sides = [
        f"{name}"
        for name, count, side in (
            ("A", unknown.first, comparison.first),
            ("B", unknown.second, comparison.second),
        )
        if count * 100 > side.requests
    ]
    where = (
        f"{unknown.name} is unknown in {' and '.join(sides)}" if sides else f"{unknown.name} is not compared"
    )
    meaning = "its time is left out of both totals" if unknown.outside else "its time is in both residuals"
    return where, meaning


def comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as the object of docs/compare.md."""
    document = dataclasses.asdict(comparison)
    for name, side in (("first", comparison.first), ("second", comparison.second)):
        document[name]["mean_ns"] = side.mean_ns
        document[name]["rate_per_s"] = side.rate_per_s
    return {"version": VERSION, "sentence": render_sentence(comparison), **document}


def render_comparison(comparison: Comparison, console: Console, *, rows: int = _ROWS) -> None:
    """Print the comparison: the sentence, the waterfall, the routes, what is to be known."""
    width = min(console.width, MAX_WIDTH)
    page = build_comparison_page(comparison, width, colour=has_colour(console), rows=rows)
    console.print(page, highlight=False, markup=False)


def build_comparison_page(
    comparison: Comparison, width: int, *, colour: bool, rows: int = _ROWS
) -> RenderableType:
    """Return the page for `width` columns; `rows` bounds the table of routes."""
    compared = comparison.first.requests and comparison.second.requests
    return stack_sections(
        [
            Text(render_sentence(comparison), style="bold"),
            _build_sides(comparison, width),
            _build_parts(comparison, width, colour=colour) if compared else None,
            _build_mix(comparison, width) if compared else None,
            _build_routes(comparison, width, rows) if compared else None,
            build_notes(list_notes(comparison)),
        ],
        width,
    )


def _build_sides(comparison: Comparison, width: int) -> RenderableType:
    lines = []
    for name, side in (("A", comparison.first), ("B", comparison.second)):
        line = Text.assemble((f"{name}  ", "bold"), (clean(side.title, 300), _DIM))
        if side.first_ns is not None and side.last_ns is not None:
            first = format_instant(side.first_ns, milliseconds=False)
            line.append(f", {format_span(side.last_ns - side.first_ns)} from {first}", style=_DIM)
        lines.append(line)
    table = _table("", "requests", "rate", "mean", "p50", "p90", "p99")
    if width >= NARROW:
        table.add_column("errors", justify="right", no_wrap=True)
    for name, side in (("A", comparison.first), ("B", comparison.second)):
        latency = side.latency
        times = [latency.mean_ns, latency.p50_ns, latency.p90_ns, latency.p99_ns]
        table.add_row(
            Text(name, style="bold"),
            f"{side.requests:,}",
            UNKNOWN if side.rate_per_s is None else format_rate(side.rate_per_s),
            *(format_duration(ns if side.requests else None, side.resolution_ns) for ns in times),
            *([f"{side.errors:,}"] if width >= NARROW else []),
        )
    return Group(*lines, "", table)


def _build_parts(comparison: Comparison, width: int, *, colour: bool) -> RenderableType:
    """Return the waterfall: each row's bar begins where the one above ended."""
    parts = comparison.parts
    drawn = [*parts, comparison.total]
    names = max(len(part.name) for part in drawn) + 2
    intervals = [format_estimate(part.difference) for part in drawn]
    narrow = width < NARROW
    room = width - names - max(map(len, intervals)) - (0 if narrow else 2 * 10) - 6
    bars = _draw_waterfall(comparison, min(room, _MAX_BAR), colour=colour) if room >= _LEAST_BAR else None
    table = _table("segment", *([] if narrow else ["A", "B"]), "difference")
    if bars:
        table.add_column("", no_wrap=True)
    for i, part in enumerate(drawn):
        whole = part is comparison.total
        if whole:
            table.add_section()
        style = "bold" if whole else "" if part.differs else _DIM
        letter, hex_colour = (" ", "") if whole else PALETTE[part.tier]
        means = [part.first_ns, part.second_ns]
        table.add_row(
            Text.assemble((letter, hex_colour), " ", (part.name, style)),
            *([] if narrow else [Text(format_duration(ns, part.resolution_ns), style=style) for ns in means]),
            Text(intervals[i], style=style),
            *([bars[i]] if bars else []),
        )
    return Group(table, Text(_EXPLANATION, style=_DIM))


_EXPLANATION: Final = (
    "Means of all requests, which add up; in brackets the 95 % interval, from slices of time."
)


def _draw_waterfall(comparison: Comparison, width: int, *, colour: bool) -> list[Text]:
    """Return a bar of `width` cells for each part and the total, on one scale."""
    steps: list[tuple[float, float]] = []
    at_ns = 0.0
    for part in comparison.parts:
        steps.append((at_ns, at_ns + part.difference.value_ns))
        at_ns += part.difference.value_ns
    steps.append((0.0, comparison.total.difference.value_ns))
    low_ns = min(0.0, *(min(step) for step in steps))
    high_ns = max(0.0, *(max(step) for step in steps))
    if high_ns == low_ns:
        return [Text() for _ in steps]
    scale = (width - 1) / (high_ns - low_ns)
    bars = []
    for part, (start_ns, end_ns) in zip([*comparison.parts, comparison.total], steps, strict=True):
        first = round((min(start_ns, end_ns) - low_ns) * scale)
        last = round((max(start_ns, end_ns) - low_ns) * scale)
        letter, hex_colour = PALETTE.get(part.tier, ("=", ""))
        bar = Text(" " * first, no_wrap=True)
        if last == first:
            bar.append("·" if end_ns == start_ns else "|", style=_DIM)
        elif colour and hex_colour:
            bar.append(letter.center(last - first), style=f"#1c1c1c on {hex_colour}")
        else:
            bar.append(letter * (last - first))
        bars.append(bar)
    return bars


def _build_mix(comparison: Comparison, width: int) -> RenderableType | None:
    if len(comparison.routes) < 2:
        return None
    total = comparison.total
    table = _table("of the whole", "difference")
    if width >= NARROW:
        table.add_column("", no_wrap=True, overflow="ellipsis", style=_DIM)
    for name, part, meaning in (
        ("within routes", total.within, "the same routes, slower or faster"),
        ("mix of routes", total.mix, "other shares of each route"),
    ):
        style = "" if part.excludes_zero else _DIM
        table.add_row(
            Text(name, style=style),
            Text(format_estimate(part), style=style),
            *([meaning] if width >= NARROW else []),
        )
    return table


def _build_routes(comparison: Comparison, width: int, rows: int) -> RenderableType | None:
    routes = comparison.routes
    if not routes:
        return None
    narrow = width < NARROW
    table = _table("route", *([] if narrow else ["requests", "A", "B"]), "difference", "of the whole")
    shown = routes[:rows]
    others = 26 + 16 if narrow else 26 + 16 + 36
    name_width = max(12, width - others)
    resolution_ns = comparison.total.resolution_ns
    for route in shown:
        style = "" if route.differs else _DIM
        means = _means_of(route)
        table.add_row(
            Text(cut_middle(clean(route.route), name_width), style=style),
            *(
                []
                if narrow
                else [
                    f"{route.first_requests:,} → {route.second_requests:,}",
                    *(format_duration(ns, resolution_ns, digits=2) for ns in means),
                ]
            ),
            Text(_describe_route(route), style=style),
            Text(format_duration(route.within_ns + route.mix_ns, digits=2, sign=True), style=style),
        )
    more = len(routes) - len(shown)
    if more <= 0:
        return table
    return Group(table, Text(f"and {format_count(more, 'route')} more in --json", style=_DIM))


def _means_of(route: RouteDifference) -> tuple[float | None, float | None]:
    return (
        route.first_sum_ns / route.first_requests if route.first_requests else None,
        route.second_sum_ns / route.second_requests if route.second_requests else None,
    )


def _describe_route(route: RouteDifference) -> str:
    if route.difference is None:
        return "only in A" if route.first_requests else "only in B"
    return format_estimate(route.difference)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=_DIM)
    table.add_column(first, no_wrap=True, overflow="ellipsis")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
