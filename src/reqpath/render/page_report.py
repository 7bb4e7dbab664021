"""The report as a page: the figures of `--json`, and beside them the aggregates that a selection is made of.

`render_report_page(breakdown, cube)` is the whole of it; `build_report_data` is what the page's script gets::

    {"report": {as --json prints}, "grid": {…}, "cells": {…}, "routes": {…}, "requests": [{…}], …}
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from html import escape
from typing import Any, Final

from reqpath.analyse.cube import Cube, Grid, Pairs
from reqpath.analyse.figures import Breakdown, resolution_of
from reqpath.path import RequestPath
from reqpath.record import AttributeValue, Operation, WorkerRecord, operation_time_ns
from reqpath.render import text, waterfall
from reqpath.render.document import breakdown_to_json
from reqpath.render.page import build_page
from reqpath.render.palette import PALETTE
from reqpath.render.units import clean, format_instant, format_span
from reqpath.tiers import NAMES, SEGMENTS

#: What a page knows of the tiers before it has any request.
_TIERS: Final = {
    "palette": {tier: letter for tier, (letter, _) in PALETTE.items()},
    "meanings": {segment.name: [segment.meaning, segment.excludes] for segment in SEGMENTS},
}
#: Stamps in their order, and from which record each comes.
_WORKER_OFFSETS: Final = (
    "flask_start",
    "view_start",
    "view_end",
    "response_start",
    "closed",
)


def render_report_page(breakdown: Breakdown, cube: Cube, *, jaeger: str | None = None) -> str:
    """Render the page; `jaeger` is the address of a Jaeger's user interface that has the traces."""
    data = build_report_data(breakdown, cube, jaeger=jaeger)
    body = _build_body(data["report"]["sentence"], "Open the file in a browser.")
    return build_page("reqpath report", body, data, ("parts.js", "report.js"))


def render_live_page(live: dict[str, Any]) -> str:
    """Render the page that asks its server for the figures; `live` is what assets/live.js says of it."""
    data = {**_TIERS, "report": {"requests": 0}, "live": live}
    body = _build_body("Waiting for the first figures", "Allow it to, or use reqpath report.")
    return build_page("reqpath serve", body, data, ("parts.js", "report.js", "live.js"), live=True)


def _build_body(sentence: str, remedy: str) -> str:
    return (
        f'<main id="page">\n<h1 id="sentence">{escape(clean(sentence))}</h1>\n'
        "<noscript><p>This page draws its figures by a script of its own, which this browser or viewer does "
        f"not run. {remedy}</p></noscript>\n</main>"
    )


def build_report_data(breakdown: Breakdown, cube: Cube, *, jaeger: str | None = None) -> dict[str, Any]:
    """Return what the page's script draws."""
    return {
        "report": breakdown_to_json(breakdown),
        **_TIERS,
        "span": format_span(breakdown.span_ns),
        "notes": text.list_notes(breakdown),
        "left_out": text.describe_left_out(breakdown.whole),
        "route_resolutions_ns": [group.resolution_ns for group in breakdown.routes],
        "resolution_ns": breakdown.whole.resolution_ns,
        "grid": _grid_to_json(cube.grid),
        # Its columns are long, and `asdict` copies each number.
        "cells": {field.name: getattr(cube.cells, field.name) for field in dataclasses.fields(cube.cells)},
        "slices": [dataclasses.asdict(each) for each in cube.slices],
        "routes": _pairs_to_json(cube.routes),
        "statements": _pairs_to_json(cube.statements),
        "attributes": {name: _pairs_to_json(pairs) for name, pairs in cube.attributes.items()},
        "requests": [
            {**_path_to_json(path), "cell": cell}
            for path, cell in zip(cube.samples, cube.sample_cells, strict=True)
        ],
        "jaeger": jaeger,
    }


def _grid_to_json(grid: Grid) -> dict[str, Any]:
    try:
        offset = datetime.fromtimestamp(grid.first_ns // 1_000_000_000).astimezone().utcoffset()
    except (ValueError, OverflowError, OSError):
        offset = None
    return {
        # Of the clock on the wall where the report was made, as the logs beside it have it.
        "offset_min": 0 if offset is None else round(offset.total_seconds() / 60),
        "first_ms": grid.first_ns / 1_000_000,
        "width_ms": grid.width_ns / 1_000_000,
        "width": format_width(grid.width_ns),
        "columns": grid.columns,
        "edges_ns": list(grid.edges_ns),
    }


def format_width(ns: int) -> str:
    """Return a round duration in its largest unit: `100 ms`, `15 min`, `6 h`."""
    units = (
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "min"),
        (1_000_000_000, "s"),
    )
    size, unit = next(((size, unit) for size, unit in units if ns % size == 0), (1_000_000, "ms"))
    return f"{ns // size} {unit}"


def _pairs_to_json(pairs: Pairs) -> dict[str, Any]:
    return {
        "values": list(pairs.values),
        "cell": pairs.cell,
        "value": pairs.value,
        "requests": pairs.requests,
        "sums": pairs.sums,
        "slowest": pairs.slowest,
    }


def _path_to_json(path: RequestPath) -> dict[str, Any]:
    timing, worker, info, line = path.timing, path.worker, path.info, path.nginx
    facts: list[tuple[str, str]] = [("path", path.url_path)]
    if info is not None:
        number = "" if info.worker is None else f"worker {info.worker}, "
        facts.append(("process", f"{number}pid {info.pid} on {info.host}"))
    if worker is not None:
        if worker.core is not None:
            facts.append(("core", str(worker.core)))
        if worker.transport is not None:
            facts.append(("nginx to uWSGI", worker.transport))
    if line is not None and line.client_address:
        facts.append(("client", line.client_address))
    return {
        "trace_id": path.trace_id,
        "route": path.route,
        "status": path.status,
        "at": format_instant(timing.start_ns),
        "total_ns": timing.total_ns,
        "resolution_ns": timing.resolution_ns,
        "segments": [
            [name, value, resolution_of(name, timing.resolution_ns)]
            for name, value in zip(NAMES, timing.segments, strict=True)
            if value
        ],
        "residual_ns": timing.residual_ns,
        "rows": [
            [row.label, row.tier, row.start_ns, row.end_ns, row.time_ns, row.resolution_ns, row.error]
            for row in waterfall.place_rows(path)
        ],
        "stamps": _list_stamps(path),
        "operations": [_operation_to_json(each) for each in worker.operations[: waterfall.MAX_OPERATIONS]]
        if worker
        else [],
        "more_operations": max(0, len(worker.operations) - waterfall.MAX_OPERATIONS) if worker else 0,
        "facts": facts,
        "app": _list_app(worker) if worker else [],
        "notes": waterfall.list_notes(path),
    }


def _list_stamps(path: RequestPath) -> list[tuple[str, int, int]]:
    """Return each stamp's name, its ns since the request's start, and its resolution, ns."""
    worker, line, begin_ns = path.worker, path.nginx, path.timing.start_ns
    found: list[tuple[str, int | None, int]] = []
    coarse_ns = path.timing.resolution_ns
    if worker is not None:
        start_ns, pass_ns = worker.nginx_start_ns, worker.nginx_pass_ns
        of_nginx_ns = worker.nginx_resolution_ns or coarse_ns
        found += [("nginx_start", start_ns, of_nginx_ns), ("nginx_pass", pass_ns, of_nginx_ns)]
        found += [("accept", worker.accept_ns, 1_000), ("parsed", worker.parsed_ns, 1_000)]
        found.append(("app_start", worker.app_start_ns, 1))
        for name in _WORKER_OFFSETS:
            offset_ns = getattr(worker, f"{name}_offset_ns")
            found.append((name, None if offset_ns is None else worker.app_start_ns + offset_ns, 1))
    if line is not None:
        if worker is None or worker.nginx_start_ns is None:
            found.append(("nginx_start", line.start_ns, line.resolution_ns))
        if worker is None or worker.nginx_pass_ns is None:
            found.append(("nginx_pass", line.pass_ns, line.resolution_ns))
        found.append(("nginx_end", line.end_ns, line.resolution_ns))
    known = [(name, at_ns - begin_ns, resolution_ns) for name, at_ns, resolution_ns in found if at_ns]
    return sorted(known, key=lambda stamp: stamp[1])


def _operation_to_json(operation: Operation) -> dict[str, Any]:
    return {
        "kind": operation.kind,
        "statement": operation.statement,
        "start_ns": operation.start_ns,
        "time_ns": operation_time_ns(operation),
        "facts": waterfall.list_facts(operation),
        "error": operation.error,
    }


def _list_app(worker: WorkerRecord) -> list[tuple[str, str]]:
    """Return what the app noted: its attributes, its events, and the exception that left it."""
    found = [(key, _format_value(value)) for key, value in worker.attributes.items()]
    if worker.span_name is not None:
        found.insert(0, ("span name", worker.span_name))
    if worker.span_status is not None:
        found.append(("span status", " ".join(filter(None, worker.span_status))))
    for event in worker.events:
        attributes = ", ".join(f"{key} {_format_value(value)}" for key, value in event.attributes.items())
        found.append((f"event {event.name}", attributes))
    if worker.exception is not None:
        found.append((worker.exception[0], worker.exception[1]))
    return found


def _format_value(value: AttributeValue) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
