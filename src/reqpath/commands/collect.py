"""`reqpath collect`: takes nginx's log lines into the spool, and sends traces to a backend."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from typing import Any, get_args

import click

from reqpath.collect.collector import Collector, Status
from reqpath.collect.export import GRPC, HTTP, find_target
from reqpath.collect.receiver import Counts, DatagramSource, FileSource, Receiver, Source, stopped_by_signals
from reqpath.configuration import parse_listen
from reqpath.errors import ConfigurationError
from reqpath.settings import DEFAULT_LISTEN, Keep, Settings


@click.command(
    epilog="""\b
Examples:
  reqpath collect
  reqpath collect --otlp http://localhost:4318
  reqpath collect /var/spool/shop --listen udp:127.0.0.1:5171 --otlp http://otel:4317 --protocol grpc
  reqpath collect --once saved-spool --otlp http://localhost:4318 --keep all
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
@click.option(
    "--otlp",
    metavar="URL",
    help="Send traces to this OTLP backend. [default: $REQPATH_OTLP, then what OTEL_EXPORTER_OTLP_* say]",
)
@click.option(
    "--protocol",
    type=click.Choice([HTTP, GRPC]),
    help=f"Of the backend. [default: $REQPATH_OTLP_PROTOCOL, OTEL_EXPORTER_OTLP_PROTOCOL, {HTTP}]",
)
@click.option(
    "--keep",
    type=click.Choice(get_args(Keep)),
    help="Send what is worth keeping (errors, slow ones, a few of each route and second), or all.",
)
@click.option("--once", is_flag=True, help="Send what a spool holds and end, without listening.")
@click.option("--from-start", is_flag=True, help="Send again what was sent from this spool before.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    spool: str | None,
    *,
    listen: str | None,
    files: tuple[str, ...],
    socket_mode: str,
    otlp: str | None,
    protocol: str | None,
    keep: Keep | None,
    once: bool,
    from_start: bool,
    as_json: bool,
) -> None:
    """Take nginx's log lines into SPOOL (default: $REQPATH_SPOOL) until SIGTERM or Ctrl-C.

    With a backend, send it the traces worth keeping. SIGUSR1 prints what was done so far.

    Run it as the user that the app runs as, under any supervisor; or let uWSGI run it as a mule, see
    `reqpath config uwsgi`.
    """
    settings = Settings.from_environment()
    settings = replace(
        settings,
        spool=spool or settings.spool,
        listen=listen or settings.listen,
        otlp=otlp or settings.otlp,
        otlp_protocol=protocol or settings.otlp_protocol,
        keep=keep or settings.keep,
    )
    if once:
        if listen or files:
            raise ConfigurationError("--once takes no lines, so neither --listen nor --file")
        _export_once(settings, from_start=from_start, as_json=as_json)
    else:
        _collect(settings, listen, files, _parse_mode(socket_mode), from_start=from_start, as_json=as_json)


def _collect(
    settings: Settings,
    listen: str | None,
    files: tuple[str, ...],
    mode: int,
    *,
    from_start: bool,
    as_json: bool,
) -> None:
    address = parse_listen(settings.listen) if listen or not files else None
    where = ["the standard input" if path == "-" else path for path in files] + [str(address)] * bool(address)
    target = find_target(settings)
    collector = Collector(settings, target, report=_report, from_start=from_start) if target else None
    with ExitStack() as stack:
        sources: list[Source] = [stack.enter_context(closing(FileSource(path))) for path in files]
        if address:
            sources.append(stack.enter_context(closing(DatagramSource(address, mode=mode))))
        receiver = Receiver(settings, sources, report=_report, work=collector.work if collector else None)
        stack.enter_context(stopped_by_signals(receiver))
        stack.enter_context(_telling_at_signal(receiver, collector))
        if collector:
            collector.begin()
        _report(f"collecting from {', '.join(where)} into {settings.spool_directory}")
        if collector:
            _report(f"exporting to {target}")
        try:
            counts = receiver.run()
        finally:
            if collector:
                collector.end()
    status = collector.status() if collector else None
    click.echo(json.dumps(_to_json(counts, status)) if as_json else render_summary(counts, status))


def _export_once(settings: Settings, *, from_start: bool, as_json: bool) -> None:
    target = find_target(settings)
    if target is None:
        raise ConfigurationError("--once needs a backend: --otlp http://localhost:4318, say")
    collector = Collector(settings, target, report=_report, expect_nginx=False, from_start=from_start)
    collector.begin()
    try:
        finished = collector.finish()
    finally:
        collector.end()
    status = collector.status()
    assert status is not None
    click.echo(json.dumps(asdict(status)) if as_json else render_status(status))
    if not finished:
        raise SystemExit(1)


def render_summary(counts: Counts, status: Status | None) -> str:
    """Render what was received, and what was exported."""
    return "\n".join([render_counts(counts), *([render_status(status)] if status else [])])


def render_counts(counts: Counts) -> str:
    """Render what became of nginx's lines, as one line."""
    parts = [f"{counts.received:,} lines", f"{counts.recorded:,} recorded"]
    parts += [f"{number:,} rejected ({reason.value})" for reason, number in sorted(counts.rejected.items())]
    parts.append(f"{counts.kernel_dropped:,} dropped by the kernel")
    if counts.spool_dropped:
        parts.append(f"{counts.spool_dropped:,} that the spool could not take")
    return ", ".join(parts)


def render_status(status: Status) -> str:
    """Render what became of the paths, as one line."""
    kept = sum(status.kept.values())
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in status.kept.items())
    parts = [
        f"{status.joined:,} paths",
        f"{kept:,} kept" + (f" ({reasons})" if reasons else ""),
        f"{status.exported:,} exported in {status.spans:,} spans",
    ]
    for number, what in (
        (status.refused, "refused"),
        (status.rejected_spans, "spans rejected"),
        (status.pending, "still to be exported"),
        (status.waiting, "waiting for their other half"),
        (status.missed, "records gone before that"),
    ):
        if number:
            parts.append(f"{number:,} {what}")
    parts += [
        f"nginx's clock differs from {host}'s by {offset_ns / 1e6:+.3f} ms"
        for host, offset_ns in status.clocks.items()
    ]
    return ", ".join(parts)


@contextmanager
def _telling_at_signal(receiver: Receiver, collector: Collector | None) -> Iterator[None]:
    def tell(*_: Any) -> None:
        # Not by a stream, which may be in the middle of another message.
        text = render_summary(receiver.counts, collector.status() if collector else None)
        os.write(2, f"reqpath: {text}\n".encode())

    previous = signal.signal(signal.SIGUSR1, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, previous)


def _to_json(counts: Counts, status: Status | None) -> dict[str, object]:
    return {
        "received": counts.received,
        "recorded": counts.recorded,
        "rejected": {reason.value: number for reason, number in sorted(counts.rejected.items())},
        "kernel_dropped": counts.kernel_dropped,
        "spool_dropped": counts.spool_dropped,
        "export": asdict(status) if status else None,
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
