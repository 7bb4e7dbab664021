"""Check the load generator against wrk and h2load, on the same server.

One deployment of reqpath's workloads. In a closed loop the same number of requests is always under way, so
the three programs make the same load: with the most the server is saturated, with one it is mostly idle. They
run in random order, round after round.

Then come open loads, at shares of what the server can do: of h2load, by many clients with a small rate each,
and of ours, first at the instants at which h2load sent, then as a Poisson process, and it tells how late it
was. wrk can't hold a rate. That all sent the same one is nginx's to tell, by its records::

    python benchmarks/load.py [--workload query] [--rounds 10] [--seconds 3] [--json]

It exits with 0 when the targets were reached and with 1 when one was not.
Client and servers share this machine's processors.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click
import numpy as np
from msgspec.structs import replace
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from reqpath.bench.capacity import find_tool, run_tool
from reqpath.bench.generator import Outcome, Traffic, generate
from reqpath.record import NginxRecord
from reqpath.servers.deployment import Deployment, calibrate_cpu_rounds, start_deployment, workloads
from reqpath.servers.process import exit_on_signals
from reqpath.servers.topology import Topology
from reqpath.spool import SpoolReader

PROGRAMS = ("reqpath", "wrk", "h2load")
#: Requests under way; the last saturates four workers.
CONCURRENCIES = (1, 2, 8)
#: Of the rate at saturation.
SHARES = (0.2, 0.4, 0.6)
LOADS = ("h2load", "reqpath, same instants", "reqpath, Poisson")
#: h2load's in an open load. They begin one after another, so many ms apart, and then each sends regularly. As
#: their number is prime, whole requests in that time make their instants evenly spread.
CLIENTS = 127
STEPS_MS = range(5, 21)
PERCENTILES = (50, 75, 90, 99, 99.9)
#: So long the last records of a load may take to be in the spool.
RECORDED_S = 10.0
WARM_UP_S = 2.0
#: What the design asks for: of the throughput, and of the median latency; of the rates too.
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


@dataclass(frozen=True, slots=True)
class Sent:
    """What one program sent in one open load, and what nginx had of it."""

    requests: int
    #: Of what was answered well.
    latencies_us: list[float]
    #: When nginx began each request, ns, ascending.
    begun_ns: list[int]
    #: What each was in nginx.
    served_us: list[float]


@dataclass(frozen=True, slots=True)
class SideBySide:
    """One program's open loads at one rate, all rounds together; ours from the planned instants."""

    rate_per_s: float
    load: str
    requests: int
    failures: int
    mean_us: float
    #: By `PERCENTILES`.
    percentiles_us: tuple[float, ...]
    max_us: float
    #: As nginx began them.
    nginx_rate_per_s: float
    #: Standard deviation over mean of the time from one to the next in nginx: 0 is even, 1 is Poisson.
    gap_variation: float
    #: From then to nginx's end.
    nginx_mean_us: float


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
    """Measure h2load's closed loop."""
    seconds = max(1, round(seconds_s))
    options = (f"--clients={concurrency}", f"--duration={seconds}")
    rows = log_h2load(deployment.url + path, options, seconds)
    good_us = [duration_us for _, status, duration_us in rows if 200 <= status < 400]
    return Closed(len(good_us) / seconds, *(float(value) for value in np.percentile(good_us, (50, 99))))


def log_h2load(url: str, options: Sequence[str], seconds_s: float) -> list[tuple[int, int, int]]:
    """Run h2load; return for each request the start, µs since the epoch, the status, and what it took, µs.

    Source: h2load(1), --log-file. The status is -1 where there was none.
    """
    with tempfile.TemporaryDirectory() as directory:
        log = os.path.join(directory, "log")
        command = [find_tool("h2load").path, "--h1", "--threads=1", *options, f"--log-file={log}", url]
        subprocess.run(command, check=True, capture_output=True, timeout=seconds_s + 30)
        with open(log, encoding="ascii") as file:
            rows = [line.split() for line in file]
    return [(int(start_us), int(status), int(duration_us)) for start_us, status, duration_us, *_ in rows]


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


def choose_step(rate: float) -> tuple[int, int]:
    """Return one of `STEPS_MS` and the requests in it that come nearest to a rate."""
    steps = ((step_ms, max(1, round(rate * step_ms / 1e3))) for step_ms in STEPS_MS)
    return min(steps, key=lambda step: abs(step[1] / step[0] * 1e3 - rate))


def send_h2load(
    deployment: Deployment, path: str, rate: float, seconds_s: float, reader: SpoolReader
) -> tuple[Sent, tuple[int, ...]]:
    """Measure an open load of h2load's, once all its clients have begun; return its instants too, ns.

    With `--duration` all clients would begin, and send ever after, at the same instants.
    """
    step_ms, _ = choose_step(rate)
    ramp_s = CLIENTS * step_ms / 1e3
    each = math.ceil((ramp_s + seconds_s) * rate / CLIENTS) + 1
    options = (
        *(f"--clients={CLIENTS}", f"--rps={rate / CLIENTS:.6f}", f"--requests={each * CLIENTS}"),
        *("--rate=1", f"--rate-period={step_ms}ms"),
    )
    since_ns = time.time_ns()
    rows = log_h2load(deployment.url + path, options, ramp_s + seconds_s)
    begin_us = min(start_us for start_us, _, _ in rows) + round(ramp_s * 1e6)
    within = [row for row in rows if 0 <= row[0] - begin_us < seconds_s * 1e6]
    good_us = [float(duration_us) for _, status, duration_us in within if 200 <= status < 400]
    begun_ns, served_us = read_nginx(reader, since_ns, len(rows), begin_us * 1_000, seconds_s)
    instants_ns = sorted((start_us - begin_us) * 1_000 for start_us, _, _ in within)
    return Sent(len(within), good_us, begun_ns, served_us), tuple(instants_ns)


def send_ours(traffic: Traffic, reader: SpoolReader) -> tuple[Sent, Outcome]:
    """Measure an open load of ours."""
    since_ns = time.time_ns()
    outcome = generate(traffic)
    good_us, _ = read_outcome(outcome)
    sent = len(outcome.status_codes)
    begun_ns, served_us = read_nginx(reader, since_ns, sent, outcome.start_ns, traffic.seconds_s)
    return Sent(sent, good_us, begun_ns, served_us), outcome


def read_nginx(
    reader: SpoolReader, since_ns: int, count: int, begin_ns: int, seconds_s: float
) -> tuple[list[int], list[float]]:
    """Wait for the records of `count` requests since an instant; return those of so many seconds.

    When nginx began each, ascending, and what it was in nginx, µs. What is not recorded in time is missing.
    """
    records: list[tuple[int, int]] = []
    give_up_s = time.monotonic() + RECORDED_S
    while len(records) < count and time.monotonic() < give_up_s:
        time.sleep(0.05)
        records += [
            (record.start_ns, record.end_ns)
            for _, batch in reader.read()
            for record in batch
            if isinstance(record, NginxRecord) and record.start_ns is not None and record.start_ns >= since_ns
        ]
    within = sorted(record for record in records if 0 <= record[0] - begin_ns < seconds_s * 1e9)
    return [start_ns for start_ns, _ in within], [(end_ns - start_ns) / 1e3 for start_ns, end_ns in within]


def measure_open(
    deployment: Deployment, path: str, rate: float, rounds: int, seconds_s: float
) -> tuple[Open, list[SideBySide]]:
    """Send each open load once a round."""
    reader = SpoolReader(deployment.spool)
    reader.skip(time.time_ns())
    outcomes = []
    loads: list[tuple[Sent, ...]] = []
    for seed in range(rounds):
        traffic = Traffic((deployment.host, deployment.port), path, rate, seconds_s, seed)
        theirs, instants_ns = send_h2load(deployment, path, rate, seconds_s, reader)
        same, _ = send_ours(replace(traffic, arrivals_ns=instants_ns), reader)
        poisson, outcome = send_ours(traffic, reader)
        outcomes.append(outcome)
        loads.append((theirs, same, poisson))
    side_by_side = [
        summarise(load, rate, seconds_s, sent)
        for load, sent in zip(LOADS, zip(*loads, strict=True), strict=True)
    ]
    return tell_lag(rate, outcomes), side_by_side


def tell_lag(rate: float, outcomes: Sequence[Outcome]) -> Open:
    """Put our open loads together."""
    latencies: list[float] = []
    lags: list[float] = []
    for outcome in outcomes:
        good_us, late_us = read_outcome(outcome)
        latencies += good_us
        lags += late_us
    sent = sum(len(outcome.status_codes) for outcome in outcomes)
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
        cpu_us=sum(outcome.cpu_ns for outcome in outcomes) / sent / 1e3,
    )


def summarise(load: str, rate: float, seconds_s: float, sent: Sequence[Sent]) -> SideBySide:
    """Put one program's loads together."""
    latencies_us = np.concatenate([one.latencies_us for one in sent])
    begun = sum(len(one.begun_ns) for one in sent)
    gaps_ns = np.concatenate([np.diff(one.begun_ns) for one in sent])
    requests = sum(one.requests for one in sent)
    return SideBySide(
        rate_per_s=rate,
        load=load,
        requests=requests,
        failures=requests - len(latencies_us),
        mean_us=float(latencies_us.mean()),
        percentiles_us=tuple(float(value) for value in np.percentile(latencies_us, PERCENTILES)),
        max_us=float(latencies_us.max()),
        nginx_rate_per_s=begun / (len(sent) * seconds_s),
        gap_variation=float(gaps_ns.std() / gaps_ns.mean()),
        nginx_mean_us=statistics.fmean(us for one in sent for us in one.served_us),
    )


def compare(figures: dict[str, list[Closed]], name: str) -> float:
    """Return our rate over another program's, in the median round."""
    pairs = zip(figures[PROGRAMS[0]], figures[name], strict=True)
    return statistics.median(ours.rate_per_s / theirs.rate_per_s for ours, theirs in pairs)


def judge(
    closed: dict[int, dict[str, list[Closed]]], opened: list[Open], side_by_side: list[SideBySide]
) -> dict[str, bool]:
    """Return each target, in words, and whether it was reached."""
    saturated = closed[CONCURRENCIES[-1]]
    return (
        {
            f"at saturation within {TARGET:.0%} of {name}": abs(compare(saturated, name) - 1) <= TARGET
            for name in PROGRAMS[1:]
        }
        | {
            f"p99 lag within {TARGET:.0%} of p50 at {one.rate_per_s:.0f}/s": one.lag_p99_us
            <= TARGET * one.p50_us
            for one in opened
        }
        | {
            f"{one.rate_per_s:.0f}/s of {one.load}, in nginx within {TARGET:.0%}": (
                abs(one.nginx_rate_per_s / one.rate_per_s - 1) <= TARGET
            )
            for one in side_by_side
        }
    )


def show(
    closed: dict[int, dict[str, list[Closed]]],
    opened: list[Open],
    side_by_side: list[SideBySide],
    console: Console,
) -> None:
    """Print a table for the closed loops and two for the open loads."""
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
    console.print(make_side_by_side(side_by_side))


def make_side_by_side(side_by_side: list[SideBySide]) -> Table:
    """Return a table with a column for each load, and the rates below each other."""
    table = Table(title="open loads at the same rate, ours from the planned instants", title_justify="left")
    table.add_column("requests/s", justify="right")
    table.add_column("")
    for load in LOADS:
        table.add_column(load, justify="right")
    names = ("mean", *(f"p{percentile:g}" for percentile in PERCENTILES), "max")
    for rate, group in itertools.groupby(side_by_side, key=lambda one: one.rate_per_s):
        loads = list(group)
        figures = zip(*((one.mean_us, *one.percentiles_us, one.max_us) for one in loads), strict=True)
        rows = [
            ("failures", [f"{one.failures / one.requests:.2%}" for one in loads]),
            *((f"{name}, µs", [f"{us:.0f}" for us in row]) for name, row in zip(names, figures, strict=True)),
            ("in nginx: requests/s", [f"{one.nginx_rate_per_s:.1f}" for one in loads]),
            ("in nginx: gaps", [f"{one.gap_variation:.2f}" for one in loads]),
            ("in nginx: mean, µs", [f"{one.nginx_mean_us:.0f}" for one in loads]),
        ]
        for number, (name, texts) in enumerate(rows):
            table.add_row("" if number else f"{rate:.0f}", name, *texts)
        table.add_section()
    return table


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
        measured = [
            measure_open(deployment, path, requests / step_ms * 1e3, rounds, seconds)
            for step_ms, requests in progress.track(
                [choose_step(share * statistics.median(rates)) for share in SHARES],
                description="open loads",
            )
        ]
        deployment.check_alive()
    opened = [one for one, _ in measured]
    side_by_side = [one for _, loads in measured for one in loads]
    targets = judge(closed, opened, side_by_side)
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
            "side_by_side": {
                "percentiles": PERCENTILES,
                "loads": [asdict(one) for one in side_by_side],
            },
        }
        json.dump(document, sys.stdout, indent=2)
        print()
    else:
        show(closed, opened, side_by_side, console)
    for target, reached in targets.items():
        console.print(f"target, {target}: {'reached' if reached else 'not reached'}", highlight=False)
    sys.exit(not all(targets.values()))


if __name__ == "__main__":
    main()
