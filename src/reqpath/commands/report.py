"""`reqpath report`: the breakdown of a spool's requests."""

from __future__ import annotations

import fnmatch
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import click

from reqpath.collect.join import Joiner
from reqpath.commands.shared import ANY_PATH, open_console
from reqpath.commands.sources import Origin, Source, open_source, parse_since, source_options
from reqpath.errors import MissingExtraError
from reqpath.path import RequestPath
from reqpath.render.units import format_bytes, format_count
from reqpath.spool import SpoolLosses, SpoolReader

if TYPE_CHECKING:
    from rich.console import Console

    from reqpath.analyse.breakdown import BreakdownBuilder
    from reqpath.analyse.cube import CubeBuilder
    from reqpath.analyse.figures import Breakdown

#: A worker's record waits as long for nginx's line, when the report is watched.
_PATIENCE_NS = 5_000_000_000
_PROGRESS_EVERY = 20_000

Keep = Callable[[RequestPath], bool]


def matches_route(route: str, wanted: str) -> bool:
    """Tell whether a route, `GET /items/<int:id>`, is wanted: by its rule, with the method, or with `*`."""
    rule = route.partition(" ")[2]
    if "*" in wanted:
        # Brackets are no pattern: routes may hold them.
        pattern = wanted.replace("[", "[[]")
        return fnmatch.fnmatchcase(route, pattern) or fnmatch.fnmatchcase(rule, pattern)
    return wanted in (route, rule)


@click.command(
    name="report",
    epilog="""\b
Examples:
  reqpath report --since 10m
  reqpath report /run/reqpath --route '/items/<int:id>' --json
  reqpath report --from jaeger http://localhost:16686 --service shop --lookback 1h
  reqpath report --from otlp traces.jsonl
  reqpath report --html report.html
""",
)
@source_options
@click.option("--route", metavar="ROUTE", help="Only this route: '/items/<int:id>', 'GET /items', '/items*'.")
@click.option(
    "--since", metavar="WHEN", help="Only requests that started since: 30s, 10m, 2h, 1d ago, or ISO."
)
@click.option(
    "--slowest",
    metavar="N",
    default=5,
    show_default=True,
    type=click.IntRange(0, 1000),
    help="How many of the slowest requests are listed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (docs/report-json.md).")
@click.option("--html", metavar="FILE", type=ANY_PATH, help="Write a page to open in a browser.")
@click.option(
    "--jaeger",
    metavar="URL",
    help="With --html: the Jaeger that its requests link to. [default: the one of --from jaeger]",
)
@click.option("--watch", is_flag=True, help="Stay, and read what comes. End it with Ctrl-C.")
def command(
    *,
    origin: Origin,
    places: tuple[str, ...],
    service: str | None,
    lookback: str | None,
    route: str | None,
    since: str | None,
    slowest: int,
    as_json: bool,
    html: str | None,
    jaeger: str | None,
    watch: bool,
) -> None:
    """Show where the time of the recorded requests went.

    SPOOL is the directory that the app writes to: REQPATH_SPOOL, or one in the temporary directory. With
    --from it is FILEs of OTLP in JSON, or the URL of a Jaeger.
    """
    try:
        import rich  # noqa: F401 - asked for before numpy, which takes longer

        from reqpath.analyse.breakdown import BreakdownBuilder
    except ImportError as error:
        raise MissingExtraError("report", error.name or "numpy and rich") from error
    if watch and as_json:
        raise click.UsageError("--watch and --json exclude each other")
    if html is not None and (watch or as_json):
        raise click.UsageError("--html excludes --watch and --json")
    source = open_source(origin, places, service=service, lookback=lookback, since=since)
    page = None if html is None else _prepare_page(origin, places, jaeger)
    keep = build_filter(route, since)
    builder = BreakdownBuilder(slowest=slowest)
    if watch:
        if source.reader is None:
            raise click.UsageError("--watch is for a spool; of traces, run the report again")
        _watch(source, source.reader, builder, keep, open_console())
        return
    breakdown = _read_all(source, builder, None if page is None else page[0], keep)
    if html is not None and page is not None and breakdown.whole.requests:
        _write_page(html, breakdown, *page)
        return
    if as_json:
        from reqpath.render.document import breakdown_to_json

        json.dump(breakdown_to_json(breakdown), sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    _print_report(breakdown, source, open_console(), filtered=keep is not None)


def _read_all(
    source: Source, builder: BreakdownBuilder, cube: CubeBuilder | None, keep: Keep | None
) -> Breakdown:
    """Read a source to its end, a large spool by two processes; return the breakdown."""
    from reqpath.commands.halves import Builders, find_large_spool, take_in_halves

    def take(paths: Iterator[RequestPath], builders: Builders) -> None:
        kept = filter(keep, paths) if keep else paths
        builders.breakdown.extend(kept if builders.cube is None else builders.cube.watch(kept))

    reader, builders = source.reader, Builders(builder, cube)
    # Records hold no cycles, and there are millions of them.
    gc.disable()
    try:
        if reader is not None and (files := find_large_spool(reader.directory)):
            losses: SpoolLosses | None = take_in_halves(
                reader.directory, files, take, builders, show=partial(show_progress, readers=2)
            )
        else:
            take(show_progress(source.read("")), builders)
            losses = source.losses()
    finally:
        gc.enable()
    return builder.build(losses, source.traces)


def build_filter(route: str | None, since: str | None) -> Keep | None:
    """Return what tells the requests of a route and a time from others; None where all are wanted."""
    if route is None and since is None:
        return None
    since_ns = None if since is None else parse_since(since, time.time_ns())

    def keep(path: RequestPath) -> bool:
        if since_ns is not None and path.timing.start_ns < since_ns:
            return False
        return route is None or matches_route(path.route, route)

    return keep


def _prepare_page(
    origin: Origin, places: tuple[str, ...], jaeger: str | None
) -> tuple[CubeBuilder, str | None]:
    """Return what watches the requests for a page, and the Jaeger that the page links to."""
    from reqpath.analyse.cube import CubeBuilder

    if jaeger is None and origin == "jaeger":
        jaeger = places[0]
    if jaeger is not None and not jaeger.startswith(("http://", "https://")):
        raise click.UsageError(f"--jaeger is {jaeger!r}; it takes an address such as http://localhost:16686")
    return CubeBuilder(), None if jaeger is None else jaeger.rstrip("/")


def _write_page(file: str, breakdown: Breakdown, cube: CubeBuilder, jaeger: str | None) -> None:
    from reqpath.commands.output import write_output
    from reqpath.render.page_report import render_report_page

    page = render_report_page(breakdown, cube.build(breakdown), jaeger=jaeger).encode()
    size = write_output([page], file)
    click.echo(f"{file}: {format_count(breakdown.whole.requests, 'request')}, {format_bytes(size)}")


def _print_report(breakdown: Breakdown, source: Source, console: Console, *, filtered: bool) -> None:
    from rich.text import Text

    from reqpath.render.text import render_report

    if not breakdown.whole.requests:
        if filtered:
            text = f"None of the requests in {source.place} is of this route and time."
        else:
            text = f"No requests in {source.place} yet.\n\n{source.advice}"
        console.print(Text(text))
        return
    render_report(breakdown, console)
    if breakdown.slowest and source.words:
        words = f"One of them in full: reqpath trace slowest {source.words}"
        console.print(Text(f"\n{words}", style="dim"))


def show_progress(paths: Iterator[RequestPath], *, readers: int = 1) -> Iterator[RequestPath]:
    """Hand on the paths, and say on a terminal how many there were so far, to all of so many readers."""
    from rich.console import Console

    console = Console(stderr=True)
    return _count_aloud(paths, console, readers) if console.is_terminal else paths


def _count_aloud(paths: Iterator[RequestPath], console: Console, readers: int) -> Iterator[RequestPath]:
    with console.status("reading") as status:
        for count, path in enumerate(paths, 1):
            if count % _PROGRESS_EVERY == 0:
                status.update(f"reading: {count * readers:,} requests")
            yield path


def _watch(
    source: Source, reader: SpoolReader, builder: BreakdownBuilder, keep: Keep | None, console: Console
) -> None:
    from rich.live import Live
    from rich.text import Text

    from reqpath.render.text import MAX_WIDTH, build_report, has_colour

    joiner = Joiner()

    def read() -> Iterator[RequestPath]:
        yield from joiner.read(reader)
        yield from joiner.release(time.time_ns() - _PATIENCE_NS)

    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        try:
            while True:
                start_s = time.monotonic()
                builder.extend(filter(keep, read()) if keep else read())
                if builder.requests:
                    page = build_report(
                        builder.build(reader.losses),
                        min(console.width, MAX_WIDTH),
                        colour=has_colour(console),
                    )
                else:
                    page = Text(f"waiting for requests in {source.place}")
                live.update(page, refresh=True)
                # A page of many requests takes long to build; watching shall take a fifth of a CPU at most.
                time.sleep(max(1.0, 4 * (time.monotonic() - start_s)))
        except KeyboardInterrupt:
            pass
    if builder.requests:
        _print_report(builder.build(reader.losses), source, console, filtered=False)
