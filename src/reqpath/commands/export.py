"""`reqpath export`: requests for the viewers that people have already."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterable, Iterator
from typing import Final, Literal

import click

from reqpath.commands.output import write_output
from reqpath.commands.report import Keep, build_filter, show_progress
from reqpath.commands.shared import check_extra
from reqpath.commands.sources import Origin, open_source, source_options
from reqpath.commands.trace import find_request
from reqpath.errors import ReqPathError
from reqpath.path import RequestPath
from reqpath.render.perfetto import render_perfetto
from reqpath.render.units import clean, format_bytes, format_count

Format = Literal["perfetto", "speedscope", "folded"]

#: What opens a file of each format.
_VIEWERS: Final = {
    "perfetto": "Open it at https://ui.perfetto.dev",
    "speedscope": "Open it at https://www.speedscope.app",
    "folded": "Draw it with flamegraph.pl --countname ns",
}


class NothingToExportError(ReqPathError):
    """No request is what was asked for, so there is nothing to write."""


@click.command(
    name="export",
    epilog="""\b
Examples:
  reqpath export perfetto --since 10m -o requests.json.gz
  reqpath export perfetto --around slowest -o slowest.json
  reqpath export speedscope --route '/items/<int:id>' -o items.json
  reqpath export folded --slowest 100 | flamegraph.pl --countname ns > slowest.svg
""",
)
@click.argument("kind", metavar="FORMAT", type=click.Choice(["perfetto", "speedscope", "folded"]))
@source_options
@click.option("--route", metavar="ROUTE", help="Only this route: '/items/<int:id>', 'GET /items', '/items*'.")
@click.option(
    "--since", metavar="WHEN", help="Only requests that started since: 30s, 10m, 2h, 1d ago, or ISO."
)
@click.option("--slowest", metavar="N", type=click.IntRange(min=1), help="Of these only the N slowest.")
@click.option(
    "--trace",
    "traces",
    metavar="ID",
    multiple=True,
    help="Only the request of this trace id, or of its first digits. May be given more than once.",
)
@click.option(
    "--around",
    metavar="ID|slowest|last",
    help="Only one request and those that were served or waited while it was.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Write to FILE, compressed when it ends in .gz. [default: standard output]",
)
def command(
    *,
    kind: Format,
    origin: Origin,
    places: tuple[str, ...],
    service: str | None,
    lookback: str | None,
    route: str | None,
    since: str | None,
    slowest: int | None,
    traces: tuple[str, ...],
    around: str | None,
    output: str | None,
) -> None:
    """Write requests for a viewer.

    FORMAT is perfetto (a timeline, a track for each worker's core, nginx and the queue; also for Chrome's
    chrome://tracing), speedscope, or folded (where the time went, as a flame graph). The rest is as for
    `reqpath report`.
    """
    check_extra("report", ["rich"])
    if output is None and is_terminal():
        raise click.UsageError("name a file with -o, or send the standard output somewhere")

    source = open_source(origin, places, service=service, lookback=lookback, since=since)
    keep = build_filter(route, since)
    paths = show_progress(source.read(traces[0] if len(traces) == 1 and around is None else ""))
    if around is not None:
        path, _others = find_request(filter(keep, paths) if keep else paths, around, source.place)
        # Who was there with it is known only now, so all is read again.
        source = open_source(origin, places, service=service, lookback=lookback, since=since)
        paths, keep = _overlap(show_progress(source.read("")), path), None
    paths = select(paths, keep, traces, slowest)
    first = next(paths, None)
    if first is None:
        raise NothingToExportError(
            f"none of the requests in {source.place} is what was asked for, or there is none"
        )
    counted = _Count(first, paths)
    if kind == "perfetto":
        chunks = render_perfetto(counted)
    else:
        from reqpath.analyse.stacks import sum_stacks
        from reqpath.render.stacks import render_folded, render_speedscope

        stacks = sum_stacks(counted)
        name = f"{format_count(counted.number, 'request')} of {clean(source.place)}"
        chunks = render_folded(stacks) if kind == "folded" else render_speedscope(stacks, name)
    size = write_output(chunks, output)
    if output is not None:
        click.echo(
            f"{output}: {format_count(counted.number, 'request')}, {format_bytes(size)}. {_VIEWERS[kind]}",
            err=True,
        )


def is_terminal() -> bool:
    """Tell whether the standard output is one."""
    return sys.stdout.isatty()


class _Count:
    """Paths, counted as they go by."""

    def __init__(self, first: RequestPath, others: Iterable[RequestPath]) -> None:
        self.number = 0
        self._first, self._others = first, others

    def __iter__(self) -> Iterator[RequestPath]:
        self.number = 1
        yield self._first
        for path in self._others:
            self.number += 1
            yield path


def select(
    paths: Iterable[RequestPath], keep: Keep | None, traces: tuple[str, ...], slowest: int | None
) -> Iterator[RequestPath]:
    """Yield those that are kept and of one of the traces, of these the slowest, in the order they came in."""
    if keep is not None:
        paths = filter(keep, paths)
    if traces:
        prefixes = tuple(trace.strip().lower() for trace in traces)
        paths = (path for path in paths if path.trace_id.startswith(prefixes))
    if slowest is None:
        yield from paths
        return
    numbered = ((path.timing.total_ns, -number, path) for number, path in enumerate(paths))
    for _, _, path in sorted(heapq.nlargest(slowest, numbered), key=lambda entry: -entry[1]):
        yield path


def _overlap(paths: Iterable[RequestPath], one: RequestPath) -> Iterator[RequestPath]:
    """Yield the paths that had begun before `one` ended and had not ended before it began."""
    begin_ns = one.timing.start_ns
    end_ns = begin_ns + one.timing.total_ns
    for path in paths:
        timing = path.timing
        if timing.start_ns <= end_ns and timing.start_ns + timing.total_ns >= begin_ns:
            yield path
