"""What a benchmark runs, in which order."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.bench.plan import (
    CONNECTIONS,
    HOPS,
    WORKERS,
    WORKLOADS,
    Load,
    Plan,
    make_plan,
    make_quick_plan,
)
from reqpath.errors import ConfigurationError


def levels(known: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(known), min_size=1, unique=True)


PLANS = st.builds(
    make_plan,
    workloads=levels(tuple(WORKLOADS)),
    hop1=levels(HOPS),
    hop2=levels(HOPS),
    workers=levels(WORKERS),
    connections=levels(CONNECTIONS),
    planted_us=levels(("0", "30", "300")),
    blocks=st.integers(1, 6),
    seed=st.integers(),
)


@given(PLANS)
def test_every_block_runs_every_cell_once_and_one_of_them_twice(plan: Plan) -> None:
    for block in range(plan.blocks):
        runs = [run for run in plan.schedule() if run.block == block]
        assert list(range(len(runs))) == [run.order for run in runs]
        assert {cell.key: 1 for cell in plan.cells} == Counter(run.cell.key for run in runs if not run.twin)
        assert [plan.twin] == [run.cell.key for run in runs if run.twin]


@given(PLANS)
def test_the_same_plan_gives_the_same_schedule(plan: Plan) -> None:
    assert plan.schedule() == plan.schedule()


@given(PLANS)
def test_what_is_compared_is_sent_the_same_arrivals(plan: Plan) -> None:
    seeds: dict[tuple[int, str], set[int]] = {}
    for run in plan.schedule():
        seeds.setdefault((run.block, run.cell.workload), set()).add(run.seed)
    assert all(len(of_one) == 1 for of_one in seeds.values())
    assert len(seeds) == len({seed for of_one in seeds.values() for seed in of_one})


@given(PLANS, st.data())
def test_what_is_compared_is_sent_the_same_rate_and_no_cell_more_than_its_share(
    plan: Plan, data: st.DataObject
) -> None:
    capacities = {cell.key: data.draw(st.floats(1, 1e5)) for cell in plan.cells}
    rates = plan.rates(capacities)
    for cell in plan.cells:
        assert rates[cell.workload] <= plan.load.share * capacities[cell.key]


def test_blocks_differ_in_their_order_and_seeds_too() -> None:
    orders = {
        tuple(run.cell for run in make_plan(seed=seed).schedule() if run.block == block)
        for seed in (1, 2)
        for block in range(10)
    }
    assert len(orders) == 20


def test_the_default_matrix_is_sockets_and_workers_for_a_query_and_for_cpu() -> None:
    cells = make_plan().cells
    assert Counter(cell.workload for cell in cells) == {"point-query": 8, "cpu": 4}
    sockets = {(cell.hop1, cell.hop2) for cell in cells if cell.workload == "point-query"}
    assert sockets == {(first, second) for first in HOPS for second in HOPS}
    assert {(4, 1), (1, 4)} == {(cell.processes, cell.threads) for cell in cells}


def test_what_is_planted_makes_cells_of_their_own_where_there_are_queries() -> None:
    plan = make_plan(hop1=["unix"], hop2=["unix"], workers=["4x1"], planted_us=["0", "300"])
    assert [(cell.key, cell.planted_ns) for cell in plan.cells] == [
        ("point-query/unix/unix/4x1/pooled", 0),
        ("point-query/unix/unix/4x1/pooled/+300us", 300_000),
        ("cpu/unix/unix/4x1/pooled", 0),
    ]


def test_quick_has_the_sockets_alone_and_takes_minutes() -> None:
    plan = make_quick_plan()
    assert {(first, second) for first in HOPS for second in HOPS} == {
        (cell.hop1, cell.hop2) for cell in plan.cells
    }
    assert plan.estimate_s() < 600


def test_the_time_left_is_that_of_the_runs_left() -> None:
    plan = make_quick_plan()
    runs = len(plan.schedule())
    fixed = make_quick_plan(load=Load(rates_per_s=(("point-query", 100.0),)))
    assert fixed.estimate_s() == plan.estimate_s(runs)
    assert plan.estimate_s() > plan.estimate_s(runs) > plan.estimate_s(runs - 1)


def test_given_rates_are_taken_whatever_the_capacities_are() -> None:
    plan = make_quick_plan(load=Load(rates_per_s=(("point-query", 100.0),)))
    assert plan.rates({}) == {"point-query": 100.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workloads": ["points"]}, r"no workload 'points'; there are trivial, cpu"),
        ({"workloads": []}, "workload needs at least one level"),
        ({"hop1": ["udp"]}, "hop1 can't be 'udp'; it can be tcp, unix"),
        ({"workers": ["4x1", "4x1"]}, "workers has a level twice"),
        ({"planted_us": ["0", "0.3"]}, "plant can't be '0.3'; it is whole microseconds"),
        ({"planted_us": ["00", "0"]}, "plant can't be '00'"),
        ({"blocks": 0}, "blocks is 0"),
        ({"seconds_s": 0.0}, "a run of 0 s"),
        ({"seconds_s": float("nan")}, "a run of nan s"),
        ({"seconds_s": float("inf")}, "a run of inf s"),
        ({"warm_up_s": float("inf")}, "after inf s"),
        (
            {"load": Load(rates_per_s=(("point-query", float("inf")), ("cpu", 1.0)))},
            "rate of point-query is inf",
        ),
        ({"load": Load(share=1.0)}, "share is 1"),
        ({"load": Load(rates_per_s=(("cpu", 1.0),))}, "rates are given for cpu; the workloads are point"),
        ({"load": Load(rates_per_s=(("point-query", 0.0), ("cpu", 1.0)))}, "rate of point-query is 0"),
    ],
)
def test_what_makes_no_plan_is_told_with_what_would(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_plan(**options)  # type: ignore[arg-type]
