"""Traffic for a while, the backend stopped in between, the collector killed once: each path arrives once.

Ten seconds by default; `REQPATH_SOAK_S=60` is the minute, with 20 s without the backend.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from reqpath.bench.load import Observation, Pace, drive, plan_shop_traffic
from reqpath.collect.join import read_paths
from reqpath.collect.keep import Keeper
from reqpath.collect.tail import Tail
from reqpath.servers.database import Database
from reqpath.servers.process import wait_until
from reqpath.servers.topology import App, Topology
from reqpath.spool import SpoolReader
from tests.collect.backend import Backend, start_backend

from .conftest import Start

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

SECONDS_S = float(os.environ.get("REQPATH_SOAK_S", "10"))
#: One without a partner, a line that the killed collector had in its hands, is waited for twice as long.
DEADLINE_S = 60.0
_MULE = re.compile(r"spawned uWSGI mule 1 \(pid: (\d+)\)")


def test_each_path_arrives_once_through_an_outage_and_a_kill(
    mariadb: Database, shop_app: App, start: Start
) -> None:
    with start_backend() as backend:
        topology = Topology(shop_app, environment=(("REQPATH_OTLP", backend.url), ("REQPATH_KEEP", "all")))
        with start(topology, mariadb) as deployment:
            observations: list[Observation] = []
            traffic = threading.Thread(
                target=drive,
                args=(
                    (deployment.host, deployment.port),
                    plan_shop_traffic(seed=5),
                    # About 200 requests a second.
                    Pace(clients=16, seconds_s=SECONDS_S, think_s=0.045),
                    observations,
                ),
            )
            traffic.start()
            try:
                traffic.join(SECONDS_S / 4)
                backend.stop()
                traffic.join(SECONDS_S / 3)
                before = len(backend.bodies)
                backend.start()
                wait_until(lambda: len(backend.bodies) > before, DEADLINE_S, deployment.uwsgi)
                _kill_collector(backend, deployment.uwsgi.log_path, deployment.spool)
            finally:
                traffic.join()
            sent = {observation.trace_id for observation in observations}
            wait_until(lambda: backend.arrivals().keys() >= sent, DEADLINE_S, deployment.uwsgi)
            paths = Counter(path.trace_id for path in read_paths(SpoolReader(deployment.spool)))
            log = Path(deployment.uwsgi.log_path).read_text(errors="replace")
    assert len(sent) == len(observations) > 100
    assert paths == Counter(sent)
    assert backend.arrivals() == paths
    spans = Counter((span.trace_id, span.span_id) for _, span in backend.spans)
    assert set(spans.values()) == {1}
    assert len(_MULE.findall(log)) == 2
    # None of a short outage, which is over within the exporter's own tries.
    assert log.count("can't export to") <= 1


def _kill_collector(backend: Backend, log_path: str, spool: str) -> None:
    """Kill it between two exports: what the backend had taken and it not yet noted would come twice."""
    (pid,) = _MULE.findall(Path(log_path).read_text(errors="replace"))

    def kill() -> None:
        deadline_s = time.monotonic() + 10
        while _list_unsent(spool) & backend.arrivals().keys():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        os.kill(int(pid), signal.SIGKILL)
        # Its connections are closed when it is gone, and the backend takes nothing more by them.
        while _is_running(pid):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    backend.between_requests(kill)


def _is_running(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _list_unsent(spool: str) -> set[str]:
    """Return the paths that a collector would send that began now."""
    tail = Tail(spool, Keeper(everything=True), wait_s=0, expect_nginx=True)
    tail.finish()
    tail.end()
    unsent: set[str] = set()
    while batch := tail.take():
        unsent.update(kept.path.trace_id for kept in batch)
    return unsent
