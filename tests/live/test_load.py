"""The load generator on real servers: what its clients wait is what nginx saw, and a little more."""

from __future__ import annotations

import dataclasses
import importlib
import statistics
from collections.abc import Iterator

import pytest

from reqpath.bench.capacity import find_tool, run_tool
from reqpath.bench.generator import SLICE_NS, Outcome, Traffic, generate
from reqpath.bench.load import wait_for_records
from reqpath.bench.observe import read_counters, subtract
from reqpath.collect.join import read_paths
from reqpath.errors import ServerError
from reqpath.servers.database import Database
from reqpath.servers.deployment import Deployment, fill_database, start_deployment, workloads
from reqpath.servers.topology import App, Topology
from reqpath.spool import SpoolReader

pytestmark = pytest.mark.live

_PATHS = ("/trivial", "/cpu", "/query", "/queries", "/sleep", "/mixed")


@pytest.fixture(scope="module")
def app(mariadb: Database, tmp_path_factory: pytest.TempPathFactory) -> App:
    fill_database(Topology(workloads()), mariadb, str(tmp_path_factory.mktemp("setup")))
    return dataclasses.replace(workloads(), setup=())


@pytest.fixture(scope="module")
def deployment(app: App, mariadb: Database) -> Iterator[Deployment]:
    with start_deployment(Topology(app, processes=2, threads=2), database=mariadb) as started:
        yield started


def _send(deployment: Deployment, path: str, rate: float | None = 50.0, **changes: float) -> Outcome:
    address = (deployment.host, deployment.port)
    return generate(
        Traffic(address, path, rate, 0.6, seed=1, connections=int(changes.get("connections", 16)))
    )


@pytest.mark.parametrize("path", _PATHS)
def test_each_request_joins_its_path_and_its_client_waited_longer_than_nginx(
    path: str, deployment: Deployment
) -> None:
    # So few that nginx and the client need not wait for the CPUs on which the workers compute.
    outcome = _send(deployment, path, rate=20.0)
    assert set(outcome.status_codes) == {200}
    rows = {row.trace_id: row for row in outcome.rows}
    assert not wait_for_records(deployment.spool, set(rows), 10.0)
    paths = {found.trace_id: found for found in read_paths(SpoolReader(deployment.spool))}
    beyond_ns = []
    for trace_id, row in rows.items():
        found = paths[trace_id]
        assert found.nginx is not None
        assert found.worker is not None
        assert (found.worker.path, found.timing.missing) == (path, ())
        beyond_ns.append(row.latency_ns - row.lag_ns - found.timing.total_ns)
    # What is left are the ways there and back. nginx's last stamp can be later than the client's reading.
    assert statistics.median(beyond_ns) > -1_000_000
    # Where a processor was busy the client waited for one as well: not in each of the requests.
    assert min(map(abs, beyond_ns)) < 1_000_000


@pytest.mark.parametrize("connection", ["pooled", "per-request"])
def test_a_connection_is_the_threads_or_the_requests(connection: str, app: App, mariadb: Database) -> None:
    topology = Topology(app, processes=1, environment=(("WORKLOADS_CONNECTION", connection),))
    with start_deployment(topology, database=mariadb) as started:
        outcome = _send(started, "/queries")
        traces = {row.trace_id for row in outcome.rows}
        assert not wait_for_records(started.spool, traces, 10.0)
        connects = [
            sum(operation.kind == "connect" for operation in found.worker.operations)
            for found in read_paths(SpoolReader(started.spool))
            if found.worker is not None
        ]
    assert len(connects) == len(traces)
    assert sum(connects) == (len(traces) if connection == "per-request" else 1)


@pytest.mark.parametrize("name", ["wrk", "h2load"])
def test_a_closed_loop_is_what_other_programs_make_of_it(name: str, deployment: Deployment) -> None:
    try:
        tool = find_tool(name)  # type: ignore[arg-type]  # such are its names
    except ServerError as error:
        pytest.skip(str(error))
    assert tool.version
    theirs = run_tool(tool, f"{deployment.url}/trivial", concurrency=2, seconds_s=1.0)
    ours = _send(deployment, "/trivial", rate=None, connections=2)
    assert theirs.failures == 0
    assert theirs.requests > 0
    assert set(ours.status_codes) == {200}
    # How near they are is benchmarks/load.py's to tell; here it is the same quantity.
    rate = len(ours.status_codes) / (ours.elapsed_ns / 1e9)
    assert 0.2 < rate / theirs.requests_per_s < 5


def test_all_send_the_same_rate_and_ours_at_the_instants_of_h2load(deployment: Deployment) -> None:
    try:
        find_tool("h2load")
    except ServerError as error:
        pytest.skip(str(error))
    # A program, in no package.
    check = importlib.import_module("benchmarks.load")
    _, loads = check.measure_open(deployment, "/trivial", 200.0, 1, 1.0)
    theirs, same, _poisson = loads
    assert [one.failures for one in loads] == [0, 0, 0]
    # A busy machine puts some beyond the ends of the second.
    assert theirs.requests == pytest.approx(200, abs=10)
    assert same.requests == theirs.requests
    for one in loads:
        assert one.nginx_rate_per_s == pytest.approx(one.requests, abs=10)
        assert one.nginx_mean_us < one.mean_us
        assert list(one.percentiles_us) == sorted(one.percentiles_us)


def test_an_overload_is_seen_as_refusals_and_requests_under_way(app: App, mariadb: Database) -> None:
    with start_deployment(Topology(app, processes=1), database=mariadb) as started:
        before = read_counters(started.nginx.log_path, {"nginx": started.port})
        outcome = _send(started, "/sleep", rate=1_500.0, connections=200)
        observed = subtract(before, read_counters(started.nginx.log_path, {"nginx": started.port}))
    statuses = outcome.status_codes
    # One worker can do a hundred in a second; uWSGI's queue holds a hundred more.
    assert set(statuses) == {200, 502}
    assert observed.listen_queues["uwsgi"] >= statuses.count(502)
    assert observed.listen_overflows == sum(observed.listen_queues.values())
    assert max(outcome.in_flight) > 90
    assert len(outcome.in_flight) >= 600_000_000 // SLICE_NS
