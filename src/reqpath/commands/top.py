"""`reqpath top`: the last seconds of a spool, live on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import click

from reqpath.collect.join import BATCH_BYTES, Joiner
from reqpath.commands.report import matches_route
from reqpath.commands.shared import ANY_PATH, check_extra
from reqpath.path import RequestPath
from reqpath.settings import default_spool
from reqpath.spool import SpoolReader

#: A worker's record waits as long for nginx's line, which the collector writes a tenth of a second after it.
_PATIENCE_NS: Final = 1_500_000_000
#: A file that was last written to so long before the longest window has nothing to show in it.
_SLACK_NS: Final = 60_000_000_000


@click.command(
    name="top",
    epilog="""\b
Examples:
  reqpath top
  reqpath top /run/reqpath --route '/items/<int:id>'
""",
)
@click.argument("spool", required=False, type=ANY_PATH)
@click.option("--route", metavar="ROUTE", help="Only this route: '/items/<int:id>', 'GET /items', '/items*'.")
def command(*, spool: str | None, route: str | None) -> None:
    """Show the last seconds live: the path, its tiers, the workers, the slowest requests.

    SPOOL is the directory that the app writes to: REQPATH_SPOOL, or one in the temporary directory. Enter
    opens a request, space pauses, q quits; the other keys are on the last line.
    """
    check_extra("report", ["rich", "numpy", "textual"])
    reader = SpoolReader(spool or default_spool(), batch_bytes=BATCH_BYTES)
    if not is_terminal():
        raise click.UsageError(
            "this is for a terminal; elsewhere: reqpath report --since 10s, which has --json"
        )
    from reqpath.render.top import WINDOWS_S, Top

    reader.skip(time.time_ns() - WINDOWS_S[-1] * 1_000_000_000 - _SLACK_NS)
    Top(
        follow(reader, route),
        place=f"the spool {reader.directory}",
        advice="Requests are shown as they end. If the app's REQPATH_SPOOL is another directory, name that "
        "one: reqpath top SPOOL. For a first look: reqpath demo.",
        lost=lambda: reader.losses.lost_records,
        colour=not os.environ.get("NO_COLOR"),
    ).run(mouse=False)


def follow(reader: SpoolReader, route: str | None) -> Callable[[], Iterator[RequestPath]]:
    """Return what yields, at each call, the requests that the spool has had added since the last one."""
    joiner = Joiner()

    def read() -> Iterator[RequestPath]:
        for path in joiner.read(reader):
            if route is None or matches_route(path.route, route):
                yield path
        for path in joiner.release(time.time_ns() - _PATIENCE_NS):
            if route is None or matches_route(path.route, route):
                yield path

    return read


def is_terminal() -> bool:
    """Tell whether all ends are one: keys come from the first, and Textual draws on the last."""
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
