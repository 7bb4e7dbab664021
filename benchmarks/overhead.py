"""Measure the CPU that reqpath adds to a request in the worker, beside OpenTelemetry's instrumentation.

Three uWSGI workers serve the same Flask app behind nginx with the same database: with nothing, with reqpath
(its lines in nginx and uWSGI included), and with opentelemetry-instrumentation-flask and -pymysql, every
request recorded and exported in batches by OTLP over HTTP to a sink on this machine. Blocks of requests go
to them in random order, from wrk over four connections, so that the worker is always busy. A block's figure
is the CPU time per request of all threads of the worker, from `/proc/PID/task/*/schedstat`, from the block's
start to that of its next one, so that what an exporter does later counts too. What is added is the
difference within a round of blocks, so that a machine that changes its speed changes both. The collector's
CPU is shown apart::

    python benchmarks/overhead.py [--rounds 20] [--seconds 1] [--json]
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
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click
import numpy as np
import pymysql
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from reqpath.servers.database import Database, start_database
from reqpath.servers.deployment import Deployment, find_program, start_deployment
from reqpath.servers.process import exit_on_signals
from reqpath.servers.topology import App, Topology

VARIANTS = ("nothing", "reqpath", "opentelemetry")
ROUTES = ("plain", "queries")
ROWS = 1000
#: What the worker still does when the last response is out, before another one's block begins.
SETTLE_S = 0.3
#: An exporter that has no full batch waits so long, and a little.
EXPORT_S = 6
#: What the design asks for on the route with two queries.
TARGET = 0.1


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


def drive(wrk: str, url: str, seconds: float) -> int:
    """Keep the worker busy from a few connections for about `seconds`; return how many requests it served.

    Raises: click.ClickException when a request failed.
    """
    command = [wrk, "--threads", "1", "--connections", "4", "--duration", f"{max(1, round(seconds))}s", url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    served = re.search(r"(\d+) requests in", output)
    if served is None or "Non-2xx" in output or "Socket errors" in output:
        raise click.ClickException(f"{url} failed:\n{output}")
    return int(served.group(1))


def measure(
    deployments: dict[str, Deployment], wrk: str, rounds: int, seconds: float, console: Console
) -> dict[str, dict[str, list[float]]]:
    """Return CPU µs per request by route and by variant (and "collector"), one figure a round."""
    figures: dict[str, dict[str, list[float]]] = {
        route: {name: [] for name in (*VARIANTS, "collector")} for route in ROUTES
    }
    children = {name: find_children(deployment) for name, deployment in deployments.items()}
    #: By variant its latest block: route, requests, and the CPU of each process before it.
    latest: dict[str, tuple[str, int, dict[str, int]]] = {}

    def read(name: str) -> dict[str, int]:
        return {child: read_cpu_ns(pid) for child, pid in children[name].items()}

    def close_block(name: str) -> None:
        """Count what the variant's processes have done since its latest block began."""
        route, requests, before = latest.pop(name)
        for child, after_ns in read(name).items():
            kind = name if child == "worker" else "collector"
            if child == "worker" or name == "reqpath":
                figures[route][kind].append((after_ns - before[child]) / requests / 1e3)

    order = random.Random(7)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=(rounds + 1) * len(ROUTES))
        for round_number in range(rounds + 1):
            for route in ROUTES:
                for name in order.sample(VARIANTS, len(VARIANTS)):
                    if name in latest:
                        close_block(name)
                    before = read(name)
                    requests = drive(wrk, f"{deployments[name].url}/{route}/7", seconds)
                    time.sleep(SETTLE_S)
                    if round_number:  # the first round warms up: imports, connections, caches
                        latest[name] = route, requests, before
                progress.advance(task)
    time.sleep(EXPORT_S)
    for name in list(latest):
        close_block(name)
    return figures


def summarise(figures: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return by route and variant the median, what is added to nothing, and the bounds of that (95 %)."""
    generator = np.random.default_rng(7)
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for route, by_variant in figures.items():
        bare = np.array(by_variant["nothing"])
        samples = generator.integers(0, len(bare), (4000, len(bare)))
        rows: dict[str, dict[str, float]] = {}
        added: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
        for variant in VARIANTS:
            values = np.array(by_variant[variant])
            added[variant] = values - bare
            medians = np.median(added[variant][samples], axis=1)
            low, high = np.percentile(medians, [2.5, 97.5])
            rows[variant] = {
                "cpu_us": float(np.median(values)),
                "added_us": float(np.median(added[variant])),
                "added_low_us": float(low),
                "added_high_us": float(high),
            }
        ratios = np.median(added["reqpath"][samples], axis=1) / np.median(
            added["opentelemetry"][samples], axis=1
        )
        low, high = np.percentile(ratios, [2.5, 97.5])
        rows["ratio"] = {
            "value": rows["reqpath"]["added_us"] / rows["opentelemetry"]["added_us"],
            "low": float(low),
            "high": float(high),
        }
        rows["collector"] = {"cpu_us": float(np.median(by_variant["collector"] or [np.nan]))}
        summary[route] = rows
    return summary


def show(summary: dict[str, dict[str, dict[str, float]]], console: Console) -> None:
    """Print one table a route, and the ratio."""
    for route, rows in summary.items():
        table = Table(title=f"/{route}: CPU of the worker, µs per request", title_justify="left")
        for column in ("", "median", "added to nothing", "95 % interval"):
            table.add_column(column, justify="left" if not column else "right")
        for variant in VARIANTS:
            row = rows[variant]
            table.add_row(
                variant,
                f"{row['cpu_us']:.0f}",
                "" if variant == "nothing" else f"+{row['added_us']:.0f}",
                "" if variant == "nothing" else f"{row['added_low_us']:.0f} to {row['added_high_us']:.0f}",
            )
        console.print(table)
        ratio = rows["ratio"]
        console.print(
            f"reqpath adds {ratio['value']:.3f} of what OpenTelemetry adds "
            f"[{ratio['low']:.3f}, {ratio['high']:.3f}]; its collector, outside the worker, takes "
            f"{rows['collector']['cpu_us']:.0f} µs per request\n"
        )
    reached = summary["queries"]["ratio"]["value"] <= TARGET
    console.print(f"target, two queries: at most {TARGET:g}: {'reached' if reached else 'not reached'}")


@click.command()
@click.option("--rounds", default=20, show_default=True, help="Rounds of blocks after the warm-up.")
@click.option("--seconds", default=1.0, show_default=True, help="Length of a block.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(rounds: int, seconds: float, as_json: bool) -> None:
    """Measure the CPU that reqpath adds to a request, beside OpenTelemetry's."""
    console = Console(stderr=as_json)
    wrk = find_program("wrk", "apt install wrk")
    with exit_on_signals(), contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="reqpath-overhead-", dir="/tmp"))
        os.environ["OVERHEAD_OTLP_ENDPOINT"] = stack.enter_context(start_sink())
        database = stack.enter_context(start_database(directory))
        fill(database)
        here = os.path.dirname(os.path.abspath(__file__))
        deployments = {
            variant: stack.enter_context(
                start_deployment(
                    Topology(
                        app=App(f"overhead_app:{variant}()", here, "OVERHEAD_DATABASE"),
                        processes=1,
                        reqpath=variant == "reqpath",
                        # The batch exporter's thread does not survive a fork.
                        uwsgi_lines=("lazy-apps = true",) if variant == "opentelemetry" else (),
                    ),
                    database=database,
                )
            )
            for variant in VARIANTS
        }
        summary = summarise(measure(deployments, wrk, rounds, seconds, console))
    if as_json:
        json.dump({"rounds": rounds, "seconds": seconds, "routes": summary}, sys.stdout, indent=2)
        print()
    else:
        show(summary, console)


if __name__ == "__main__":
    main()
