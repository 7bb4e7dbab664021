"""One request as a waterfall: its stamps and segments on one time axis, its queries, what the app noted.

Segments between stamps have a place on the axis. Those inside the worker are sums over many short stays, so
they are in the table only; on the axis the worker and the view are frames, drawn as lines, with the database
operations in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from reqpath.analyse.figures import resolution_of
from reqpath.instants import place_segments
from reqpath.path import RequestPath
from reqpath.record import AttributeValue, NginxRecord, Operation, WorkerRecord, operation_time_ns
from reqpath.render.layout import build_notes, stack_sections
from reqpath.render.palette import PALETTE
from reqpath.render.text import MAX_WIDTH, NARROW, build_bar, build_legend, has_colour
from reqpath.render.units import (
    clean,
    format_count,
    format_duration,
    format_instant,
    format_plus_minus,
    format_share,
)
from reqpath.tiers import INDEX, SEGMENTS, STAMPS

_DIM: Final = "dim"
#: Operations drawn; `--json` has all.
MAX_OPERATIONS: Final = 40
_LABEL_WIDTH: Final = 24
_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the waterfall; instants are ns since the request's start."""

    label: str
    #: A tier, or "" for a frame.
    tier: str
    start_ns: int
    end_ns: int
    #: The time that counts, where that is not the distance of the two.
    time_ns: int
    resolution_ns: int
    error: bool = False
    #: From here on the reply was being fetched; None where that is not known.
    fetch_ns: int | None = None


def render_waterfall(path: RequestPath, console: Console) -> None:
    """Print one request."""
    console.print(build_waterfall(path, min(console.width, MAX_WIDTH), colour=has_colour(console)))


def build_waterfall(path: RequestPath, width: int, *, colour: bool) -> RenderableType:
    """Return the page for `width` columns."""
    sections = [
        _build_head(path),
        _build_rows(path, width, colour=colour),
        _build_segments(path, width, colour=colour),
        _build_operations(path.worker.operations if path.worker else []),
        _build_app(path.worker) if path.worker else None,
        _build_attempts(path),
        build_notes(list_notes(path)),
    ]
    return stack_sections(sections, width)


def place_rows(path: RequestPath) -> list[Row]:
    """Return the rows in the order of time: segments between stamps, the worker's frames, the operations."""
    begin_ns, worker = path.timing.start_ns, path.worker
    rows = [
        Row(
            each.segment,
            SEGMENTS[INDEX[each.segment]].tier,
            each.start_ns - begin_ns,
            each.start_ns - begin_ns + each.duration_ns,
            each.duration_ns,
            each.resolution_ns,
        )
        for each in place_segments(path)
        if each.duration_ns or each.segment in ("queue", "nginx.receive")
    ]
    if worker is None:
        return rows
    app_ns = worker.app_start_ns - begin_ns
    worker_ns = sum(filter(None, worker.exclusive_ns))
    end_ns = app_ns + (worker_ns if worker.closed_offset_ns is None else worker.closed_offset_ns)
    inner: list[Row] = []
    view_ns, view_end_ns = worker.view_start_offset_ns, worker.view_end_offset_ns
    if view_ns is not None and view_end_ns is not None:
        inner.append(Row("  view", "", app_ns + view_ns, app_ns + view_end_ns, view_end_ns - view_ns, 1))
    inner += [_place_operation(operation, app_ns) for operation in worker.operations[:MAX_OPERATIONS]]
    inner.sort(key=lambda row: row.start_ns)
    # What nginx does after the worker is the last.
    last = len(rows) - 1 if rows and rows[-1].label == "nginx.send" else len(rows)
    return [
        *rows[:last],
        Row("worker", "", app_ns, end_ns, end_ns - app_ns, 1),
        *inner,
        *rows[last:],
    ]


def _place_operation(operation: Operation, app_ns: int) -> Row:
    label = operation.statement if operation.statement is not None else operation.kind
    return Row(
        f"    {clean(label, 200)}",
        "mysql",
        app_ns + operation.start_ns,
        app_ns + operation.end_ns,
        operation_time_ns(operation),
        1,
        operation.error is not None,
        None if operation.first_byte_ns is None else app_ns + operation.first_byte_ns,
    )


def _build_head(path: RequestPath) -> RenderableType:
    timing, worker, nginx = path.timing, path.worker, path.nginx
    head = Text(clean(path.route), style="bold")
    status = "no status" if path.status is None else str(path.status)
    failed = path.status is None or path.status >= 500
    head.append(f"  {status}", style="red" if failed else "")
    head.append(f"  {format_plus_minus(timing.total_ns, timing.resolution_ns)}")
    head.append(f"  {format_instant(timing.start_ns)}", style="not bold dim")
    lines = [f"path {clean(path.url_path, 300)}", f"trace {clean(path.trace_id, 64)}"]
    if worker is None:
        if nginx is not None and nginx.host:
            lines[0] += f" on {clean(nginx.host, 100)}"
        return Group(head, *(Text(line, style=_DIM) for line in lines))
    if worker.host:
        lines[0] += f" on {clean(worker.host, 100)}"
    where = []
    if path.info is not None:
        if path.info.worker is not None:
            where.append(f"worker {path.info.worker}")
        if worker.core is not None:
            where.append(f"core {worker.core}")
        where.append(f"pid {path.info.pid} on {clean(path.info.host, 60)}")
        if path.info.concurrency != "unknown":
            where.append(path.info.concurrency)
    if worker.transport:
        where.append(f"nginx to uWSGI by {worker.transport}")
    servers = dict.fromkeys(
        _describe_server(each) for each in worker.operations if each.transport is not None
    )
    if servers:
        where.append(f"app to MySQL by {' and '.join(servers)}")
    if where:
        lines.append(", ".join(where))
    return Group(head, *(Text(line, style=_DIM) for line in lines))


def _describe_server(operation: Operation) -> str:
    text = f"{operation.transport}"
    if operation.server_address:
        text += f" {clean(operation.server_address, 80)}"
        if operation.server_port is not None and operation.transport == "tcp":
            text += f":{operation.server_port}"
    return text


def _build_rows(path: RequestPath, width: int, *, colour: bool) -> RenderableType | None:
    rows = place_rows(path)
    total_ns = path.timing.total_ns
    if not rows or total_ns <= 0:
        return None
    label_width = min(_LABEL_WIDTH, width // 3)
    axis = max(10, width - label_width - 20)
    table = Table.grid(
        Column(width=label_width, no_wrap=True, overflow="ellipsis"),
        Column(width=8, justify="right", no_wrap=True),
        Column(width=9, justify="right", no_wrap=True),
        Column(width=axis, no_wrap=True),
        padding=(0, 1, 0, 0),
    )
    resolution_ns = path.timing.resolution_ns
    table.add_row(
        "", Text("at", style=_DIM), Text("time", style=_DIM), _build_axis(total_ns, axis, resolution_ns)
    )
    for row in rows:
        time = Text(format_duration(row.time_ns, row.resolution_ns), style="red" if row.error else "")
        table.add_row(
            Text(row.label, style="" if row.tier else _DIM),
            Text(_format_offset(row.start_ns, resolution_ns), style=_DIM),
            time,
            _build_row_bar(row, total_ns, axis, colour=colour),
        )
    operations = path.worker.operations if path.worker else []
    below = []
    if len(operations) > MAX_OPERATIONS:
        below.append(f"and {format_count(len(operations) - MAX_OPERATIONS, 'operation')} more in --json")
    if any(row.fetch_ns is not None for row in rows):
        below.append(f"A query is drawn {'▒' if colour else 'm'} while its reply is fetched.")
    return Group(table, *(Text(line, style=_DIM) for line in below))


def _format_offset(ns: int, resolution_ns: int) -> str:
    return "0" if ns == 0 else format_duration(ns, resolution_ns)


def _build_row_bar(row: Row, total_ns: int, width: int, *, colour: bool) -> Text:
    first = min(width - 1, max(0, row.start_ns * width // total_ns))
    last = min(width, max(first + 1, -(-row.end_ns * width // total_ns)))
    bar = Text(" " * first, no_wrap=True)
    if not row.tier:
        bar.append("─" * (last - first), style=_DIM)
        return bar
    letter, hex_colour = PALETTE[row.tier]
    fetch = last if row.fetch_ns is None else min(last, max(first + 1, row.fetch_ns * width // total_ns))
    if colour:
        bar.append(" " * (fetch - first), style=f"on {hex_colour}")
        bar.append("▒" * (last - fetch), style=hex_colour)
    else:
        bar.append(letter * (fetch - first))
        bar.append(letter.lower() * (last - fetch))
    return bar


def _build_axis(total_ns: int, width: int, resolution_ns: int) -> Text:
    """Return the axis' figures: 0, and steps of 1, 2 or 5 of a decade, each where its instant is."""
    wanted_ns = max(total_ns * 12 / width, 1_000, resolution_ns if total_ns > 2 * resolution_ns else 1)
    step_ns = next(
        step for decade in range(3, 19) for base in (1, 2, 5) if (step := base * 10**decade) >= wanted_ns
    )
    text = "0"
    for tick_ns in range(step_ns, total_ns + 1, step_ns):
        position = tick_ns * width // total_ns
        label = format_duration(tick_ns, digits=2).replace(".0 ", " ")
        if position + len(label) > width:
            break
        text = f"{text:<{position}}{label}" if position > len(text) else text
    return Text(text, style=_DIM, no_wrap=True)


def _build_segments(path: RequestPath, width: int, *, colour: bool) -> RenderableType | None:
    timing = path.timing
    if timing.total_ns <= 0:
        return None
    narrow = width < NARROW
    table = Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=_DIM, width=None if narrow else width
    )
    table.add_column("segment", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    if not narrow:
        table.add_column("", no_wrap=True, overflow="ellipsis", style=_DIM, ratio=1)
    parts: list[tuple[str, float]] = []
    for segment, value in zip(SEGMENTS, timing.segments, strict=True):
        if not value:
            continue
        parts.append((segment.tier, value))
        letter, hex_colour = PALETTE[segment.tier]
        table.add_row(
            Text.assemble((letter, hex_colour), f" {segment.name}"),
            format_duration(value, resolution_of(segment.name, timing.resolution_ns)),
            format_share(value / timing.total_ns),
            *([] if narrow else [segment.meaning]),
        )
    parts.append(("residual", timing.residual_ns))
    letter, hex_colour = PALETTE["residual"]
    table.add_row(
        Text.assemble((letter, hex_colour), " residual"),
        format_duration(timing.residual_ns, timing.resolution_ns),
        format_share(timing.residual_ns / timing.total_ns),
        *([] if narrow else ["the total less all of the above"]),
    )
    blocks: list[RenderableType] = [build_bar(parts, width, colour=colour), build_legend(parts), "", table]
    lens = _describe_lens(path)
    if lens is not None:
        blocks.append(lens)
    return Group(*blocks)


def _describe_lens(path: RequestPath) -> Text | None:
    worker = path.worker
    if worker is None or worker.cpu_ns is None:
        return None
    text = f"The thread ran for {format_duration(worker.cpu_ns)}"
    if worker.run_queue_ns is not None:
        text += f" and stood in the CPUs' run queue for {format_duration(worker.run_queue_ns)}"
    return Text(f"{text}.", style=_DIM)


def _build_operations(operations: Sequence[Operation]) -> RenderableType | None:
    if not operations:
        return None
    table = Table.grid(Column(no_wrap=True, justify="right", style=_DIM), Column(), padding=(0, 1, 0, 0))
    for number, operation in enumerate(operations[:MAX_OPERATIONS], 1):
        text = Text(clean(operation.statement if operation.statement is not None else operation.kind))
        text.append(f"\n{', '.join(list_facts(operation))}", style=_DIM)
        if operation.error is not None:
            text.append(f"\n{clean(operation.error, 200)}", style="red")
        table.add_row(str(number), text)
    return Group(Text("database operations", style=_DIM), table)


def list_facts(operation: Operation) -> list[str]:
    """List what is known of a database operation, the time first."""
    facts = [format_duration(operation_time_ns(operation))]
    if operation.first_byte_ns is not None:
        facts.append(f"first byte after {format_duration(operation.first_byte_ns - operation.start_ns)}")
    if operation.fetch_ns is not None:
        facts.append(f"fetched in {format_duration(operation.fetch_ns)}")
    if operation.rows is not None:
        facts.append(format_count(operation.rows, "row"))
    if operation.batch_size is not None:
        facts.append(f"batch of {operation.batch_size:,}")
    facts += [f"{clean(name, 40).replace('_', ' ')} {format_duration(ns)}" for name, ns in operation.phases]
    if operation.namespace:
        facts.append(f"in {clean(operation.namespace, 60)}")
    if operation.connection is not None:
        facts.append(f"connection {operation.connection}")
    if operation.concurrent:
        facts.append("beside the request, in no segment")
    return facts


def _build_app(worker: WorkerRecord) -> RenderableType | None:
    """What the app set on the current span, and the exception that left it."""
    lines = []
    if worker.span_name is not None:
        lines.append(Text.assemble(("span name  ", _DIM), clean(worker.span_name, 200)))
    if worker.span_status is not None:
        code, description = worker.span_status
        lines.append(Text.assemble(("span status  ", _DIM), clean(f"{code} {description or ''}", 300)))
    for key, value in worker.attributes.items():
        lines.append(Text.assemble((f"{clean(key, 100)}  ", _DIM), _format_value(value)))
    for event in worker.events:
        line = Text.assemble(
            ("event  ", _DIM), clean(event.name, 200), (f" at +{format_duration(event.time_ns)}", _DIM)
        )
        for key, value in event.attributes.items():
            line.append(f"  {clean(key, 100)} ", style=_DIM)
            line.append(_format_value(value))
        lines.append(line)
    if worker.exception is not None:
        kind, message, stack = worker.exception
        lines.append(Text(f"{clean(kind, 200)}: {clean(message, 400)}", style="red"))
        lines += [
            Text(f"  {clean(line, 300)}", style=_DIM) for line in stack.splitlines()[-8:] if line.strip()
        ]
    return Group(Text("from the app", style=_DIM), *lines) if lines else None


def _format_value(value: AttributeValue) -> str:
    return clean(", ".join(map(str, value)) if isinstance(value, list) else str(value), 300)


def _build_attempts(path: RequestPath) -> RenderableType | None:
    nginx = path.nginx
    if nginx is None:
        return None
    lines = [Text(_describe_line(nginx), style=_DIM)]
    if len(nginx.attempts) > 1 or path.worker is None:
        lines += [
            Text(
                f"  tried {clean(attempt.address, 100)}: {attempt.status or 'no answer'}"
                f", {format_duration(attempt.response_ns, _MS)}",
                style=_DIM,
            )
            for attempt in nginx.attempts
        ]
    lines += [
        Text(
            f"  an earlier worker recorded {record.status or 'no status'} after "
            f"{format_duration(record.closed_offset_ns)}",
            style=_DIM,
        )
        for record in path.retried
    ]
    return Group(*lines)


def _describe_line(nginx: NginxRecord) -> str:
    facts = [f"nginx answered {nginx.status or 'nothing'}"]
    if nginx.protocol:
        facts.append(f"over {clean(nginx.protocol, 20)}")
    if nginx.cache_status:
        facts.append(f"cache {clean(nginx.cache_status, 20)}")
    if nginx.request_bytes is not None:
        facts.append(f"{nginx.request_bytes:,} bytes in")
    if nginx.response_bytes is not None:
        facts.append(f"{nginx.response_bytes:,} bytes out")
    return ", ".join(facts)


def list_notes(path: RequestPath) -> list[tuple[str, str]]:
    """List what is missing, not believed or contradictory in one request, each with what to do about it."""
    timing = path.timing
    notes = [(f"missing {stamp}", STAMPS[stamp][1]) for stamp in timing.missing]
    if path.worker is not None:
        notes += [
            (f"rejected {clean(stamp, 40)}", "it was there and not believed")
            for stamp in path.worker.rejected_stamps
        ]
        if path.worker.dropped_operations:
            count = format_count(path.worker.dropped_operations, "operation")
            notes.append((f"not listed {count}", "beyond max_operations; their time is in the segments"))
    notes += [
        (f"skewed {name}", "its stamps contradict each other, so it is unknown") for name in timing.skewed
    ]
    notes += [(f"{name} set to 0", "negative within its stamps' resolution") for name in timing.clamped]
    if timing.abandoned:
        notes.append(("abandoned", "nginx or the client gave up before the worker was done"))
    if timing.resolution_ns >= _MS:
        notes.append(("nginx's stamps are good to 1 ms", "so are nginx.*, queue and the total"))
    return notes
