"""`reqpath jaeger`: a Jaeger on this machine, until Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import tempfile
from functools import partial

import click

from reqpath.commands.shared import stay_until_ctrl_c
from reqpath.servers.jaeger import JAEGER_VARIABLE, Jaeger, start_jaeger, usual_ports
from reqpath.servers.process import exit_on_signals

NO_UI = (
    "This Jaeger was built from its Go module, which lacks the pages of the user interface: a browser sees a "
    "placeholder. Its APIs are whole, and `reqpath report --from jaeger` reads them. For the pages, have "
    f"docker or podman, or name a Jaeger of your own in ${JAEGER_VARIABLE}."
)


@click.command(
    name="jaeger",
    epilog="""\b
Examples:
  reqpath jaeger            then, in another terminal: reqpath demo --jaeger
  reqpath jaeger --json
""",
)
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as one JSON object.")
def command(*, as_json: bool) -> None:
    """Start a Jaeger on this machine and stay until Ctrl-C.

    A Jaeger of your own comes first, then a container engine, then a build by Go, which takes some minutes
    once. It keeps its traces in memory, and only this machine reaches it.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(exit_on_signals())
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="reqpath-jaeger-"))
        jaeger = stack.enter_context(start_jaeger(directory, ports=usual_ports(), progress=_announce))
        describe = partial(_describe, jaeger, as_json=as_json)
        if jaeger.process is None:
            describe()
        else:
            stay_until_ctrl_c(describe, jaeger.process.check_alive)


def _announce(what: str) -> None:
    click.echo(f"starting {what}", err=True)


def _describe(jaeger: Jaeger, *, as_json: bool) -> None:
    addresses = {"url": jaeger.url, "otlp_http": jaeger.otlp_http, "otlp_grpc": jaeger.otlp_grpc}
    if as_json:
        click.echo(json.dumps(addresses | {"has_ui": jaeger.has_ui, "started": jaeger.process is not None}))
        return
    click.echo(
        f"user interface and query API  {jaeger.url}\n"
        f"OTLP over HTTP                {jaeger.otlp_http}\n"
        f"OTLP over gRPC                {jaeger.otlp_grpc}"
    )
    if not jaeger.has_ui:
        click.echo(f"\n{NO_UI}")
    click.echo("\nUp until Ctrl-C." if jaeger.process else "\nIt ran already and goes on running.")
