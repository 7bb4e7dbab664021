"""Measure how much longer a client waits where reqpath is on, at the same open load.

Two deployments of examples/workloads, each of four uWSGI processes behind nginx: one without any line of
reqpath's, and one with all of them, whose collector runs too. Both get the same Poisson load, at a share of
what the first can do in a closed loop, one after the other and in random order; a latency runs from the
instant at which a request was planned. As in overhead.py all servers but the database are started anew
several times, and an interval tells how far a figure would be from that of other starts.

A loaded server passes on more than it is given: requests wait for those before them, so at 60 % of the
capacity each µs that a request takes longer is several in the tail. Of a request that does next to nothing,
`query` say, reqpath is a large part, and a load that the server bears without it can be too much with it::

    python benchmarks/latency.py [--workload sleep] [--load 0.6] [--starts 4] [--rounds 6] [--json]

Client and servers share this machine's processors.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click
import numpy as np
from load import read_outcome
from overhead import SETTLE_S, estimate, judge
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from reqpath.bench.generator import Outcome, Traffic, generate
from reqpath.servers.database import start_database
from reqpath.servers.deployment import (
    Deployment,
    calibrate_cpu_rounds,
    fill_database,
    start_deployment,
    workloads,
)
from reqpath.servers.process import exit_on_signals
from reqpath.servers.topology import Topology

VARIANTS = ("off", "on")
FIGURES = ("mean", "p50", "p99")
#: What the design asks for: of the p99.
TARGET = 0.01
#: Of each start and variant, before anything counts.
WARM_UP_S = 1.5
#: Of the closed loop that tells the capacity, and the requests that it keeps under way.
CAPACITY_S = 2.0
UNDER_WAY = 8


def build_topologies() -> dict[str, Topology]:
    """Return the two deployments, whose app does not fill its database."""
    environment = (("WORKLOADS_CPU_ROUNDS", str(calibrate_cpu_rounds())),)
    on = Topology(replace(workloads(), setup=()), environment=environment)
    off = replace(on, reqpath=False, environment=(*environment, ("REQPATH_ENABLED", "false")))
    return dict(zip(VARIANTS, (off, on), strict=True))


def summarise_block(outcome: Outcome) -> tuple[tuple[float, ...], int]:
    """Return `FIGURES` of what was answered well in one block, µs, and how many requests were not.

    Raises: click.ClickException when none was.
    """
    good_us, _ = read_outcome(outcome)
    if not good_us:
        raise click.ClickException("a block's requests all failed; try again with a lower --load")
    p50_us, p99_us = np.percentile(good_us, (50, 99))
    return (statistics.fmean(good_us), float(p50_us), float(p99_us)), len(outcome.status_codes) - len(good_us)


class Measurement:
    """Sends blocks to both deployments, start after start."""

    def __init__(self, path: str, load: float, seconds_s: float) -> None:
        self._path = path
        self._load = load
        self._seconds_s = seconds_s
        self._order = random.Random(7)
        self._seed = 0
        #: Requests per second; set by the first start.
        self.rate = 0.0
        #: By variant: `FIGURES` of each block, in the order of time.
        self.blocks: dict[str, list[tuple[float, ...]]] = {variant: [] for variant in VARIANTS}
        #: By variant: requests that failed, or found all connections in use.
        self.failures = dict.fromkeys(VARIANTS, 0)
        #: Of each variant.
        self.requests = 0
        #: How late the generator was: of each block the 99th percentile, µs.
        self.lags_us: list[float] = []

    def run(self, deployments: dict[str, Deployment], rounds: int) -> Iterator[None]:
        """Measure one start; yield after each round. Raises: ServerError, click.ClickException."""
        if not self.rate:
            self.rate = self._load * self._measure_capacity(deployments["off"])
        for variant in VARIANTS:
            self._send(deployments[variant], WARM_UP_S)
        for _ in range(rounds):
            self._seed += 1
            for variant in self._order.sample(VARIANTS, len(VARIANTS)):
                outcome = self._send(deployments[variant], self._seconds_s)
                figures, failures = summarise_block(outcome)
                self.blocks[variant].append(figures)
                self.failures[variant] += failures
                self.lags_us.append(float(np.percentile(outcome.lags_ns, 99)) / 1e3)
            self.requests += len(outcome.status_codes)
            yield

    def _measure_capacity(self, deployment: Deployment) -> float:
        """Return requests per second of the generator's closed loop: what it takes itself is in it."""
        address = (deployment.host, deployment.port)
        traffic = Traffic(address, self._path, None, CAPACITY_S, self._seed, connections=UNDER_WAY)
        for _ in range(2):
            # At first to warm up.
            outcome = generate(traffic)
        return len(outcome.status_codes) / (outcome.elapsed_ns / 1e9)

    def _send(self, deployment: Deployment, seconds_s: float) -> Outcome:
        address = (deployment.host, deployment.port)
        outcome = generate(Traffic(address, self._path, self.rate, seconds_s, self._seed))
        # The collector is done with the lines then, and not at work in the other's block.
        time.sleep(SETTLE_S)
        return outcome

    def summarise(self, starts: int) -> dict[str, Any]:
        """Return the rate, and for each of `FIGURES` µs where it is off, what is added, and the ratio."""
        off, on = (np.array(self.blocks[variant]).reshape(starts, -1, len(FIGURES)) for variant in VARIANTS)
        return {
            "requests_per_s": self.rate,
            "requests": self.requests,
            "failures": self.failures,
            "lag_p99_us": float(np.median(self.lags_us)),
            "figures": {
                name: {
                    "off_us": float(off[..., at].mean()),
                    "added_us": estimate(on[..., at] - off[..., at])._asdict(),
                    "ratio": estimate(on[..., at] - off[..., at], off[..., at])._asdict(),
                }
                for at, name in enumerate(FIGURES)
            },
        }


def show(summaries: dict[str, dict[str, Any]], load: float, console: Console) -> None:
    """Print one table a workload."""
    for workload, summary in summaries.items():
        title = f"/{workload} at {load:.0%} of the capacity, {summary['requests_per_s']:.0f} requests/s"
        table = Table(title=title, title_justify="left")
        for column in ("client's wait", "off, µs", "added, µs", "95 % interval", "of it", "95 % interval"):
            table.add_column(column, justify="left" if column == "client's wait" else "right")
        for name, row in summary["figures"].items():
            added, ratio = row["added_us"], row["ratio"]
            table.add_row(
                name,
                f"{row['off_us']:.0f}",
                f"{added['value']:+.0f}",
                f"{added['low']:+.0f} to {added['high']:+.0f}",
                f"{ratio['value']:+.1%}",
                f"{ratio['low']:+.1%} to {ratio['high']:+.1%}",
            )
        console.print(table)
        verdict = judge(summary["figures"]["p99"]["ratio"], TARGET)
        console.print(f"target: p99 at most {TARGET:.0%} later: {verdict}")
        failed = ", ".join(f"{variant} {count}" for variant, count in summary["failures"].items())
        console.print(
            f"failed of {summary['requests']:,} requests, and not in these figures: {failed}; "
            f"the generator's lag, p99: {summary['lag_p99_us']:.0f} µs\n"
        )


@click.command()
@click.option("--workload", "names", default=("sleep",), multiple=True, show_default=True)
@click.option("--load", default=0.6, show_default=True, help="Share of the capacity without reqpath.")
@click.option("--starts", default=4, show_default=True, help="How often the servers are started.")
@click.option("--rounds", default=6, show_default=True, help="Blocks of each variant in a start.")
@click.option("--seconds", default=4.0, show_default=True, help="Length of a block.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(
    *, names: tuple[str, ...], load: float, starts: int, rounds: int, seconds: float, as_json: bool
) -> None:
    """Measure how much longer a client waits where reqpath is on.

    Paths of examples/workloads are the workloads.
    """
    console = Console(stderr=as_json)
    measurements = {name: Measurement(f"/{name}", load, seconds) for name in names}
    topologies = build_topologies()
    with exit_on_signals(), contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="reqpath-latency-", dir="/tmp"))
        database = stack.enter_context(start_database(directory))
        fill_database(replace(topologies["on"], app=workloads()), database, directory)
        progress = stack.enter_context(Progress(console=console, transient=True))
        task = progress.add_task("measuring", total=starts * rounds * len(names))
        for _ in range(starts):
            with contextlib.ExitStack() as servers:
                deployments = {
                    variant: servers.enter_context(start_deployment(topology, database=database))
                    for variant, topology in topologies.items()
                }
                for measurement in measurements.values():
                    for _ in measurement.run(deployments, rounds):
                        progress.advance(task)
    summaries = {name: measurement.summarise(starts) for name, measurement in measurements.items()}
    if as_json:
        json.dump({"load": load, "starts": starts, "rounds": rounds, "workloads": summaries}, sys.stdout)
        print()
    else:
        show(summaries, load, console)


if __name__ == "__main__":
    main()
