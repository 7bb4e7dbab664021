"""Runs a benchmark's plan on real servers, and appends what each run measured to a journal.

The layers below are `reqpath.servers`, `generator` and `capacity`; the one above is the command `reqpath
bench`. One database serves all runs; nginx and uWSGI are started anew for each::

    with open_bench(plan, command="reqpath bench --quick") as bench:
        with Journal.create("bench.jsonl", bench.head) as journal:
            bench.measure(journal, print)
    judge(read_result("bench.jsonl"))

Whatever ends it, Ctrl-C, a server's death or a full disk, the runs that were finished are in the journal, and
no process is left. With what a journal has already, `measure` goes on from there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import msgspec

from reqpath.bench.account import account
from reqpath.bench.capacity import Tool, find_tool, measure_capacity
from reqpath.bench.generator import Outcome, Traffic, generate
from reqpath.bench.host import describe_host
from reqpath.bench.load import Client, wait_for_records
from reqpath.bench.load import Plan as Request
from reqpath.bench.observe import (
    Observed,
    count_shared_processors,
    judge_run,
    read_counters,
    subtract,
)
from reqpath.bench.plan import Cell, Plan, ScheduledRun
from reqpath.bench.result import (
    Capacity,
    CapacityStep,
    Configuration,
    Head,
    Journal,
    Rates,
    Reason,
    Result,
    RunRecord,
)
from reqpath.collect.join import read_paths
from reqpath.errors import ServerError
from reqpath.path import RequestPath
from reqpath.servers.database import Database, start_database
from reqpath.servers.deployment import (
    Deployment,
    calibrate_cpu_rounds,
    fill_database,
    start_deployment,
    workloads,
)
from reqpath.servers.topology import App, Topology
from reqpath.spool import SpoolReader

#: How long the records of the last requests may take to get to the spool.
_SETTLE_S: Final = 5.0
#: Of the answered requests, how many may be missing in the spool.
_MOST_LOST: Final = 0.01
#: Of what the app wrote when it failed.
_TOLD_LINES: Final = 10


class Step(NamedTuple):
    """What is done now, and how long it all takes from here."""

    what: str
    #: Of all steps, how many are done.
    done: int
    steps: int
    left_s: float


Tell = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Bench:
    """A plan with all that its runs share."""

    plan: Plan
    app: App
    #: None where the app needs none of ours.
    database: Database | None
    #: Of the app.
    environment: tuple[tuple[str, str], ...]
    head: Head
    #: Finds the capacities; None where the rates are given.
    tool: Tool | None

    def measure(self, journal: Journal, tell: Tell, before: Result | None = None) -> None:
        """Make every run that is not in `before`, and append it to the journal.

        Raises: ServerError when a server or the app fails; ResultError when the journal can't be written.
        """
        _Session(self, journal, tell, before).run()

    def build_topology(self, cell: Cell) -> Topology:
        """Return what is started for a cell."""
        environment = (*self.environment, ("WORKLOADS_CONNECTION", cell.connection))
        if most_ns := max(one.planted_ns for one in self.plan.cells):
            # Where nothing is planted too: all have to take as much of the processors.
            environment += (
                ("WORKLOADS_PLANTED_NS", str(cell.planted_ns)),
                ("WORKLOADS_PLANTED_MOST_NS", str(most_ns)),
            )
        return Topology(
            app=self.app,
            transport=cell.hop1,
            database_transport=cell.hop2,
            processes=cell.processes,
            threads=cell.threads,
            environment=environment,
        )


@contextlib.contextmanager
def open_bench(
    plan: Plan,
    *,
    command: str = "",
    app: App | None = None,
    environment: tuple[tuple[str, str], ...] = (),
    progress: Callable[[str], None] = lambda _what: None,
) -> Iterator[Bench]:
    """Start what all runs share; `app` None: the plan's, from the current directory, or the workloads'.

    Raises: ServerError, ConfigurationError when something is not installed or does not start.
    """
    tool = None if plan.load.rates_per_s else find_tool()
    with contextlib.ExitStack() as stack:
        if app is None and plan.app:
            app = App(module=plan.app, directory=os.getcwd())
        elif app is None:
            progress("the calibration of 5 ms of CPU")
            environment = (*environment, ("WORKLOADS_CPU_ROUNDS", str(calibrate_cpu_rounds())))
            app = workloads()
        database = None
        if app.database_prefix:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="reqpath-bench-"))
            progress("the database")
            database = stack.enter_context(start_database(os.path.join(directory, "database")))
            if app.setup:
                progress("its data")
                fill_database(Topology(app=app, environment=environment), database, directory)
        host = describe_host(
            f"{database.kind} {database.version}" if database else "",
            {tool.name: tool.version} if tool else {},
        )
        yield Bench(
            plan=plan,
            app=replace(app, setup=()),
            database=database,
            environment=environment,
            head=Head(plan=plan, host=host, created_ns=time.time_ns(), command=command),
            tool=tool,
        )


class _Session:
    """One go at a plan: what is left to do, and how long that takes."""

    def __init__(self, bench: Bench, journal: Journal, tell: Tell, before: Result | None) -> None:
        self._bench = bench
        self._plan = bench.plan
        self._journal = journal
        self._tell = tell
        self._rates = dict(before.rates) if before else {}
        self._capacities = {found.cell: found.requests_per_s for found in before.capacities} if before else {}
        self._configured = {found.cell for found in before.configurations} if before else set()
        made = {(run.block, run.cell, run.twin) for run in before.runs} if before else set()
        self._runs = [run for run in self._plan.schedule() if (run.block, run.cell.key, run.twin) not in made]
        self._to_probe = (
            []
            if self._rates or self._plan.load.rates_per_s
            else [cell for cell in self._plan.cells if cell.key not in self._capacities]
        )
        self._steps = len(self._runs) + len(self._to_probe)
        self._done = 0
        self._took_s: list[float] = []
        self._what = ""
        self._begin_s = 0.0

    def run(self) -> None:
        for cell in self._to_probe:
            self._begin(f"capacity of {cell.key}")
            self._find_capacity(cell)
            self._end()
        if not self._rates:
            self._rates = self._plan.rates(self._capacities)
            self._journal.append(Rates(self._rates))
        for _, runs in itertools.groupby(self._runs, key=lambda run: run.block):
            self._make_block(list(runs))

    def _make_block(self, runs: list[ScheduledRun]) -> None:
        """Make runs of one block, and once more those that are invalid.

        If that is most of them it is not chance, and would be no better again.
        """
        failed = [run for run in runs if self._make(run)]
        if len(failed) * 2 <= len(self._plan.cells) + 1:
            self._steps += len(failed)
            for run in failed:
                self._make(run, " again")

    def _make(self, run: ScheduledRun, remark: str = "") -> bool:
        """Make a run and keep it; return whether it is invalid."""
        twin = " (A/A)" if run.twin else ""
        self._begin(f"block {run.block + 1}/{self._plan.blocks} {run.cell.key}{twin}{remark}")
        record = self._make_run(run)
        self._journal.append(record)
        self._took_s.append(self._end())
        return bool(record.invalid) and not record.saturated

    def _begin(self, what: str) -> None:
        self._what = what
        self._begin_s = time.monotonic()
        self._report()

    def _end(self) -> float:
        self._done += 1
        return time.monotonic() - self._begin_s

    def _report(self) -> None:
        self._tell(Step(self._what, self._done, self._steps, self._estimate_left_s()))

    def _estimate_left_s(self) -> float:
        """Estimate from the plan, and from how long runs really took once there are some."""
        run_s = sum(self._took_s) / len(self._took_s) if self._took_s else self._plan.estimate_s(1)
        cells = len(self._to_probe) - min(self._done, len(self._to_probe))
        runs = self._steps - self._done - cells
        cell_s = (self._plan.estimate_s() - self._plan.estimate_s(self._count_all())) / len(self._plan.cells)
        return max(0.0, runs * run_s + cells * cell_s - (time.monotonic() - self._begin_s))

    def _count_all(self) -> int:
        return self._plan.blocks * (len(self._plan.cells) + 1)

    @contextlib.contextmanager
    def _start(self, cell: Cell) -> Iterator[Deployment]:
        """Start a cell's servers; its app has answered one request, which was recorded."""
        topology = self._bench.build_topology(cell)
        with start_deployment(topology, database=self._bench.database) as deployment:
            _check_app(deployment, self._plan.workload(cell.workload).path)
            if cell.key not in self._configured:
                self._configured.add(cell.key)
                self._journal.append(_read_configuration(cell, deployment))
            yield deployment

    def _find_capacity(self, cell: Cell) -> None:
        tool, load = self._bench.tool, self._plan.load
        assert tool is not None
        with self._start(cell) as deployment:
            steps = measure_capacity(
                tool,
                deployment.url + self._plan.workload(cell.workload).path,
                concurrencies=load.capacity_steps,
                seconds_s=load.capacity_step_s,
                while_running=lambda: self._watch(deployment),
            )
        best = max(step.requests_per_s for step in steps)
        if not best:
            raise ServerError(f"{cell.key} answered none of {steps[-1].requests} requests well")
        self._capacities[cell.key] = best
        self._journal.append(
            Capacity(
                cell=cell.key,
                requests_per_s=best,
                steps=tuple(CapacityStep(one.concurrency, one.requests_per_s, one.failures) for one in steps),
                tool=f"{tool.name} {tool.version}",
            )
        )

    def _make_run(self, run: ScheduledRun) -> RunRecord:
        plan = self._plan
        rate_per_s = self._rates[run.cell.workload]
        with self._start(run.cell) as deployment:
            traffic = Traffic(
                address=(deployment.host, deployment.port),
                path=plan.workload(run.cell.workload).path,
                rate=rate_per_s,
                seconds_s=plan.warm_up_s + plan.seconds_s,
                seed=run.seed,
                connections=plan.load.max_in_flight,
                timeout_s=plan.load.timeout_s,
            )
            outcome, observed = self._generate(traffic, deployment)
            deployment.check_alive()
            told = _read_told(deployment, 0)
            paths = _read_recorded(deployment, outcome)
            resolution_ns = deployment.resolution_ns
        sums = account(outcome, paths, warm_up_ns=round(plan.warm_up_s * 1e9))
        processors = len(os.sched_getaffinity(0))
        record = RunRecord(
            cell=run.cell.key,
            twin=run.twin,
            block=run.block,
            order=run.order,
            seed=run.seed,
            start_ns=sums.start_ns,
            end_ns=sums.end_ns,
            warm_up_requests=sums.warm_up_requests,
            rate_per_s=rate_per_s,
            planned=sums.planned,
            answered=sums.answered,
            failures=sums.failures,
            dropped=sums.dropped,
            latency=sums.latency,
            tenths_ns=sums.tenths_ns,
            lag=sums.lag,
            whole=sums.whole,
            slowest=sums.slowest,
            in_flight=sums.in_flight,
            in_flight_expected=sums.in_flight_expected,
            listen_overflows=observed.listen_overflows,
            listen_queues=observed.listen_queues,
            steal_share=observed.steal_share,
            cpu_share=observed.cpu_share,
            generator_share=outcome.cpu_ns / outcome.elapsed_ns / processors,
            resolution_ns=resolution_ns,
        )
        judged = judge_run(
            record,
            in_flight=sums.in_flight_slices,
            shared_processors=count_shared_processors(),
            realtime=outcome.realtime,
        )
        # What no queue and no connection kept away from the app, the app failed at.
        reached = judged.planned and not judged.dropped and not judged.listen_overflows
        if reached and not judged.answered:
            kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(judged.failures.items()))
            raise ServerError(
                f"{run.cell.key} answered none of {judged.planned} requests well: {kinds}", told
            )
        return _judge_records(judged)

    def _generate(self, traffic: Traffic, deployment: Deployment) -> tuple[Outcome, Observed]:
        """Send the load; what the machine did is observed from the warm-up's end on, to a second."""
        log, ports = deployment.nginx.log_path, _list_ports(deployment)
        before = read_counters(log, ports)
        measured_s = time.monotonic() + self._plan.warm_up_s

        def watch() -> None:
            nonlocal before
            if time.monotonic() < measured_s:
                before = read_counters(log, ports)
            self._watch(deployment)

        outcome = generate(traffic, while_running=watch)
        return outcome, subtract(before, read_counters(log, ports))

    def _watch(self, deployment: Deployment) -> None:
        deployment.check_alive()
        self._report()


def _list_ports(deployment: Deployment) -> dict[str, int]:
    """Return the ports on which the deployment's servers take their connections over TCP."""
    topology, placement = deployment.topology, deployment.placement
    ports = {"nginx": placement.nginx_port}
    if topology.transport == "tcp":
        ports["uwsgi"] = placement.uwsgi_port
    if topology.database_transport == "tcp" and deployment.database is not None:
        ports["database"] = deployment.database.port
    return ports


def _check_app(deployment: Deployment, path: str) -> None:
    """Send one request. Raises: ServerError when it fails, or left no record."""
    log_bytes = os.path.getsize(deployment.uwsgi.log_path)
    with contextlib.closing(Client((deployment.host, deployment.port))) as client:
        seen = client.send(Request("check", "GET", path))
    unrecorded = wait_for_records(deployment.spool, {seen.trace_id}, _SETTLE_S)
    told = _read_told(deployment, log_bytes)
    if seen.status is None or not 200 <= seen.status < 400:
        # The app is not to blame for a database that died.
        deployment.check_alive()
        answer = "broke the connection" if seen.status is None else f"answered {seen.status}"
        raise ServerError(f"the app {answer} to GET {path}", told)
    if unrecorded:
        raise ServerError(f"the app recorded nothing of GET {path}; `ReqPath(app)` must be in it", told)


def _read_told(deployment: Deployment, from_byte: int) -> str:
    """Return the last lines that uWSGI and the app have written since."""
    with open(deployment.uwsgi.log_path, encoding="utf-8", errors="replace") as log:
        log.seek(from_byte)
        return "".join(log.readlines()[-_TOLD_LINES:])


def _read_recorded(deployment: Deployment, outcome: Outcome) -> dict[str, RequestPath]:
    """Return the recorded paths by trace id, when all that were answered are there or it is too late."""
    answered = {
        outcome.trace_id(number) for number, status in enumerate(outcome.status_codes) if 200 <= status < 400
    }
    wait_for_records(deployment.spool, answered, _SETTLE_S)
    return {path.trace_id: path for path in read_paths(SpoolReader(deployment.spool))}


def _judge_records(record: RunRecord) -> RunRecord:
    """Call a run invalid whose tiers are known of too few of its requests to speak for all."""
    lost = record.answered - record.whole.requests
    if lost <= _MOST_LOST * record.answered:
        return record
    text = f"{lost} of {record.answered} answered requests left no record"
    return msgspec.structs.replace(record, invalid=(*record.invalid, Reason("lost records", text)))


def _read_configuration(cell: Cell, deployment: Deployment) -> Configuration:
    """Return the files that the servers were started with."""
    directory = deployment.placement.directory
    files = {}
    for name in sorted(os.listdir(directory)):
        if name.endswith((".conf", ".ini")):
            with open(os.path.join(directory, name), encoding="utf-8") as file:
                files[name] = file.read()
    if options := deployment.topology.database_options:
        files["database options"] = "\n".join(options)
    return Configuration(cell=cell.key, files=files)
