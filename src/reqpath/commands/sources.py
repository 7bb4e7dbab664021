"""Where `reqpath report` and `reqpath trace` have their requests from: a spool, OTLP files, a Jaeger.

`source_options` gives a command its options, and `open_source` makes of their values what is read alike::

    source = open_source("jaeger", ("http://localhost:16686",), service="shop", lookback="1h")
    for path in source.read(): ...
    source.losses(), source.traces      # what became of the rest
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeVar

import click

from reqpath.collect.join import BATCH_BYTES, read_paths
from reqpath.commands.shared import ANY_PATH
from reqpath.errors import ConfigurationError
from reqpath.path import RequestPath
from reqpath.settings import default_spool
from reqpath.spool import SpoolLosses, SpoolReader
from reqpath.traces.counts import TraceCounts
from reqpath.traces.jaeger import JaegerReader
from reqpath.traces.reading import build_counted, read_jaeger_paths, read_otlp_paths

Origin = Literal["spool", "otlp", "jaeger"]
Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS_S: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_DEFAULT_LOOKBACK: Final = "1h"
_TRACE_ID: Final = re.compile(r"[0-9a-fA-F]{32}")
#: Read of a spool's file at a time: twice what a collector reads, so files are opened half as often.
REPORT_BATCH_BYTES: Final = 2 * BATCH_BYTES


@dataclass(frozen=True, slots=True)
class Source:
    """Request paths, to be read once."""

    #: What it is called in a sentence.
    place: str
    #: What to do when it holds no request.
    advice: str
    #: The words that name it on a command line; empty where it can't be read again.
    words: str
    #: Yields the paths; told a whole trace id, it may leave out those of other traces.
    read: Callable[[str], Iterator[RequestPath]]
    #: The spool that is read; None when it is traces.
    reader: SpoolReader | None = None
    #: Of traces, what was read so far.
    traces: TraceCounts | None = None

    def losses(self) -> SpoolLosses | None:
        """Return what a spool lost; None of traces."""
        return self.reader.losses if self.reader else None


def source_options(command: Command) -> Command:
    """Give a command the options that `open_source` takes, and its places."""
    options = (
        click.option(
            "--from",
            "origin",
            type=click.Choice(["spool", "otlp", "jaeger"]),
            default="spool",
            show_default=True,
            help="What is read: a spool, files of OTLP in JSON, or the Jaeger at an address.",
        ),
        click.option(
            "--service", metavar="NAME", help="Of traces: only this service. Needed with --from jaeger."
        ),
        click.option(
            "--lookback",
            metavar="WHEN",
            help=f"From jaeger: how far back, 30m, 2h, 1d. [default: --since, or {_DEFAULT_LOOKBACK}]",
        ),
        click.argument("places", nargs=-1, type=ANY_PATH, metavar="[SPOOL|FILE...|URL]"),
    )
    for option in options:
        command = option(command)
    return command


def open_source(
    origin: Origin,
    places: tuple[str, ...],
    *,
    service: str | None = None,
    lookback: str | None = None,
    since: str | None = None,
) -> Source:
    """Return the source that the options name; `since` stands in for a missing `lookback`.

    Raises: ConfigurationError when they don't go together; SpoolError.
    """
    if origin != "jaeger" and lookback is not None:
        raise ConfigurationError("--lookback goes with --from jaeger; --since is for all others")
    if origin == "spool":
        if len(places) > 1 or service is not None:
            raise ConfigurationError(
                "a spool is one directory of one service; several files, or --service, go with --from otlp"
            )
        return _open_spool(places[0] if places else default_spool())
    if origin == "otlp":
        if not places:
            raise ConfigurationError("--from otlp takes files: what OpenTelemetry's file exporter wrote")
        return _open_files(places, service)
    if len(places) != 1:
        raise ConfigurationError("--from jaeger takes one address, such as http://localhost:16686")
    return _open_jaeger(places[0], service, lookback or since or _DEFAULT_LOOKBACK)


def parse_since(text: str, now_ns: int, *, option: str = "--since") -> int:
    """Return the instant, ns since the epoch, that `10m`, `90s`, `2h`, `1d` (ago) or an ISO date names.

    Raises: ConfigurationError for anything else.
    """
    if match := re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*(s|min|m|h|d)", text.strip(), re.ASCII):
        return now_ns - int(float(match[1]) * _UNITS_S[match[2]] * 1e9)
    try:
        return int(datetime.fromisoformat(text.strip()).timestamp() * 1e9)
    except (ValueError, OverflowError, OSError):
        raise ConfigurationError(
            f"{option} is {text!r}; it takes 30s, 10m, 2h, 1d, or a date and time such as 2026-01-31T12:00"
        ) from None


def _open_spool(directory: str) -> Source:
    reader = SpoolReader(directory, batch_bytes=REPORT_BATCH_BYTES)
    return Source(
        f"the spool {reader.directory}",
        "Put ReqPath(app) into the app and let it answer a request; if the app's REQPATH_SPOOL is another "
        "directory, name that one: reqpath report SPOOL. For a first look: reqpath demo.",
        shlex.quote(reader.directory),
        lambda _trace_id: read_paths(reader),
        reader,
    )


def _open_files(files: tuple[str, ...], service: str | None) -> Source:
    counts = TraceCounts()
    return Source(
        "the standard input" if files == ("-",) else files[0] if len(files) == 1 else f"{len(files)} files",
        "They hold no SERVER span of HTTP"
        + (f" of the service {service}." if service else ".")
        + " docs/spans.md says what is read.",
        ""
        if "-" in files
        else shlex.join(["--from", "otlp", *(["--service", service] if service else []), *files]),
        lambda _trace_id: read_otlp_paths(files, service, counts),
        traces=counts,
    )


def _open_jaeger(url: str, service: str | None, lookback: str) -> Source:
    counts = TraceCounts()
    reader = JaegerReader(url)
    now_ns = time.time_ns()
    start_ns = parse_since(lookback, now_ns, option="--lookback")

    def read(trace_id: str) -> Iterator[RequestPath]:
        if _TRACE_ID.fullmatch(trace_id):
            yield from build_counted(reader.fetch_trace(trace_id.lower()), service, counts)
        elif service is None:
            known = ", ".join(reader.list_services()) or "none yet"
            raise ConfigurationError(f"--from jaeger takes a --service; this Jaeger knows {known}")
        else:
            yield from read_jaeger_paths(reader, service, start_ns, now_ns, counts)

    named = ["--from", "jaeger", *(["--service", service] if service else []), "--lookback", lookback]
    return Source(
        f"the Jaeger at {reader.url}, looking back {lookback}",
        "Look further back with --lookback, or see whether the collector exports: reqpath collect --otlp.",
        shlex.join([*named, reader.url]),
        read,
        traces=counts,
    )
