"""Both transports on both hops, with processes and threads, on real servers: the path is whole and true."""

from __future__ import annotations

import statistics
from itertools import islice
from typing import get_args

import pytest

from reqpath.bench.load import Followed, Pace, follow, plan_shop_traffic
from reqpath.record import Transport
from reqpath.servers.database import Database
from reqpath.servers.topology import App, Topology
from reqpath.tiers import INDEX, WORKER_SEGMENTS

from .conftest import Start

pytestmark = pytest.mark.live

#: Answered by nginx alone.
_REFUSED = "too large"


@pytest.fixture(params=["mariadb", pytest.param("mysql", marks=pytest.mark.mysql)], scope="module")
def database(request: pytest.FixtureRequest) -> Database:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Database)
    return found


@pytest.mark.parametrize(("processes", "threads"), [(4, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("database_transport", get_args(Transport))
@pytest.mark.parametrize("transport", get_args(Transport))
def test_every_path_is_complete_and_adds_up(  # noqa: PLR0917 - pytest hands in fixtures by name
    transport: Transport,
    database_transport: Transport,
    processes: int,
    threads: int,
    database: Database,
    shop_app: App,
    start: Start,
) -> None:
    topology = Topology(shop_app, transport, database_transport, processes, threads)
    with start(topology, database) as deployment:
        followed = _follow(deployment.port, deployment.spool, seed=2, requests=160)

    assert len(followed) == 160
    assert {f.observation.kind for f in followed} > {"search", "orders", "export", "photo", _REFUSED}
    for observation, path in followed:
        timing = path.timing
        assert observation.status == path.status
        assert timing.missing == ()
        assert timing.skewed == ()
        assert sum(filter(None, timing.segments)) + timing.residual_ns == timing.total_ns
        assert path.nginx is not None
        if observation.kind == _REFUSED:
            assert path.worker is None
            continue
        assert path.worker is not None
        assert path.info is not None
        assert path.worker.transport == transport
        assert path.info.concurrency == ("threads" if threads > 1 else "processes")
        assert (path.info.processes, path.info.threads) == (processes, threads)
        assert {o.transport for o in path.worker.operations} <= {database_transport}
        known = {
            name for name, ns in zip(WORKER_SEGMENTS, path.worker.exclusive_ns, strict=True) if ns is not None
        }
        assert known == set(WORKER_SEGMENTS) - {"wsgi.app"}
    by_kind = {f.observation.kind: f.path for f in followed}
    orders = by_kind["orders"]
    assert orders.worker is not None
    assert len(orders.worker.operations) > 10
    assert orders.route == "GET /customers/<int:customer_id>/orders"
    assert orders.timing.segments[INDEX["mysql.query"]]


def test_what_the_client_waited_is_attributed(mariadb: Database, shop_app: App, start: Start) -> None:
    """One client at a time, on requests long enough that its own way to and from nginx is no 2 % of them."""
    plans = [
        plan
        for plan in islice(plan_shop_traffic(seed=3), 400)
        if plan.kind in ("search", "orders", "export", "photo", "price report")
    ]
    with start(Topology(shop_app), mariadb) as deployment:
        address = deployment.host, deployment.port
        followed = follow(address, deployment.spool, plans, Pace(clients=1))
    shares = [
        f.attributed_share for f in followed if f.observation.end_ns - f.observation.start_ns >= 5_000_000
    ]
    assert len(shares) >= 20
    assert 0.98 <= statistics.median(shares) <= 1.005


def test_stock_stamps_are_complete_too(mariadb: Database, shop_app: App, start: Start) -> None:
    with start(Topology(shop_app, hires=False), mariadb) as deployment:
        assert deployment.resolution_ns == 1_000_000
        followed = _follow(deployment.port, deployment.spool, seed=4, requests=60)
    for _, path in followed:
        assert path.timing.missing == ()
        assert path.timing.skewed == ()
        assert path.timing.resolution_ns == 1_000_000


def _follow(port: int, spool: str, *, seed: int, requests: int) -> list[Followed]:
    plans = list(islice(plan_shop_traffic(seed), 500))
    one_of_each = {plan.kind: plan for plan in plans}.values()
    plans = [*one_of_each, *plans][:requests]
    return follow(("127.0.0.1", port), spool, plans, Pace(clients=4))
