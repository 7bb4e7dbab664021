"""Check the load generator against wrk and h2load, on the same server.

One deployment of reqpath's workloads. In a closed loop the same number of requests is always under way, so
the three programs make the same load: with the most the server is saturated, with one it is mostly idle. They
run in random order, round after round. Then ours sends open loads, which the other two can't, at shares of
what the server can do, and tells how late it was::

    python benchmarks/load.py [--workload query] [--rounds 10] [--seconds 3] [--json]

It exits with 0 when the targets were reached and with 1 when one was not.
Client and servers share this machine's processors.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from reqpath.bench.capacity import find_tool, run_tool
from reqpath.bench.generator import Outcome, Traffic, generate
from reqpath.servers.deployment import Deployment, calibrate_cpu_rounds, start_deployment, workloads
from reqpath.servers.process import exit_on_signals
from reqpath.servers.topology import Topology

PROGRAMS = ("reqpath", "wrk", "h2load")
#: Requests under way; the last saturates four workers.
CONCURRENCIES = (1, 2, 8)
#: Of the rate at saturation.
SHARES = (0.2, 0.4, 0.6)
WARM_UP_S = 2.0
#: What the design asks for: of the throughput, and of the median latency.
TARGET = 0.05


@dataclass(frozen=True, slots=True)
class Closed:
    """One program's closed loop: good responses per second, and what they took."""

    rate_per_s: float
    p50_us: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class Open:
    """Our open loads at one rate, all rounds together; latencies from the planned instants."""

    rate_per_s: float
    requests: int
    failures: int
    p50_us: float
    p99_us: float
    lag_p50_us: float
    lag_p99_us: float
    #: The generator's, for each request.
    cpu_us: float


def run_ours(deployment: Deployment, path: str, concurrency: int, seconds_s: float) -> Closed:
    """Measure the generator's closed loop."""
    address = (deployment.host, deployment.port)
    outcome = generate(Traffic(address, path, None, seconds_s, seed=1, connections=concurrency))
    good_us, _ = read_outcome(outcome)
    rate = len(good_us) / (outcome.elapsed_ns / 1e9)
    return Closed(rate, *(float(value) for value in np.percentile(good_us, (50, 99))))


def run_wrk(deployment: Deployment, path: str, concurrency: int, seconds_s: float) -> Closed:
    """Measure wrk's closed loop."""
    run = run_tool(find_tool("wrk"), deployment.url + path, concurrency=concurrency, seconds_s=seconds_s)
    if run.p50_ns is None or run.p99_ns is None:
        raise click.ClickException("wrk told no percentiles")
    return Closed(run.requests_per_s, run.p50_ns / 1e3, run.p99_ns / 1e3)


def run_h2load(deployment: Deployment, path: str, concurrency: int, seconds_s: float) -> Closed:
    """Measure h2load's closed loop.

    Source: h2load(1), --log-file: start in µs, status, duration in µs.
    """
    seconds = max(1, round(seconds_s))
    with tempfile.TemporaryDirectory() as directory:
        log = os.path.join(directory, "log")
        command = [
            *(find_tool("h2load").path, "--h1", "--threads=1", f"--clients={concurrency}"),
            *(f"--duration={seconds}", f"--log-file={log}", deployment.url + path),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=seconds + 30)
        with open(log, encoding="ascii") as file:
            rows = [line.split() for line in file]
    good_us = [int(duration_us) for _, status, duration_us in rows if 200 <= int(status) < 400]
    return Closed(len(good_us) / seconds, *(float(value) for value in np.percentile(good_us, (50, 99))))


def read_outcome(outcome: Outcome) -> tuple[list[float], list[float]]:
    """Return the latencies and the lags, µs, of the requests that were answered well."""
    rows = zip(outcome.latencies_ns, outcome.lags_ns, outcome.status_codes, strict=True)
    good = [(latency / 1e3, lag / 1e3) for latency, lag, status in rows if 200 <= status < 400]
    return [latency for latency, _ in good], [lag for _, lag in good]


def measure_closed(
    deployment: Deployment, path: str, concurrency: int, rounds: int, seconds_s: float
) -> dict[str, list[Closed]]:
    """Return a figure for each program and round."""
    measures = dict(zip(PROGRAMS, (run_ours, run_wrk, run_h2load), strict=True))
    figures: dict[str, list[Closed]] = {name: [] for name in PROGRAMS}
    order = random.Random(7)
    for _ in range(rounds):
        for name in order.sample(PROGRAMS, len(PROGRAMS)):
            figures[name].append(measures[name](deployment, path, concurrency, seconds_s))
    return figures


def measure_open(deployment: Deployment, path: str, rate: float, rounds: int, seconds_s: float) -> Open:
    """Send the open load once a round."""
    latencies: list[float] = []
    lags: list[float] = []
    sent = cpu_ns = 0
    for seed in range(rounds):
        outcome = generate(Traffic((deployment.host, deployment.port), path, rate, seconds_s, seed))
        good_us, late_us = read_outcome(outcome)
        latencies += good_us
        lags += late_us
        sent += len(outcome.status_codes)
        cpu_ns += outcome.cpu_ns
    p50_us, p99_us = np.percentile(latencies, (50, 99))
    lag_p50_us, lag_p99_us = np.percentile(lags, (50, 99))
    return Open(
        rate_per_s=rate,
        requests=sent,
        failures=sent - len(latencies),
        p50_us=float(p50_us),
        p99_us=float(p99_us),
        lag_p50_us=float(lag_p50_us),
        lag_p99_us=float(lag_p99_us),
        cpu_us=cpu_ns / sent / 1e3,
    )


def compare(figures: dict[str, list[Closed]], name: str) -> float:
    """Return our rate over another program's, in the median round."""
    pairs = zip(figures[PROGRAMS[0]], figures[name], strict=True)
    return statistics.median(ours.rate_per_s / theirs.rate_per_s for ours, theirs in pairs)


def judge(closed: dict[int, dict[str, list[Closed]]], opened: list[Open]) -> dict[str, bool]:
    """Return each target, in words, and whether it was reached."""
    saturated = closed[CONCURRENCIES[-1]]
    return {
        f"at saturation within {TARGET:.0%} of {name}": abs(compare(saturated, name) - 1) <= TARGET
        for name in PROGRAMS[1:]
    } | {
        f"p99 lag within {TARGET:.0%} of p50 at {one.rate_per_s:.0f}/s": one.lag_p99_us <= TARGET * one.p50_us
        for one in opened
    }


def show(closed: dict[int, dict[str, list[Closed]]], opened: list[Open], console: Console) -> None:
    """Print a table for the closed loops and one for the open loads."""
    table = Table(title="closed loop, medians of the rounds", title_justify="left")
    for column in ("under way", "program", "requests/s", "p50, µs", "p99, µs", "ours / its rate"):
        table.add_column(column, justify="left" if column == "program" else "right")
    for concurrency, figures in closed.items():
        for name, rounds in figures.items():
            medians = [
                statistics.median(values)
                for values in zip(*((one.rate_per_s, one.p50_us, one.p99_us) for one in rounds), strict=True)
            ]
            ratio = "" if name == PROGRAMS[0] else f"{compare(figures, name):.3f}"
            table.add_row(str(concurrency), name, *(f"{value:.0f}" for value in medians), ratio)
        table.add_section()
    console.print(table)
    table = Table(title="open loads of ours, µs", title_justify="left")
    for column in ("requests/s", "failures", "p50", "p99", "lag p50", "lag p99", "of p50", "CPU"):
        table.add_column(column, justify="right")
    for one in opened:
        table.add_row(
            f"{one.rate_per_s:.0f}",
            f"{one.failures / one.requests:.2%}",
            *(f"{value:.0f}" for value in (one.p50_us, one.p99_us, one.lag_p50_us, one.lag_p99_us)),
            f"{one.lag_p99_us / one.p50_us:.1%}",
            f"{one.cpu_us:.0f}",
        )
    console.print(table)


@click.command()
@click.option("--workload", default="query", show_default=True, help="A path of examples/workloads.")
@click.option("--rounds", default=10, show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Length of each measurement.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(*, workload: str, rounds: int, seconds: float, as_json: bool) -> None:
    """Check the load generator against wrk and h2load."""
    console = Console(stderr=as_json)
    path = f"/{workload}"
    topology = Topology(workloads(), environment=(("WORKLOADS_CPU_ROUNDS", str(calibrate_cpu_rounds())),))
    with (
        exit_on_signals(),
        start_deployment(topology) as deployment,
        Progress(console=console, transient=True) as progress,
    ):
        run_ours(deployment, path, CONCURRENCIES[-1], WARM_UP_S)
        closed = {
            concurrency: measure_closed(deployment, path, concurrency, rounds, seconds)
            for concurrency in progress.track(CONCURRENCIES, description="closed loops")
        }
        rates = [one.rate_per_s for figures in closed[CONCURRENCIES[-1]].values() for one in figures]
        opened = [
            measure_open(deployment, path, share * statistics.median(rates), rounds, seconds)
            for share in progress.track(SHARES, description="open loads")
        ]
        deployment.check_alive()
    targets = judge(closed, opened)
    if as_json:
        document = {
            "targets": targets,
            "ratios": {
                str(concurrency): {name: compare(figures, name) for name in PROGRAMS[1:]}
                for concurrency, figures in closed.items()
            },
            "closed": {
                str(concurrency): {name: [asdict(one) for one in runs] for name, runs in figures.items()}
                for concurrency, figures in closed.items()
            },
            "open": [asdict(one) for one in opened],
        }
        json.dump(document, sys.stdout, indent=2)
        print()
    else:
        show(closed, opened, console)
    for target, reached in targets.items():
        console.print(f"target, {target}: {'reached' if reached else 'not reached'}", highlight=False)
    sys.exit(not all(targets.values()))


if __name__ == "__main__":
    main()
