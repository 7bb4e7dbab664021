"""Measure what the collector costs: paths per second and core, and CPU per request beside OpenTelemetry's.

First the collector alone, on a spool of requests with two queries each: reading, joining and judging them,
and the same with every path exported over HTTP to a sink on this machine, each in CPU time of one process.
The spool's decoding alone, in the same run, tells how much of it is the machine.

Then all of it: the deployments of `overhead.py`, where the CPU of a request is the worker's and the
collector's together: nothing, reqpath with the default policy, reqpath with everything kept, and
OpenTelemetry's instrumentation of Flask and PyMySQL, which exports everything from the worker. What is added
is the difference to nothing within a round, as there. It excludes nginx, the database, the client and the
sink. The blocks are longer, since a collector does some things once a second, and keeps a few paths of each:
what these cost a request depends on how many there are, here as many as one busy worker serves::

    python benchmarks/collector.py [--paths 100000] [--starts 8] [--rounds 5] [--requests 2000] [--json]
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np
from overhead import Effort, FloatArray, deploy, effort_options, estimate, fill, measure, start_sink
from overhead import judge as judge_ratio
from report import write_spool
from rich.console import Console
from rich.table import Table

from reqpath.bench.capacity import find_tool
from reqpath.collect.export import Delivery, HttpSender
from reqpath.collect.keep import Keeper
from reqpath.collect.spans import build_spans
from reqpath.collect.tail import Tail
from reqpath.servers.database import start_database
from reqpath.servers.deployment import Deployment
from reqpath.servers.process import exit_on_signals
from reqpath.spool import SpoolReader

#: Paths per second and core, joined and judged.
TARGET_PATHS = 20_000
#: Of OpenTelemetry's added CPU, on the route with two queries.
TARGETS = {"default policy": 1 / 6, "all kept": 1 / 2}
ROUTE = "queries"
VARIANTS = ("nothing", *TARGETS, "opentelemetry")
#: Runs the sink until its standard input ends.
_SINK = """
import sys
import overhead
with overhead.start_sink() as endpoint:
    print(endpoint, flush=True)
    sys.stdin.read()
"""


def measure_cpu_s(work: Callable[[], object]) -> float:
    """Return the CPU time of this process, all threads, that something takes."""
    before_s = time.process_time()
    work()
    return time.process_time() - before_s


def decode(spool: str) -> None:
    """Read every record, and do nothing with them."""
    for _info, _records in SpoolReader(spool).read():
        pass


def judge(spool: str) -> int:
    """Read, join and judge a spool by the default policy; return how many paths are kept."""
    tail = Tail(spool, Keeper(), wait_s=10, expect_nginx=True, from_start=True, max_pending=1 << 40)
    assert tail.finish()
    return tail.pending


def export(spool: str, endpoint: str) -> int:
    """Export every path of a spool; return how many spans they were."""
    tail = Tail(spool, Keeper(everything=True), wait_s=10, expect_nginx=True, from_start=True)
    delivery = Delivery(
        tail,
        HttpSender(endpoint),
        lambda kept: build_spans(kept.path, kept=kept.reason, offset=kept.offset),
        report=click.echo,
        backend="the sink",
    )
    delivery.start()
    while not tail.finish():
        tail.wait_for_progress(0.1)
    delivery.stop(600)
    assert tail.pending == 0
    return delivery.spans


def measure_alone(paths: int, directory: str, console: Console) -> dict[str, float]:
    """Return CPU µs per path of the collector's parts."""
    spool = os.path.join(directory, "spool")
    with console.status("writing a spool"):
        write_spool(spool, paths)
    counts: dict[str, int] = {}
    # A process of its own, so that the sink's CPU is not in the figure.
    with console.status("the collector alone"), start_sink_process() as endpoint:
        decoding_s = measure_cpu_s(lambda: decode(spool))
        judging_s = measure_cpu_s(lambda: counts.update(kept=judge(spool)))
        exporting_s = measure_cpu_s(lambda: counts.update(spans=export(spool, endpoint)))
    return {
        "decoding_us": decoding_s / paths * 1e6,
        "judging_us": judging_s / paths * 1e6,
        "exporting_us": exporting_s / paths * 1e6,
        "kept_share": counts["kept"] / paths,
        "spans_per_path": counts["spans"] / paths,
    }


@contextlib.contextmanager
def start_sink_process() -> Iterator[str]:
    """Run the sink in a process of its own; yield the endpoint for traces."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SINK],
        cwd=os.path.dirname(os.path.abspath(__file__)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def summarise(figures: dict[tuple[str, str, str], FloatArray]) -> dict[str, dict[str, Any]]:
    """Return by variant: CPU µs of its processes, what is added to nothing, the share of OpenTelemetry's."""
    by_process: dict[str, dict[str, FloatArray]] = {}
    for (_, name, child), values in figures.items():
        by_process.setdefault(name, {})[child] = values
    totals = {name: np.add.reduce(list(parts.values())) for name, parts in by_process.items()}
    added = {name: total - totals["nothing"] for name, total in totals.items()}
    return {
        name: {
            "cpu_us": {child: float(np.median(values)) for child, values in by_process[name].items()},
            "added_us": estimate(added[name])._asdict(),
            "ratio": estimate(added[name], added["opentelemetry"])._asdict(),
        }
        for name in VARIANTS
    }


def show(alone: dict[str, float], together: dict[str, dict[str, Any]], console: Console) -> None:
    """Print both."""
    table = Table(title="The collector alone, one core", title_justify="left")
    for column in ("", "CPU per path", "paths/s"):
        table.add_column(column, justify="left" if not column else "right")
    for name, key in (
        ("decode the records", "decoding_us"),
        ("+ join and judge", "judging_us"),
        ("+ export all", "exporting_us"),
    ):
        table.add_row(name, f"{alone[key]:.1f} µs", f"{1e6 / alone[key]:,.0f}")
    console.print(table)
    console.print(
        f"{alone['kept_share']:.1%} kept by the default policy; {alone['spans_per_path']:.1f} spans a path"
    )
    rate = 1e6 / alone["judging_us"]
    said = "reached" if rate >= TARGET_PATHS else "not reached"
    console.print(f"target, join and policy: at least {TARGET_PATHS:,}: {said}\n")
    table = Table(title=f"/{ROUTE}: CPU, µs per request", title_justify="left")
    for column in ("", "worker", "collector", "added", "of OpenTelemetry's", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    for name in VARIANTS:
        row = together[name]
        ours = name in TARGETS
        ratio, cpu_us = row["ratio"], row["cpu_us"]
        table.add_row(
            name,
            f"{cpu_us['worker']:.0f}",
            f"{cpu_us['collector']:.0f}" if ours else "",
            "" if name == "nothing" else f"+{row['added_us']['value']:.0f}",
            f"{ratio['value']:.3f}" if ours else "",
            f"{ratio['low']:.3f} to {ratio['high']:.3f}" if ours else "",
        )
    console.print(table)
    for name, target in TARGETS.items():
        console.print(f"target, {name}: at most {target:.3f}: {judge_ratio(together[name]['ratio'], target)}")


@click.command()
@click.option("--paths", default=100_000, show_default=True, help="Paths for the collector alone.")
@effort_options(Effort(starts=8, rounds=5, requests=2_000))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(paths: int, starts: int, rounds: int, requests: int, as_json: bool) -> None:
    """Measure what the collector costs."""
    console = Console(stderr=as_json)
    h2load = find_tool("h2load").path
    effort = Effort(starts, rounds, requests)
    with exit_on_signals(), contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="reqpath-collector-", dir="/tmp"))
        alone = measure_alone(paths, directory, console)
        endpoint = os.environ["OVERHEAD_OTLP_ENDPOINT"] = stack.enter_context(start_sink())
        database = stack.enter_context(start_database(directory))
        fill(database)
        environments = {
            "default policy": (("REQPATH_OTLP", endpoint),),
            "all kept": (("REQPATH_OTLP", endpoint), ("REQPATH_KEEP", "all")),
        }

        @contextlib.contextmanager
        def start() -> Iterator[dict[str, Deployment]]:
            with contextlib.ExitStack() as servers:
                yield {
                    name: servers.enter_context(
                        deploy("reqpath" if name in TARGETS else name, database, environments.get(name, ()))
                    )
                    for name in VARIANTS
                }

        together = summarise(measure(start, (ROUTE,), h2load, effort, console))
    if as_json:
        json.dump({"alone": alone, "effort": effort._asdict(), "together": together}, sys.stdout)
        print()
    else:
        show(alone, together, console)


if __name__ == "__main__":
    main()
