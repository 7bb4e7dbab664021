"""`reqpath trace`: one request as a waterfall."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

import click

from reqpath.commands.report import show_progress
from reqpath.commands.shared import open_console
from reqpath.commands.sources import Origin, open_source, source_options
from reqpath.errors import MissingExtraError, ReqPathError
from reqpath.path import RequestPath

#: Trace ids named when a prefix fits several.
_NAMED = 5


class NoSuchRequestError(ReqPathError):
    """No request, or more than one, is what was asked for."""


@click.command(
    name="trace",
    epilog="""\b
Examples:
  reqpath trace slowest
  reqpath trace 4bf92f35 /run/reqpath --json
  reqpath trace slowest --from jaeger http://localhost:16686 --service shop
""",
)
@click.argument("request", metavar="ID|slowest|last")
@source_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (docs/report-json.md).")
def command(
    *,
    request: str,
    origin: Origin,
    places: tuple[str, ...],
    service: str | None,
    lookback: str | None,
    as_json: bool,
) -> None:
    """Show one request as a waterfall.

    ID is a trace id or the first digits of one; the rest is as for `reqpath report`.
    """
    try:
        from rich.text import Text

        from reqpath.render.waterfall import render_waterfall
    except ImportError as error:
        raise MissingExtraError("report", error.name or "numpy and rich") from error
    source = open_source(origin, places, service=service, lookback=lookback)
    path, others = find_request(show_progress(source.read(request.strip())), request, source.place)
    if as_json:
        from reqpath.render.document import path_to_json

        json.dump(path_to_json(path), sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    console = open_console()
    render_waterfall(path, console)
    if others:
        console.print()
        console.print(Text(f"{others} more of this trace id; this is the one that took longest."))


def find_request(
    paths: Iterable[RequestPath], wanted: str, place: str = "the spool"
) -> tuple[RequestPath, int]:
    """Return the request, and how many others have its trace id; of several, the one that took longest.

    Raises: NoSuchRequestError when there is none, or a prefix fits several trace ids.
    """
    if wanted in ("slowest", "last"):
        best: RequestPath | None = None
        best_key = -1
        for path in paths:
            timing = path.timing
            key = timing.total_ns if wanted == "slowest" else timing.start_ns + timing.total_ns
            if key > best_key:
                best, best_key = path, key
        if best is None:
            raise NoSuchRequestError(f"{place} has no requests yet; `reqpath report` says what to do")
        return best, 0
    prefix = wanted.strip().lower()
    found = [path for path in paths if path.trace_id.startswith(prefix)]
    ids = list(dict.fromkeys(path.trace_id for path in found))
    if not ids:
        raise NoSuchRequestError(f"no request in {place} has a trace id that starts with {wanted}")
    if len(ids) > 1:
        named = ", ".join(ids[:_NAMED]) + (" …" if len(ids) > _NAMED else "")
        raise NoSuchRequestError(f"{len(ids)} trace ids start with {wanted}: {named}")
    return max(found, key=lambda path: path.timing.total_ns), len(found) - 1
