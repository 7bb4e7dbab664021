"""`reqpath collect`: takes nginx's log lines into the spool until it is stopped."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from dataclasses import replace

import click

from reqpath.collect.receiver import Counts, DatagramSource, FileSource, Receiver, Source, stopped_by_signals
from reqpath.configuration import parse_listen
from reqpath.errors import ConfigurationError
from reqpath.settings import DEFAULT_LISTEN, Settings


@click.command(
    epilog="""\b
Examples:
  reqpath collect
  reqpath collect /var/spool/shop --listen udp:127.0.0.1:5171
  tail -F /var/log/nginx/reqpath.log | reqpath collect --file -
"""
)
@click.argument("spool", required=False)
@click.option(
    "--listen",
    metavar="ADDRESS",
    help=f"Where nginx sends its lines: udp:HOST:PORT or unix:PATH. [default: {DEFAULT_LISTEN}]",
)
@click.option(
    "--file",
    "files",
    metavar="PATH",
    multiple=True,
    help="Instead of listening, read a log in reqpath's format from start to end; - is the standard input.",
)
@click.option(
    "--socket-mode",
    default="666",
    metavar="OCTAL",
    help="Permissions of a Unix socket; nginx's workers must be able to write to it. [default: 666]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    spool: str | None, listen: str | None, files: tuple[str, ...], socket_mode: str, as_json: bool
) -> None:
    """Take nginx's log lines into SPOOL (default: $REQPATH_SPOOL) until SIGTERM or Ctrl-C.

    Run it as the user that the app runs as, under any supervisor; or let uWSGI run it as a mule, see
    `reqpath config uwsgi`.
    """
    settings = Settings.from_environment()
    settings = replace(settings, spool=spool or settings.spool, listen=listen or settings.listen)
    mode = _parse_mode(socket_mode)
    address = parse_listen(settings.listen) if listen or not files else None
    where = ["the standard input" if path == "-" else path for path in files] + [str(address)] * bool(address)
    with ExitStack() as stack:
        sources: list[Source] = [stack.enter_context(closing(FileSource(path))) for path in files]
        if address:
            sources.append(stack.enter_context(closing(DatagramSource(address, mode=mode))))
        receiver = Receiver(settings, sources, report=_report)
        stack.enter_context(stopped_by_signals(receiver))
        _report(f"collecting from {', '.join(where)} into {settings.spool_directory}")
        counts = receiver.run()
    click.echo(json.dumps(_to_json(counts)) if as_json else render_counts(counts))


def render_counts(counts: Counts) -> str:
    """Render the summary as one line."""
    parts = [f"{counts.received:,} lines", f"{counts.recorded:,} recorded"]
    parts += [f"{number:,} rejected ({reason.value})" for reason, number in sorted(counts.rejected.items())]
    parts.append(f"{counts.kernel_dropped:,} dropped by the kernel")
    if counts.spool_dropped:
        parts.append(f"{counts.spool_dropped:,} that the spool could not take")
    return ", ".join(parts)


def _to_json(counts: Counts) -> dict[str, object]:
    return {
        "received": counts.received,
        "recorded": counts.recorded,
        "rejected": {reason.value: number for reason, number in sorted(counts.rejected.items())},
        "kernel_dropped": counts.kernel_dropped,
        "spool_dropped": counts.spool_dropped,
    }


def _report(message: str) -> None:
    click.echo(f"reqpath: {message}", err=True)


def _parse_mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise ConfigurationError(f"--socket-mode is {text!r}; it takes an octal number such as 660")
    return mode
