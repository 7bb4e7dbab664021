"""Results of benchmarks that never ran: runs that drift, are noisy, and differ by what a test plants."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from reqpath.bench.histogram import encode_histogram, make_histogram
from reqpath.bench.plan import Plan, ScheduledRun, make_plan, make_quick_plan
from reqpath.bench.result import Capacity, Configuration, Host, Reason, Result, RunRecord, Slice

NOW_NS = 1_790_000_000_000_000_000

RATE_PER_S = 240.0

#: What a request has of each segment when nothing is planted, ns; they sum up to 1.6 ms.
BASE_NS = {
    "client.lag": 20_000,
    "client.network": 110_000,
    "nginx.receive": 30_000,
    "queue": 120_000,
    "uwsgi.read": 25_000,
    "uwsgi.gil": 15_000,
    "flask.middleware": 40_000,
    "flask.framework": 160_000,
    "flask.view": 480_000,
    "mysql.query": 420_000,
    "mysql.fetch": 60_000,
    "uwsgi.send": 30_000,
    "nginx.send": 60_000,
    "residual": 30_000,
}

#: Segment → ns that a cell has beyond `BASE_NS`.
Planted = Callable[[ScheduledRun], Mapping[str, float]]
#: Fields of the record in a run's place.
Spoilt = Callable[[ScheduledRun], Mapping[str, Any]]

HOST = Host(
    identity="5a1f",
    kernel="6.1.0-18-amd64",
    cpu_model="Example CPU @ 2.50GHz",
    cores=2,
    governor="",
    memory_bytes=8_000_000_000,
    somaxconn=4096,
    versions={
        "database": "mariadb 10.11.6",
        "nginx": "1.22.1",
        "python": "3.11.2",
        "reqpath": "0.1.0",
        "uwsgi": "2.0.28",
    },
)


def plant_nothing(_run: ScheduledRun) -> Mapping[str, float]:
    return {}


def spoil_nothing(_run: ScheduledRun) -> Mapping[str, Any]:
    return {}


def make_result(
    plan: Plan | None = None,
    *,
    seed: int = 1,
    plant: Planted = plant_nothing,
    spoil: Spoilt = spoil_nothing,
    noise: float = 0.02,
    drift: float = 0.01,
    runs: int | None = None,
    host: Host = HOST,
) -> Result:
    """Return the result of a plan, or of its first `runs`.

    The machine's speed walks at random by `drift` from run to run, and one run in twenty has a busy
    neighbour; within a run each segment's mean has a `noise` of its own.
    """
    plan = plan or make_quick_plan()
    chance = random.Random(seed)
    rates = {workload.name: RATE_PER_S for workload in plan.workloads}
    records = []
    speed = 1.0
    for number, scheduled in enumerate(plan.schedule()[:runs]):
        speed *= 1 + chance.gauss(0, drift)
        slowness = speed * (1.2 if chance.random() < 0.05 else 1.0)
        planted = plant(scheduled)
        means = {
            name: base_ns * slowness * (1 + chance.gauss(0, noise)) + planted.get(name, 0)
            for name, base_ns in BASE_NS.items()
        }
        means |= {name: float(ns) for name, ns in planted.items() if name not in means}
        records.append(_make_run(scheduled, number, plan, means, chance))
        spoilt = spoil(scheduled)
        if spoilt:
            records[-1] = RunRecord(
                **{name: spoilt.get(name, getattr(records[-1], name)) for name in RunRecord.__struct_fields__}
            )
    return Result(
        plan=plan,
        host=host,
        created_ns=NOW_NS,
        command="reqpath bench --quick",
        rates=rates,
        capacities=tuple(
            Capacity(cell=cell.key, requests_per_s=400.0 + 10 * number, steps=(), tool="wrk 4.1.0")
            for number, cell in enumerate(plan.cells)
        ),
        configurations=tuple(
            Configuration(cell=cell.key, files={"nginx.conf": "daemon off;\n"}) for cell in plan.cells
        ),
        runs=tuple(records),
    )


def _make_run(
    scheduled: ScheduledRun, number: int, plan: Plan, means_ns: dict[str, float], chance: random.Random
) -> RunRecord:
    rate_per_s = RATE_PER_S
    requests = int(rate_per_s * plan.seconds_s)
    start_ns = NOW_NS + number * 12_000_000_000
    mean_ns = sum(means_ns.values())
    # The latencies' shape: most near the mean, some three times as long.
    latencies = [round(mean_ns * chance.gammavariate(6, 1 / 6)) for _ in range(300)]
    tail = max(1, requests // 100)
    return RunRecord(
        cell=scheduled.cell.key,
        twin=scheduled.twin,
        block=scheduled.block,
        order=scheduled.order,
        seed=scheduled.seed,
        start_ns=start_ns,
        end_ns=start_ns + round(plan.seconds_s * 1e9),
        warm_up_requests=int(rate_per_s * plan.warm_up_s),
        rate_per_s=rate_per_s,
        planned=requests,
        answered=requests,
        failures={},
        dropped=0,
        latency=encode_histogram(make_histogram(latencies)),
        lag=encode_histogram(make_histogram(round(chance.expovariate(1 / 20_000)) for _ in range(100))),
        whole=make_slice(requests, means_ns, cpu_ns=900_000),
        slowest=make_slice(
            tail,
            {name: ns * (2.5 + chance.gauss(0, 0.1)) for name, ns in means_ns.items()},
            cpu_ns=1_100_000,
        ),
        in_flight=rate_per_s * mean_ns / 1e9 * (1 + chance.gauss(0, 0.005)),
        in_flight_expected=rate_per_s * mean_ns / 1e9,
        listen_overflows=0,
        steal_share=0.0,
        cpu_share=0.6,
        generator_share=0.1,
        resolution_ns=1_000,
    )


def make_slice(requests: int, means_ns: Mapping[str, float], cpu_ns: int = 0) -> Slice:
    """Return a slice whose segments have these means."""
    segments_ns = {name: round(ns * requests) for name, ns in means_ns.items()}
    return Slice(
        requests=requests,
        client_ns=sum(segments_ns.values()),
        segments_ns=segments_ns,
        lens_requests=max(1, requests // 8),
        lens_ns={
            name: ns * max(1, requests // 8)
            for name, ns in {"cpu": cpu_ns, "run queue": 20_000, "calls": 400_000, "other": 30_000}.items()
        },
    )


SHARED = Reason("shared cores", "the client and the servers share 2 cores")
STEAL = Reason("steal", "other guests took 12 % of the CPU time")


def plant_matrix(run: ScheduledRun) -> Mapping[str, float]:
    """Queries are slower over TCP, and CPU is slower with threads, which wait for the GIL."""
    planted: dict[str, float] = {"mysql.query": 120_000} if run.cell.hop2 == "tcp" else {}
    if run.cell.workload == "cpu" and run.cell.workers == "1x4":
        planted |= {"flask.view": 700_000, "uwsgi.gil": 4_000_000}
    return planted


def spoil_bad_day(run: ScheduledRun) -> Mapping[str, Any]:
    """One cell can't keep up, and one block has a busy neighbour."""
    if run.cell.hop1 == "tcp" and run.cell.hop2 == "tcp":
        return {"saturated": True, "dropped": 400, "failures": {"timeout": 12}, "listen_overflows": 7}
    if run.block == 1:
        return {"invalid": (STEAL,)}
    return {"resolution_ns": 1_000_000}


#: What a page can meet.
CASES: dict[str, Callable[[], Result]] = {
    "matrix": lambda: make_result(
        make_plan(), plant=plant_matrix, noise=0.005, drift=0.003, spoil=lambda _: {"limits": (SHARED,)}
    ),
    "bad-day": lambda: make_result(make_quick_plan(), spoil=spoil_bad_day, runs=27),
    "one-block": lambda: make_result(make_quick_plan(blocks=1)),
    "nothing": lambda: make_result(runs=0),
}
