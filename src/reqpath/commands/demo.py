"""`reqpath demo`: everything for real, for some seconds, and where the time went."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any, Literal

import click

from reqpath.commands.shared import ANY_PATH, check_extra, name_program, show_start, stay_until_ctrl_c
from reqpath.errors import ConfigurationError
from reqpath.spool import prepare_spool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from reqpath.analyse.figures import Breakdown
    from reqpath.bench.load import Observation
    from reqpath.commands.backend import Backend
    from reqpath.path import RequestPath
    from reqpath.record import Transport
    from reqpath.servers.database import Kind
    from reqpath.servers.deployment import Deployment
    from reqpath.servers.jaeger import Jaeger

#: What the extra `demo` brings.
_NEEDED = ("flask", "pymysql", "numpy", "rich")
#: How long a worker may take to close the records of the last requests.
_SETTLE_S = 3.0
_INTERRUPTED = 130
_WORKERS = 4
_SERVICE = "shop"


@click.command(
    name="demo",
    epilog="""\b
Examples:
  reqpath demo
  reqpath demo --workers threads --transport tcp --keep-spool ./spool
  reqpath demo --jaeger
  reqpath demo --otlp http://localhost:4318
""",
)
@click.option("--transport", type=click.Choice(["tcp", "unix"]), default="unix", help="nginx to uWSGI.")
@click.option("--db-transport", type=click.Choice(["tcp", "unix"]), default="tcp", help="App to database.")
@click.option(
    "--workers",
    type=click.Choice(["processes", "threads"]),
    default="processes",
    help="What uWSGI serves with, four of them.",
)
@click.option("--database", type=click.Choice(["mariadb", "mysql"]), help="Default: whichever is found.")
@click.option(
    "--seconds",
    metavar="N",
    type=click.FloatRange(0.1, 86_400),
    default=10.0,
    show_default=True,
    help="How long traffic is driven.",
)
@click.option("--keep-spool", metavar="DIR", type=ANY_PATH, help="Leave the records there.")
@click.option("--keep-running", is_flag=True, help="Leave the servers up until Ctrl-C.")
@click.option("--otlp", metavar="URL", help="Send the traces to this OTLP backend, all of them.")
@click.option(
    "--jaeger", is_flag=True, help="Send the traces to a Jaeger; without one, start it until Ctrl-C."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (docs/report-json.md).")
def command(
    *,
    transport: Transport,
    db_transport: Transport,
    workers: Literal["processes", "threads"],
    database: Kind | None,
    seconds: float,
    keep_spool: str | None,
    keep_running: bool,
    otlp: str | None,
    jaeger: bool,
    as_json: bool,
) -> None:
    """Start nginx, uWSGI and a database, drive traffic, show where its time went.

    The servers are private: their own ports, sockets and directories. Afterwards nothing is left of them.
    """
    check_extra("demo", _NEEDED)
    from rich.console import Console

    from reqpath.bench.load import wait_for_records
    from reqpath.commands.backend import open_backend
    from reqpath.render.document import breakdown_to_json
    from reqpath.render.text import render_report
    from reqpath.servers.deployment import shop, start_deployment
    from reqpath.servers.process import exit_on_signals
    from reqpath.servers.topology import TRACE_RESPONSE, Topology

    spool = None if keep_spool is None else _choose_spool(keep_spool)
    talk = Console(stderr=True)
    observations: list[Observation] = []
    with contextlib.ExitStack() as outer:
        outer.enter_context(exit_on_signals())
        with show_start(talk) as tell:
            backend = outer.enter_context(open_backend(otlp, tell, jaeger=jaeger))
        topology = Topology(
            app=shop(),
            transport=transport,
            database_transport=db_transport,
            processes=_WORKERS if workers == "processes" else 1,
            threads=_WORKERS if workers == "threads" else 1,
            database=database,
            nginx_lines=(TRACE_RESPONSE,),
            environment=(("REQPATH_SERVICE_NAME", _SERVICE), *(backend.environment if backend else ())),
        )
        with contextlib.ExitStack() as stack:
            with show_start(talk) as tell:
                deployment = stack.enter_context(start_deployment(topology, spool=spool, progress=tell))
            _describe(deployment, talk)
            interrupted = _drive(deployment, seconds, observations, talk)
            deployment.check_alive()
            wait_for_records(deployment.spool, {o.trace_id for o in observations if o.trace_id}, _SETTLE_S)
            breakdown, client = _read(deployment.spool, observations)
            if as_json:
                document = breakdown_to_json(breakdown) | {
                    "client": client,
                    "deployment": _deployment_to_json(deployment),
                }
                json.dump(document, sys.stdout, indent=2)
                sys.stdout.write("\n")
                sys.stdout.flush()
            else:
                console = Console()
                render_report(breakdown, console)
                _print_client(client, console)
            if backend and breakdown.slowest:
                _print_trace(backend, breakdown.slowest[0].trace_id, talk)
            _print_next_steps(spool, talk)
            if keep_running and not interrupted:
                _wait_for_the_end(deployment, talk)
        if backend and backend.jaeger and not (interrupted or keep_running):
            _wait_beside(backend.jaeger, talk)
    if interrupted:
        sys.exit(_INTERRUPTED)


def _choose_spool(directory: str) -> str:
    """Return the directory's full path, and make it where there is none.

    Raises:
        ConfigurationError: there is something in it.
        SpoolError: workers would not write to it.
    """
    path = os.path.abspath(directory)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if os.listdir(path):
            raise ConfigurationError(f"{directory} is not empty; name a directory that is, or a new one")
    prepare_spool(path)
    return path


def _describe(deployment: Deployment, talk: Console) -> None:
    topology = deployment.topology
    stamps = "1 µs" if deployment.resolution_ns == 1_000 else "1 ms; libnginx-mod-http-perl makes it 1 µs"
    talk.print(
        f"nginx (stamps good to {stamps})\n"
        f"  ─{topology.transport}→ uWSGI, {topology.workers}\n"
        f"  ─{topology.database_transport}→ {deployment.database_title}",
        highlight=False,
    )


def _drive(deployment: Deployment, seconds_s: float, observations: list[Observation], talk: Console) -> bool:
    """Drive the traffic; return whether Ctrl-C ended it."""
    from rich.progress import BarColumn, Progress, TextColumn

    from reqpath.bench.load import Pace, drive, plan_shop_traffic

    pace = Pace(clients=4, seconds_s=seconds_s, think_s=0.03, traced=False)
    if not talk.is_terminal:
        talk.print(f"driving traffic for {seconds_s:g} s", highlight=False)
    bar = Progress(
        TextColumn("driving traffic"),
        BarColumn(),
        TextColumn("{task.fields[requests]} requests"),
        console=talk,
        transient=True,
        disable=not talk.is_terminal,
    )
    task = bar.add_task("", total=seconds_s, requests=0)
    begin_s = time.monotonic()
    try:
        with bar:
            drive(
                (deployment.host, deployment.port),
                plan_shop_traffic(pace.seed),
                pace,
                observations,
                on_progress=lambda count: bar.update(
                    task, completed=time.monotonic() - begin_s, requests=count
                ),
            )
    except KeyboardInterrupt:
        talk.print("interrupted; this is what was measured", highlight=False)
        return True
    return False


def _read(spool: str, observations: list[Observation]) -> tuple[Breakdown, dict[str, Any]]:
    """Return the breakdown, and how much of what the clients waited is in it."""
    from reqpath.analyse.breakdown import BreakdownBuilder
    from reqpath.bench.load import Followed
    from reqpath.collect.join import read_paths
    from reqpath.spool import SpoolReader

    by_trace = {observation.trace_id: observation for observation in observations}
    builder = BreakdownBuilder()
    shares = []
    reader = SpoolReader(spool)

    def follow() -> Iterator[RequestPath]:
        for path in read_paths(reader):
            observation = by_trace.get(path.trace_id)
            if observation is not None:
                shares.append(Followed(observation, path).attributed_share)
            yield path

    builder.extend(follow())
    waited_ns = [observation.end_ns - observation.start_ns for observation in observations]
    client = {
        "requests": len(observations),
        "recorded": len(shares),
        "mean_ns": statistics.fmean(waited_ns) if waited_ns else None,
        "p50_ns": statistics.median_low(waited_ns) if waited_ns else None,
        "attributed_share_p50": statistics.median(shares) if shares else None,
    }
    return builder.build(reader.losses), client


def _deployment_to_json(deployment: Deployment) -> dict[str, Any]:
    topology = deployment.topology
    return {
        "transport": topology.transport,
        "database_transport": topology.database_transport,
        "processes": topology.processes,
        "threads": topology.threads,
        "database": deployment.database_title,
        "stamp_resolution_ns": deployment.resolution_ns,
    }


def _print_client(client: dict[str, Any], console: Console) -> None:
    from reqpath.render.units import format_count, format_share

    if client["attributed_share_p50"] is None:
        return
    console.print(
        f"\n{format_count(client['requests'], 'request')} sent, {client['recorded']:,} recorded. Errors are "
        "part of the traffic: products that are not there, photos that are too large, a fault in the app. "
        f"By the client's own clock {format_share(client['attributed_share_p50'])} of its waiting is in a "
        "segment (at the median); the rest is its way to nginx and back.",
        highlight=False,
    )


def _print_next_steps(spool: str | None, talk: Console) -> None:
    program = name_program()
    place = "DIR" if spool is None else shlex.quote(spool)
    look = [f"{program} trace slowest {place}", f"{program} report {place} --html report.html"]
    steps = [
        (
            "One request in full, all of them as a page",
            look if spool else [f"{program} demo --keep-spool DIR", *look],
        ),
        ("Another set-up", [f"{program} demo --workers threads --transport tcp --db-transport unix"]),
        (
            "Your own app: ReqPath(app) in it, and the lines that these print",
            [f"{program} config nginx", f"{program} config uwsgi"],
        ),
    ]
    for what, commands in steps:
        talk.print(f"\n{what}", highlight=False)
        for line in commands:
            talk.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def _print_trace(backend: Backend, trace_id: str, talk: Console) -> None:
    from reqpath.commands.jaeger import NO_UI

    program = name_program()
    page = backend.find_trace(trace_id)
    talk.print("\nThe slowest request", highlight=False)
    if page is None:
        talk.print(f"  sent to {backend.otlp} as trace {trace_id}", highlight=False, soft_wrap=True)
        return
    talk.print(f"  {page}", highlight=False, soft_wrap=True)
    talk.print(f"  {program} trace {trace_id} --from jaeger {backend.page}", highlight=False, soft_wrap=True)
    if backend.jaeger and not backend.jaeger.has_ui:
        talk.print(f"\n{NO_UI}", highlight=False, markup=False)


def _wait_beside(jaeger: Jaeger, talk: Console) -> None:
    """Stay until Ctrl-C beside a Jaeger that was started; one that ran already needs nobody."""
    if jaeger.process is None:
        return
    text = f"\nJaeger is up until Ctrl-C: {jaeger.url}"
    stay_until_ctrl_c(lambda: talk.print(text, highlight=False, soft_wrap=True), jaeger.process.check_alive)


def _wait_for_the_end(deployment: Deployment, talk: Console) -> None:
    text = (
        f"\n{deployment.url} is up until Ctrl-C, its records are in {deployment.spool},\n"
        f"its configuration and logs in {deployment.placement.directory}"
    )
    stay_until_ctrl_c(lambda: talk.print(text, highlight=False, soft_wrap=True), deployment.check_alive)
