"""Measure the CPU that reqpath adds to a request in the worker, beside OpenTelemetry's instrumentation.

Three uWSGI workers serve the same Flask app behind nginx with the same database: with nothing, with reqpath
(its lines in nginx and uWSGI included), and with opentelemetry-instrumentation-flask and -pymysql, every
request recorded and exported in batches by OTLP over HTTP to a sink on this machine. Blocks of requests go
to them in random order, from h2load over four connections, so that the worker is always busy. A block's
figure is the CPU time per request of all threads of the worker, from `/proc/PID/task/*/schedstat`, from the
block's start to that of its next one, so that what an exporter does later counts too. What is added is the
difference within a round of blocks. A virtual machine changes its speed within a second, twofold at times, so
blocks are short, a tenth of one, and many: a change then meets all variants alike. And no processor halts
while it is measured: waking a virtual one that has halted takes its waker long, and it halts when it is left
alone for long enough, so a little more time between two queries seemed to cost as much as a wake-up.

Two equal deployments differ by ten µs a request and more, however long they are measured: where a process's
memory lies is chosen when it starts. So all servers but the database are started anew several times; a figure
is the mean over the starts, and an interval tells how far it would be from that of other starts. The
collector's CPU is shown apart::

    python benchmarks/overhead.py [--starts 8] [--rounds 30] [--requests 200] [--json]
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import pymysql
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy import stats

from reqpath.bench.capacity import find_tool
from reqpath.servers.database import Database, start_database
from reqpath.servers.deployment import Deployment, start_deployment
from reqpath.servers.process import exit_on_signals
from reqpath.servers.topology import App, Topology

VARIANTS = ("nothing", "reqpath", "opentelemetry")
ROUTES = ("plain", "queries")
ROWS = 1000
#: A block's servers are done then: the collector looks at nginx's lines each tenth of a second.
SETTLE_S = 0.12
#: Of a start's rounds, those with the least and the largest difference count for nothing: this share of each.
TRIMMED = 0.1
#: No block takes so long.
DRIVE_S = 60
#: An exporter that has no full batch waits so long, and a little.
EXPORT_S = 6
#: What the design asks for on the route with two queries.
TARGET = 0.1

#: Keeps one processor from halting, at a priority at which it takes no time from anything, until it is alone.
_SPIN = """
import os, sys
parent = os.getppid()
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""

FloatArray = npt.NDArray[np.float64]
#: Starts all servers that are compared, by variant, and ends them.
Start = Callable[[], contextlib.AbstractContextManager[dict[str, Deployment]]]


class Effort(NamedTuple):
    """How much is measured: starts of the servers, rounds of blocks in each, and a block's requests."""

    starts: int
    rounds: int
    requests: int


class Estimate(NamedTuple):
    """A figure and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


class _Sink(BaseHTTPRequestHandler):
    """Takes OTLP exports and throws them away."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class has it so
        """Say nothing."""


@contextlib.contextmanager
def start_sink() -> Iterator[str]:
    """Run the sink in this process; yield the endpoint for traces."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def keep_awake() -> Iterator[None]:
    """Have no processor halt."""
    with contextlib.ExitStack() as stack:
        for cpu in os.sched_getaffinity(0):
            spinner = stack.enter_context(subprocess.Popen([sys.executable, "-c", _SPIN, str(cpu)]))
            stack.callback(spinner.kill)
        yield


def fill(database: Database) -> None:
    """Create the table that the app reads."""
    with (
        pymysql.connect(**database.connect_arguments("unix"), autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("CREATE TABLE overhead (id INT PRIMARY KEY, name VARCHAR(64), price INT)")
        cursor.executemany(
            "INSERT INTO overhead VALUES (%s, %s, %s)",
            [(number, f"item {number}", number * 7) for number in range(ROWS + 2)],
        )


def read_cpu_ns(pid: int) -> int:
    """Return the CPU time of all threads of a process, in ns; right while they all sleep.

    Source: Linux Documentation/scheduler/sched-stats.rst
    """
    total_ns = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{thread}/schedstat") as file:
            total_ns += int(file.read().split()[0])
    return total_ns


def find_children(deployment: Deployment) -> dict[str, int]:
    """Return the pids of uWSGI's worker and, where there is one, of the collector's mule."""
    with open(deployment.uwsgi.log_path, encoding="utf-8", errors="replace") as log:
        lines = log.read()
    found = {}
    for name, start in (("worker", "spawned uWSGI worker 1 ("), ("collector", "spawned uWSGI mule 1 (")):
        _, marker, rest = lines.partition(start)
        if marker:
            found[name] = int(re.split(r"[,)]", rest.partition("pid: ")[2])[0])
    return found


def drive(h2load: str, url: str, requests: int) -> None:
    """Keep the worker busy from a few connections with so many requests.

    Raises: click.ClickException when one failed.
    """
    command = [h2load, "--h1", "--threads=1", "--clients=4", f"--requests={requests}", url]
    # Where a server closes its connections h2load waits for ever.
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DRIVE_S).stdout
    if f"status codes: {requests} 2xx" not in output:
        raise click.ClickException(f"{url} failed:\n{output}")


def deploy(
    app: str,
    database: Database,
    environment: tuple[tuple[str, str], ...] = (),
) -> contextlib.AbstractContextManager[Deployment]:
    """Serve one of `overhead_app`'s apps from one worker, reqpath's with all lines in nginx and uWSGI."""
    topology = Topology(
        app=App(f"overhead_app:{app}()", os.path.dirname(os.path.abspath(__file__)), "OVERHEAD_DATABASE"),
        processes=1,
        reqpath=app == "reqpath",
        # The batch exporter's thread does not survive a fork.
        uwsgi_lines=("lazy-apps = true",) if app == "opentelemetry" else (),
        environment=environment,
    )
    return start_deployment(topology, database=database)


def measure(
    start: Start, routes: Sequence[str], h2load: str, effort: Effort, console: Console
) -> dict[tuple[str, str, str], FloatArray]:
    """Return CPU µs per request by route, variant and process: an array of starts by rounds."""
    figures: dict[tuple[str, str, str], list[float]] = {}
    order = random.Random(7)
    with keep_awake(), Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=effort.starts * (effort.rounds + 1) * len(routes))
        for _ in range(effort.starts):
            with start() as deployments:
                blocks = _Blocks(deployments, figures)
                for round_number in range(effort.rounds + 1):
                    for route in routes:
                        for name in order.sample(list(deployments), len(deployments)):
                            # The first round warms up: imports, connections, caches.
                            blocks.run(h2load, name, route, effort.requests, counts=round_number > 0)
                        progress.advance(task)
                # What was left to be exported counts too.
                time.sleep(EXPORT_S)
                blocks.close_all()
    return {key: np.array(values).reshape(effort.starts, -1) for key, values in figures.items()}


class _Blocks:
    """Runs blocks of requests; a block's CPU time is read when the variant's next one begins."""

    def __init__(
        self, deployments: dict[str, Deployment], figures: dict[tuple[str, str, str], list[float]]
    ) -> None:
        self._deployments = deployments
        self._figures = figures
        self._children = {name: find_children(deployment) for name, deployment in deployments.items()}
        #: By variant its latest block: route, requests, and the CPU of each process before it.
        self._latest: dict[str, tuple[str, int, dict[str, int]]] = {}

    def run(self, h2load: str, name: str, route: str, requests: int, *, counts: bool) -> None:
        """Have a variant serve a block of requests."""
        self._close(name)
        before = self._read(name)
        drive(h2load, f"{self._deployments[name].url}/{route}/7", requests)
        time.sleep(SETTLE_S)
        if counts:
            self._latest[name] = route, requests, before

    def close_all(self) -> None:
        """Count what came after each variant's last block."""
        for name in self._children:
            self._close(name)

    def _close(self, name: str) -> None:
        if name not in self._latest:
            return
        route, requests, before = self._latest.pop(name)
        for child, after_ns in self._read(name).items():
            self._figures.setdefault((route, name, child), []).append(
                (after_ns - before[child]) / requests / 1e3
            )

    def _read(self, name: str) -> dict[str, int]:
        return {child: read_cpu_ns(pid) for child, pid in self._children[name].items()}


def estimate(added: FloatArray, other: FloatArray | None = None) -> Estimate:
    """Return the mean over the starts and its bounds; with `other`, the ratio.

    A start's figure is its rounds' trimmed mean, and not their median: an exporter works in bursts.
    """
    by_start = stats.trim_mean(added, TRIMMED, axis=1)
    samples = np.random.default_rng(7).integers(0, len(by_start), (10_000, len(by_start)))
    value, values = by_start.mean(), by_start[samples].mean(axis=1)
    if other is not None:
        others = stats.trim_mean(other, TRIMMED, axis=1)
        value, values = value / others.mean(), values / others[samples].mean(axis=1)
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


def summarise(figures: dict[tuple[str, str, str], FloatArray]) -> dict[str, dict[str, Any]]:
    """Return by route: CPU µs of each variant's worker, what is added to nothing, and the ratio."""
    summary: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        cpu_us = {variant: figures[route, variant, "worker"] for variant in VARIANTS}
        added = {variant: cpu_us[variant] - cpu_us["nothing"] for variant in VARIANTS[1:]}
        summary[route] = {
            "cpu_us": {variant: float(np.median(values)) for variant, values in cpu_us.items()},
            "added_us": {variant: estimate(values)._asdict() for variant, values in added.items()},
            "ratio": estimate(added["reqpath"], added["opentelemetry"])._asdict(),
            "collector_us": float(np.median(figures[route, "reqpath", "collector"])),
        }
    return summary


def show(summary: dict[str, dict[str, Any]], console: Console) -> None:
    """Print one table a route, and the ratio."""
    for route, row in summary.items():
        table = Table(title=f"/{route}: CPU of the worker, µs per request", title_justify="left")
        for column in ("", "median", "added to nothing", "95 % interval"):
            table.add_column(column, justify="left" if not column else "right")
        for variant in VARIANTS:
            added = row["added_us"].get(variant)
            table.add_row(
                variant,
                f"{row['cpu_us'][variant]:.0f}",
                "" if added is None else f"+{added['value']:.0f}",
                "" if added is None else f"{added['low']:.0f} to {added['high']:.0f}",
            )
        console.print(table)
        ratio = row["ratio"]
        console.print(
            f"reqpath adds {ratio['value']:.3f} of what OpenTelemetry adds "
            f"[{ratio['low']:.3f}, {ratio['high']:.3f}]; its collector, outside the worker, takes "
            f"{row['collector_us']:.0f} µs per request\n"
        )
    ratio = summary["queries"]["ratio"]
    console.print(f"target, two queries: at most {TARGET:g}: {judge(ratio, TARGET)}")


def judge(ratio: dict[str, float], target: float) -> str:
    """Say whether a ratio is at most its target, as far as its interval can tell."""
    said = "reached" if ratio["value"] <= target else "not reached"
    if ratio["low"] <= target < ratio["high"]:
        return f"{said}, by less than this run can tell"
    return said


def effort_options(usual: Effort) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds the options of how much is measured; `usual` are their defaults."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for name, default, text in (
            ("--requests", usual.requests, "Requests of a block."),
            ("--rounds", usual.rounds, "Rounds of blocks in each start."),
            ("--starts", usual.starts, "How often the servers are started."),
        ):
            command = click.option(name, default=default, show_default=True, help=text)(command)
        return command

    return add


@click.command()
@effort_options(Effort(starts=8, rounds=30, requests=200))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(starts: int, rounds: int, requests: int, as_json: bool) -> None:
    """Measure the CPU that reqpath adds to a request, beside OpenTelemetry's."""
    console = Console(stderr=as_json)
    h2load = find_tool("h2load").path
    effort = Effort(starts, rounds, requests)
    with exit_on_signals(), contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="reqpath-overhead-", dir="/tmp"))
        os.environ["OVERHEAD_OTLP_ENDPOINT"] = stack.enter_context(start_sink())
        database = stack.enter_context(start_database(directory))
        fill(database)

        @contextlib.contextmanager
        def start() -> Iterator[dict[str, Deployment]]:
            with contextlib.ExitStack() as servers:
                yield {variant: servers.enter_context(deploy(variant, database)) for variant in VARIANTS}

        summary = summarise(measure(start, ROUTES, h2load, effort, console))
    if as_json:
        json.dump({"effort": effort._asdict(), "routes": summary}, sys.stdout, indent=2)
        print()
    else:
        show(summary, console)


if __name__ == "__main__":
    main()
