"""Time that is put into one tier appears in that tier, on real servers.

What was planted is known from outside: a client's pauses, a sleep's length, or until when another request
held what this one needed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reqpath.bench.load import Client, Followed, Observation, Pace, Plan, follow, wait_for_records
from reqpath.collect.join import read_paths
from reqpath.path import RequestPath
from reqpath.servers.database import Database
from reqpath.servers.deployment import Deployment, start_deployment
from reqpath.servers.topology import App, Topology
from reqpath.spool import SpoolReader
from reqpath.tiers import INDEX

from .conftest import Start

pytestmark = pytest.mark.live

#: Of the planted time, in its segment.
_SHARE = 0.95
_MS = 1_000_000


@pytest.fixture(scope="module")
def one_worker(mariadb: Database, planted_app: App) -> Iterator[Deployment]:
    with start_deployment(Topology(planted_app, processes=1), database=mariadb) as deployment:
        yield deployment


@pytest.mark.parametrize("ms", [1, 50])
@pytest.mark.parametrize(
    ("url", "segment"),
    [("/sleep", "flask.view"), ("/sql-sleep", "mysql.query"), ("/template", "flask.template")],
)
def test_time_spent_by_the_app_is_where_it_was_spent(
    url: str, segment: str, ms: int, one_worker: Deployment
) -> None:
    followed = _follow(one_worker, [Plan("planted", "GET", f"{url}?ms={ms}")] * 10)
    assert len(followed) == 10
    for _, path in followed:
        assert _segment(path, segment) >= ms * _MS * _SHARE


def test_a_slow_upload_is_received_by_nginx(one_worker: Deployment) -> None:
    plan = Plan("upload", "POST", "/upload", (b"x" * 10_000,) * 5, send_pause_s=0.04)
    [followed] = _follow(one_worker, [plan])
    assert _segment(followed.path, "nginx.receive") >= 5 * 40 * _MS * _SHARE


def test_behind_a_busy_worker_a_request_is_in_the_queue(one_worker: Deployment, tmp_path: Path) -> None:
    busy, waiting = _send_beside(one_worker, "/sleep", tmp_path)
    assert busy.worker is not None
    assert busy.worker.closed_offset_ns is not None
    assert waiting.worker is not None
    assert waiting.worker.nginx_pass_ns is not None
    # The worker takes the next request when it has closed the one before.
    planted_ns = busy.worker.app_start_ns + busy.worker.closed_offset_ns - waiting.worker.nginx_pass_ns
    assert planted_ns > 100 * _MS
    assert _segment(waiting, "queue") >= planted_ns * _SHARE
    assert _segment(waiting, "uwsgi.gil") < planted_ns * (1 - _SHARE)


def test_beside_a_computing_thread_a_request_waits_for_the_gil(
    mariadb: Database, planted_app: App, start: Start, tmp_path: Path
) -> None:
    with start(Topology(planted_app, processes=1, threads=2), mariadb) as deployment:
        holder, waiting = _send_beside(deployment, "/hold-gil", tmp_path)
    assert holder.worker is not None
    assert holder.worker.view_end_offset_ns is not None
    assert waiting.worker is not None
    assert waiting.worker.parsed_ns is not None
    planted_ns = holder.worker.app_start_ns + holder.worker.view_end_offset_ns - waiting.worker.parsed_ns
    assert planted_ns > 100 * _MS
    assert _segment(waiting, "uwsgi.gil") >= planted_ns * _SHARE
    assert _segment(waiting, "queue") < planted_ns * (1 - _SHARE)


@pytest.mark.parametrize("body", ["", "&streamed"])
@pytest.mark.parametrize(("buffering", "segment"), [("yes", "nginx.send"), ("no", "uwsgi.send")])
def test_a_slow_reader_makes_nginx_wait_or_uwsgi(
    body: str, buffering: str, segment: str, one_worker: Deployment
) -> None:
    """Nginx takes the whole response from uWSGI and waits for the client by itself, unless told otherwise."""
    # More than the kernel holds between nginx and the client, which then reads nothing for a while.
    url = f"/large?mib=16&buffering={buffering}{body}"
    plan = Plan("large", "GET", url, read_pause_s=1.0, read_bytes=32 << 20)
    client = Client((one_worker.host, one_worker.port), receive_buffer_bytes=1 << 16)
    try:
        observation = client.send(plan)
    finally:
        client.close()
    [path] = _read(one_worker, observation)
    assert observation.response_bytes == 16 << 20
    other = {"nginx.send": "uwsgi.send", "uwsgi.send": "nginx.send"}[segment]
    # Until the response's first bytes came, and while the other one filled the buffers, nobody waited.
    planted_ns = 1_000 * _MS - _segment(path, other)
    assert _segment(path, segment) >= planted_ns * _SHARE
    assert _segment(path, other) < 500 * _MS


def _segment(path: RequestPath, name: str) -> int:
    value = path.timing.segments[INDEX[name]]
    assert value is not None, f"{name} is unknown: {path.timing}"
    return value


def _follow(deployment: Deployment, plans: list[Plan]) -> list[Followed]:
    return follow((deployment.host, deployment.port), deployment.spool, plans, Pace(clients=1))


def _send_beside(deployment: Deployment, url: str, tmp_path: Path) -> tuple[RequestPath, RequestPath]:
    """Send a request that keeps its worker busy, and when it does, another; return both paths."""
    marker = tmp_path / "marker"
    marker.write_bytes(b"\0")
    observations: list[Observation] = []

    def send(plan: Plan) -> None:
        client = Client((deployment.host, deployment.port))
        observations.append(client.send(plan))
        client.close()

    thread = threading.Thread(target=send, args=(Plan("busy", "GET", f"{url}?ms=400&marker={marker}"),))
    thread.start()
    try:
        while marker.read_bytes() == b"\0":
            assert thread.is_alive()
            time.sleep(0.001)
        send(Plan("waiting", "GET", "/plain"))
    finally:
        thread.join()
    observations.sort(key=lambda observation: observation.kind)
    busy, waiting = _read(deployment, *observations)
    return busy, waiting


def _read(deployment: Deployment, *observations: Observation) -> list[RequestPath]:
    trace_ids = [observation.trace_id for observation in observations]
    assert wait_for_records(deployment.spool, set(trace_ids), 10.0) == set()
    paths = {path.trace_id: path for path in read_paths(SpoolReader(deployment.spool))}
    return [paths[trace_id] for trace_id in trace_ids]
