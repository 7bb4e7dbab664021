"""`reqpath compare`: two sets of requests, before and after; what changed between them, and where."""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from reqpath.commands.report import matches_route, show_progress
from reqpath.commands.shared import ANY_PATH, open_console
from reqpath.commands.sources import Source, open_source, parse_since
from reqpath.errors import ConfigurationError, MissingExtraError
from reqpath.render.units import format_bytes, format_count, format_instant
from reqpath.settings import default_spool

if TYPE_CHECKING:
    from reqpath.analyse.comparison import SideBuilder
    from reqpath.analyse.differences import Comparison

_CLOCK: Final = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?", re.ASCII)
_DAY: Final = timedelta(days=1)


class Span(NamedTuple):
    """A stretch of time, ns since the epoch; None is open. The end is not in it."""

    start_ns: int | None = None
    end_ns: int | None = None

    def holds(self, instant_ns: int) -> bool:
        """Tell whether an instant is in it."""
        return (self.start_ns is None or instant_ns >= self.start_ns) and (
            self.end_ns is None or instant_ns < self.end_ns
        )

    def overlaps(self, other: Span) -> bool:
        """Tell whether an instant can be in both."""
        return not (
            (self.end_ns is not None and other.start_ns is not None and self.end_ns <= other.start_ns)
            or (other.end_ns is not None and self.start_ns is not None and other.end_ns <= self.start_ns)
        )

    def __str__(self) -> str:
        first = "" if self.start_ns is None else f"from {format_instant(self.start_ns, milliseconds=False)}"
        last = "" if self.end_ns is None else f"before {format_instant(self.end_ns, milliseconds=False)}"
        return " ".join(filter(None, (first, last)))


@click.command(
    name="compare",
    epilog="""\b
Examples:
  reqpath compare ./before ./after
  reqpath compare --split 14:00
  reqpath compare /run/reqpath --a 13:00..14:00 --b 14:05..15:00
  reqpath compare before.jsonl after.jsonl --route '/items/<int:id>' --json
  reqpath compare ./before ./after --html compare.html
""",
)
@click.argument("places", nargs=-1, type=ANY_PATH, metavar="[A] [B]")
@click.option(
    "--split", metavar="WHEN", help="A is what started before then, B the rest: 14:00, 2h ago, or ISO."
)
@click.option(
    "--a", "span_a", metavar="FROM..TO", help="A is of this time: 13:00..14:00, 2h..1h ago, ..14:00."
)
@click.option("--b", "span_b", metavar="FROM..TO", help="B is of this time.")
@click.option("--route", metavar="ROUTE", help="Only this route: '/items/<int:id>', 'GET /items', '/items*'.")
@click.option("--service", metavar="NAME", help="Of traces: only this service. Needed with a Jaeger.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (docs/compare.md).")
@click.option("--html", metavar="FILE", type=ANY_PATH, help="Write a page to open in a browser.")
def command(
    *,
    places: tuple[str, ...],
    split: str | None,
    span_a: str | None,
    span_b: str | None,
    route: str | None,
    service: str | None,
    as_json: bool,
    html: str | None,
) -> None:
    """Compare two sets of requests: what changed, and in which tier.

    A and B are each a spool, a file of OTLP in JSON, or the URL of a Jaeger. A single one, or none for the
    spool of REQPATH_SPOOL, is compared with itself at another time, by --split or by --a and --b.
    """
    try:
        import rich  # noqa: F401 - asked for before numpy, which takes longer

        from reqpath.analyse.comparison import build_comparison
    except ImportError as error:
        raise MissingExtraError("report", error.name or "numpy and rich") from error
    if html is not None and as_json:
        raise click.UsageError("--html excludes --json")
    spans = _parse_spans(split, span_a, span_b, time.time_ns())
    builders = _read_sides(places, spans, route, service)
    comparison = build_comparison(*builders)
    if html is not None:
        _write_page(html, comparison)
    elif as_json:
        from reqpath.render.compare import comparison_to_json

        json.dump(comparison_to_json(comparison), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        from reqpath.render.compare import render_comparison

        render_comparison(comparison, open_console())


def parse_span(text: str, now_ns: int, *, option: str) -> Span:
    """Return the time that `13:00..14:00`, `2h..1h`, `..14:00` or ISO dates name.

    A time of day is the last one that has been; the end of a span is the first one after its beginning.

    Raises: ConfigurationError for anything else.
    """
    first, dots, last = text.partition("..")
    if not dots or not (first.strip() or last.strip()):
        raise ConfigurationError(
            f"{option} is {text!r}; it takes FROM..TO, such as 13:00..14:00, 2h.. or ..14:00"
        )
    start_ns = parse_instant(first, now_ns, option=option) if first.strip() else None
    if not last.strip():
        return Span(start_ns, None)
    end_ns = parse_instant(last, now_ns, option=option)
    if start_ns is not None:
        if end_ns <= start_ns and _CLOCK.fullmatch(last.strip()):
            end_ns = _at_clock(last.strip(), start_ns, after=True, option=option)
        if end_ns <= start_ns:
            raise ConfigurationError(f"{option} is {text!r}, which ends before it begins")
    return Span(start_ns, end_ns)


def parse_instant(text: str, now_ns: int, *, option: str) -> int:
    """Return the instant, ns since the epoch, that `14:00`, `2h` (ago) or an ISO date names.

    Raises: ConfigurationError for anything else.
    """
    text = text.strip().removesuffix("ago").strip()
    if _CLOCK.fullmatch(text):
        return _at_clock(text, now_ns, after=False, option=option)
    return parse_since(text, now_ns, option=option)


def _at_clock(text: str, near_ns: int, *, after: bool, option: str) -> int:
    """Return when a clock on the wall last showed a time, or, `after`, when it next will."""
    match = _CLOCK.fullmatch(text)
    assert match is not None
    hour, minute, second = (int(part or 0) for part in match.groups())
    if hour > 23 or minute > 59 or second > 59:
        raise ConfigurationError(f"{option} has {text!r}, which is no time of day")
    near = datetime.fromtimestamp(near_ns // 1_000_000_000)
    found = near.replace(hour=hour, minute=minute, second=second, microsecond=0)
    if after and found <= near:
        found += _DAY
    elif not after and found > near:
        found -= _DAY
    return int(found.timestamp()) * 1_000_000_000


def _parse_spans(split: str | None, span_a: str | None, span_b: str | None, now_ns: int) -> tuple[Span, Span]:
    if split is None:
        first = Span() if span_a is None else parse_span(span_a, now_ns, option="--a")
        return first, Span() if span_b is None else parse_span(span_b, now_ns, option="--b")
    if span_a is not None or span_b is not None:
        raise click.UsageError("--split excludes --a and --b")
    at_ns = parse_instant(split, now_ns, option="--split")
    return Span(None, at_ns), Span(at_ns, None)


def _read_sides(
    places: tuple[str, ...], spans: tuple[Span, Span], route: str | None, service: str | None
) -> tuple[SideBuilder, SideBuilder]:
    """Read both sides; one place is read once.

    Raises: ConfigurationError when they can't be two sets of requests, or one of them is empty.
    """
    from reqpath.analyse.comparison import SideBuilder

    if len(places) > 2:
        raise click.UsageError("two are compared; name A and B")
    if len(places) < 2:
        if spans[0].overlaps(spans[1]):
            raise click.UsageError(
                "name two, A and B, or two times of one: --split 14:00, or --a 13:00..14:00 --b 14:00.., "
                "which must not overlap"
            )
        sources = [_open(places[0] if places else default_spool(), service, spans)]
    else:
        sources = [_open(place, service, (span,)) for place, span in zip(places, spans, strict=True)]
    if service is not None and all(source.traces is None for source in sources):
        raise ConfigurationError("--service is for traces; a spool is of one service")
    of_sides = (sources[0], sources[-1])
    builders = tuple(
        SideBuilder(", ".join(filter(None, (source.place, str(span)))), traces=source.traces is not None)
        for source, span in zip(of_sides, spans, strict=True)
    )
    first, second = builders
    extents = []
    # Records hold no cycles, and there are millions of them.
    gc.disable()
    try:
        if len(sources) == 1:
            extents.append(_share_out(sources[0], list(zip(builders, spans, strict=True)), route))
        else:
            for source, builder, span in zip(sources, builders, spans, strict=True):
                extents.append(_share_out(source, [(builder, span)], route))
    finally:
        gc.enable()
    for name, builder, source, extent in zip(
        "AB", builders, of_sides, (extents[0], extents[-1]), strict=True
    ):
        if not builder.requests and not builder.broken:
            raise ConfigurationError(
                f"{name} has no requests: {builder.title}. {_advise(source, extent, route)}"
            )
    return first, second


def _open(place: str, service: str | None, spans: Iterable[Span]) -> Source:
    if place.startswith(("http://", "https://")):
        starts = [span.start_ns for span in spans]
        known = [start_ns for start_ns in starts if start_ns is not None]
        # An hour, unless it is said since when.
        since = (
            datetime.fromtimestamp(min(known) // 1_000_000_000).isoformat()
            if len(known) == len(starts)
            else None
        )
        return open_source("jaeger", (place,), service=service, lookback=since)
    if place == "-" or os.path.isfile(place):
        return open_source("otlp", (place,), service=service)
    return open_source("spool", (place,))


def _share_out(
    source: Source, sides: list[tuple[SideBuilder, Span]], route: str | None
) -> tuple[int, int] | None:
    """Give each request to the side that it belongs to; return the first and the last start of all."""
    first_ns = last_ns = None
    for path in show_progress(source.read("")):
        if route is not None and not matches_route(path.route, route):
            continue
        start_ns = path.timing.start_ns
        first_ns = start_ns if first_ns is None else min(first_ns, start_ns)
        last_ns = start_ns if last_ns is None else max(last_ns, start_ns)
        for builder, span in sides:
            if span.holds(start_ns):
                builder.add(path)
                break
    return None if first_ns is None or last_ns is None else (first_ns, last_ns)


def _advise(source: Source, extent: tuple[int, int] | None, route: str | None) -> str:
    if extent is not None:
        first, last = (format_instant(ns, milliseconds=False) for ns in extent)
        return f"Its requests started from {first} to {last}."
    if route is not None:
        return f"It has none of the route {route}."
    return source.advice


def _write_page(file: str, comparison: Comparison) -> None:
    from reqpath.commands.output import write_output
    from reqpath.render.page_compare import render_comparison_page

    size = write_output([render_comparison_page(comparison).encode()], file)
    requests = comparison.first.requests + comparison.second.requests
    click.echo(f"{file}: {format_count(requests, 'request')}, {format_bytes(size)}")
