"""What a benchmark runs, in which order: the cells, the blocks, the load, the time that it takes.

A *cell* is one set-up with one workload. A *block* runs every cell once, in random order, and one cell a
second time, its *twin*, so that every result also compares a set-up with itself (A/A). Nothing here touches
the system; the same seed gives the same schedule::

    plan = make_plan(workloads=("point-query",), workers=("4x1",), blocks=8, seed=1)
    plan.schedule()[0]  →  ScheduledRun(block=0, order=0, cell=Cell(hop1='tcp', …), twin=False, seed=…)
    plan.estimate_s()   →  692.0
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from reqpath.errors import ConfigurationError

Hop = Literal["tcp", "unix"]
#: Processes by threads: four requests at a time in each.
Workers = Literal["4x1", "1x4", "2x2"]
Connection = Literal["pooled", "per-request"]
Factor = Literal["hop1", "hop2", "workers", "connection", "planted_us"]

HOPS: Final[tuple[Hop, ...]] = ("tcp", "unix")
WORKERS: Final[tuple[Workers, ...]] = ("4x1", "1x4", "2x2")
CONNECTIONS: Final[tuple[Connection, ...]] = ("pooled", "per-request")
FACTORS: Final[tuple[Factor, ...]] = ("hop1", "hop2", "workers", "connection", "planted_us")

#: Starting and stopping the servers around a run, and waiting for its last records.
_RESTART_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of request."""

    #: `point-query`: how it is chosen and how cells are named.
    name: str
    #: In a sentence: "for <title>, …".
    title: str
    #: What is requested, by GET.
    path: str
    #: Whether it queries the database; one that doesn't is not compared over what lies before the database.
    database: bool = True


#: Those that come with reqpath, by name; their app is examples/workloads.
WORKLOADS: Final = {
    workload.name: workload
    for workload in (
        Workload("trivial", "a trivial request", "/trivial", database=False),
        Workload("cpu", "5 ms of CPU", "/cpu", database=False),
        Workload("point-query", "a point query", "/query"),
        Workload("ten-queries", "ten queries", "/queries"),
        Workload("sleep", "a query of 10 ms", "/sleep"),
        Workload("mixed", "CPU and queries", "/mixed"),
    )
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One set-up with one workload."""

    #: nginx → uWSGI.
    hop1: Hop
    #: App → database.
    hop2: Hop
    workers: Workers
    #: Name of a workload.
    workload: str
    connection: Connection = "pooled"
    #: µs that each query is made to take longer, to check the benchmark by; a level, so it is text.
    planted_us: str = "0"

    @property
    def key(self) -> str:
        """The cell as one word: `point-query/tcp/unix/4x1/pooled`."""
        key = "/".join((self.workload, self.hop1, self.hop2, self.workers, self.connection))
        return key if self.planted_us == "0" else f"{key}/+{self.planted_us}us"

    @property
    def planted_ns(self) -> int:
        """What each query is made to take longer."""
        return int(self.planted_us) * 1_000

    @property
    def processes(self) -> int:
        """How many uWSGI runs."""
        return int(self.workers.split("x")[0])

    @property
    def threads(self) -> int:
        """How many each process has."""
        return int(self.workers.split("x")[1])


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent at a cell."""

    #: Of the capacity of the slowest cell that is compared; the rest is there for what arrives in bursts.
    share: float = 0.6
    #: Workload and what it is sent, whatever the capacities are; empty: `share` decides.
    rates_per_s: tuple[tuple[str, float], ...] = ()
    #: Requests under way at one time; an arrival beyond them is dropped, and counted.
    max_in_flight: int = 256
    #: After which an answer has failed.
    timeout_s: float = 10.0
    #: Concurrencies of the closed loop that finds the capacity, and how long each is held.
    capacity_steps: tuple[int, ...] = (4, 8, 16)
    capacity_step_s: float = 2.0


class ScheduledRun(NamedTuple):
    """One run that is to be made."""

    block: int
    #: Position within its block.
    order: int
    cell: Cell
    #: The second run of the same cell in this block.
    twin: bool
    #: Of the generator. The same for all cells of a workload in a block: they are sent the same arrivals.
    seed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides what a benchmark does."""

    workloads: tuple[Workload, ...]
    #: In the order in which they are told of.
    cells: tuple[Cell, ...]
    blocks: int
    #: Key of the cell that every block runs twice.
    twin: str
    seed: int = 1
    #: Of each run, what is measured.
    seconds_s: float = 10.0
    #: Before it: what is planned to be sent in the first so many seconds of a run is sent and not counted.
    warm_up_s: float = 2.0
    load: Load = Load()
    #: `module:callable` of the user's own app; empty: reqpath's workloads.
    app: str = ""

    def schedule(self) -> tuple[ScheduledRun, ...]:
        """Return every run, in the order in which they are made."""
        runs = []
        for block in range(self.blocks):
            # A string seeds by its digest, which is the same in every process and version.
            chance = random.Random(f"{self.seed}/{block}")  # noqa: S311
            members = [(cell, False) for cell in self.cells] + [(self.cell(self.twin), True)]
            chance.shuffle(members)
            runs += [
                ScheduledRun(block, order, cell, twin, self._arrivals_seed(block, cell.workload))
                for order, (cell, twin) in enumerate(members)
            ]
        return tuple(runs)

    def cell(self, key: str) -> Cell:
        """Return the cell of a key. Raises: ConfigurationError when there is none."""
        for cell in self.cells:
            if cell.key == key:
                return cell
        raise ConfigurationError(f"the plan has no cell {key}")

    def workload(self, name: str) -> Workload:
        """Return the workload of a name. Raises: ConfigurationError when there is none."""
        for workload in self.workloads:
            if workload.name == name:
                return workload
        raise ConfigurationError(f"the plan has no workload {name}")

    def rates(self, capacities_per_s: Mapping[str, float]) -> dict[str, float]:
        """Return each workload's rate, from the capacity of each cell by key.

        All cells of a workload are compared with each other, so all are sent the same.
        """
        if self.load.rates_per_s:
            return dict(self.load.rates_per_s)
        return {
            workload.name: self.load.share
            * min(capacities_per_s[cell.key] for cell in self.cells if cell.workload == workload.name)
            for workload in self.workloads
        }

    def estimate_s(self, runs: int | None = None) -> float:
        """Return about how long it takes: `runs` of the schedule alone, or all of it with the capacities."""
        run_s = _RESTART_S + self.warm_up_s + self.seconds_s
        if runs is not None:
            return runs * run_s
        capacity_s = 0.0
        if not self.load.rates_per_s:
            steps_s = len(self.load.capacity_steps) * self.load.capacity_step_s
            capacity_s = len(self.cells) * (_RESTART_S + steps_s)
        return capacity_s + self.blocks * (len(self.cells) + 1) * run_s

    def _arrivals_seed(self, block: int, workload: str) -> int:
        return random.Random(f"{self.seed}/{block}/{workload}").getrandbits(32)  # noqa: S311


def make_plan(
    *,
    workloads: Sequence[str | Workload] = ("point-query", "cpu"),
    hop1: Sequence[Hop] = HOPS,
    hop2: Sequence[Hop] = HOPS,
    workers: Sequence[Workers] = ("4x1", "1x4"),
    connections: Sequence[Connection] = ("pooled",),
    planted_us: Sequence[str] = ("0",),
    blocks: int = 10,
    seed: int = 1,
    seconds_s: float = 10.0,
    warm_up_s: float = 2.0,
    load: Load | None = None,
    app: str = "",
) -> Plan:
    """Plan every combination of the levels; without a choice, the default matrix.

    A workload without a database has one cell for all levels of what lies before the database.

    Raises:
        ConfigurationError: a level or a number makes no plan.
    """
    chosen = tuple(
        _find_workload(workload) if isinstance(workload, str) else workload for workload in workloads
    )
    for name, levels, known in (
        ("workload", [workload.name for workload in chosen], None),
        ("hop1", hop1, HOPS),
        ("hop2", hop2, HOPS),
        ("workers", workers, WORKERS),
        ("connection", connections, CONNECTIONS),
        ("plant", planted_us, None),
    ):
        _check_levels(name, levels, known)
    _check_planted(planted_us)
    load = load or Load()
    _check_numbers(blocks, seconds_s, warm_up_s)
    _check_load(load, [workload.name for workload in chosen])
    cells = tuple(
        Cell(first, second, slots, workload.name, connection, planted)
        for workload in chosen
        for planted, connection, second, first, slots in itertools.product(
            planted_us if workload.database else planted_us[:1],
            connections if workload.database else connections[:1],
            hop2 if workload.database else hop2[-1:],
            hop1,
            workers,
        )
    )
    return Plan(
        workloads=chosen,
        cells=cells,
        blocks=blocks,
        twin=cells[0].key,
        seed=seed,
        seconds_s=seconds_s,
        warm_up_s=warm_up_s,
        load=load,
        app=app,
    )


def make_quick_plan(**chosen: Any) -> Plan:
    """Plan the sockets alone: minutes instead of the better part of an hour. Takes what `make_plan` takes."""
    quick: dict[str, Any] = {
        "workloads": ("point-query",),
        "workers": ("4x1",),
        "blocks": 8,
        "seconds_s": 6.0,
    }
    return make_plan(**(quick | chosen))


def _find_workload(name: str) -> Workload:
    if name not in WORKLOADS:
        raise ConfigurationError(f"no workload {name!r}; there are {', '.join(WORKLOADS)}")
    return WORKLOADS[name]


def _check_levels(name: str, levels: Sequence[str], known: Iterable[str] | None) -> None:
    if not levels:
        raise ConfigurationError(f"{name} needs at least one level")
    if len(set(levels)) < len(levels):
        raise ConfigurationError(f"{name} has a level twice: {', '.join(levels)}")
    wrong = [level for level in levels if known is not None and level not in known]
    if wrong:
        raise ConfigurationError(f"{name} can't be {wrong[0]!r}; it can be {', '.join(known or ())}")


def _check_planted(planted_us: Sequence[str]) -> None:
    for level in planted_us:
        # As numbers they must be told apart, and not be a request's end.
        if not re.fullmatch(r"0|[1-9][0-9]{0,5}", level):
            raise ConfigurationError(f"plant can't be {level!r}; it is whole microseconds, below a second")


def _check_numbers(blocks: int, seconds_s: float, warm_up_s: float) -> None:
    if blocks < 1:
        raise ConfigurationError(f"blocks is {blocks}; it must be at least 1")
    if not 0 < seconds_s < math.inf or not 0 <= warm_up_s < math.inf:
        raise ConfigurationError(f"a run of {seconds_s:g} s after {warm_up_s:g} s can't be made")


def _check_load(load: Load, workloads: list[str]) -> None:
    if not 0 < load.share < 1:
        raise ConfigurationError(f"the load's share is {load.share:g}; it must lie between 0 and 1")
    rates = dict(load.rates_per_s)
    if rates and set(rates) != set(workloads):
        raise ConfigurationError(
            f"rates are given for {', '.join(rates)}; the workloads are {', '.join(workloads)}"
        )
    for name, rate in rates.items():
        if not 0 < rate < math.inf:
            raise ConfigurationError(f"the rate of {name} is {rate:g}; it must be above 0, and finite")
