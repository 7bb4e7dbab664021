"""The traffic: the same for the same seed, bounded, and told from the client's side."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import islice
from pathlib import Path

import pytest

from reqpath.bench.load import (
    Client,
    Observation,
    Pace,
    Plan,
    drive,
    plan_shop_traffic,
    wait_for_records,
)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/broken":
            self.close_connection = True
            return
        sent = self.headers["traceparent"]
        body = (sent or "").encode()
        self.send_response(200)
        if sent is None:
            # As nginx does that begins the trace.
            self.send_header("traceresponse", f"00-{'ab' * 16}-{'cd' * 8}-01")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

    def log_message(self, *_arguments: object) -> None:
        pass


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    pass


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield ("127.0.0.1", server.server_address[1])
        server.shutdown()
        thread.join()


def test_a_seed_makes_the_same_traffic() -> None:
    assert list(islice(plan_shop_traffic(5), 50)) == list(islice(plan_shop_traffic(5), 50))
    assert list(islice(plan_shop_traffic(5), 50)) != list(islice(plan_shop_traffic(6), 50))


def test_traffic_has_everything_in_it() -> None:
    kinds = {plan.kind for plan in islice(plan_shop_traffic(1), 1_000)}
    assert len(kinds) == 12


def test_requests_are_bounded_by_number_and_each_has_its_own_trace(address: tuple[str, int]) -> None:
    observations: list[Observation] = []
    drive(address, iter([Plan("a", "GET", "/")] * 100), Pace(clients=3, requests=20), observations)
    assert [observation.status for observation in observations] == [200] * 20
    assert len({observation.trace_id for observation in observations}) == 20
    assert all(observation.start_ns <= observation.end_ns for observation in observations)


def test_traffic_ends_with_its_plans(address: tuple[str, int]) -> None:
    observations: list[Observation] = []
    drive(address, [Plan("a", "POST", "/", (b"one", b"two"))] * 3, Pace(clients=2), observations)
    assert [(o.status, o.response_bytes) for o in observations] == [(201, 6)] * 3


def test_a_client_without_traces_of_its_own_is_told_of_the_servers(address: tuple[str, int]) -> None:
    observations: list[Observation] = []
    plans = [Plan("a", "GET", "/"), Plan("a", "GET", "/broken"), Plan("a", "POST", "/", (b"one",))]
    drive(address, plans, Pace(clients=1, traced=False), observations)
    assert [(o.trace_id, o.response_bytes) for o in observations] == [("ab" * 16, 0), ("", 0), ("", 3)]


def test_a_broken_connection_is_an_observation_and_the_next_request_connects_anew(
    address: tuple[str, int],
) -> None:
    client = Client(address)
    statuses = [client.send(Plan("a", "GET", path)).status for path in ("/", "/broken", "/")]
    client.close()
    assert statuses == [200, None, 200]


def test_a_refused_connection_is_an_observation() -> None:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        port = server.server_address[1]
    observation = Client(("127.0.0.1", port)).send(Plan("a", "GET", "/"))
    assert observation.status is None


def test_an_exception_in_the_caller_ends_the_traffic(address: tuple[str, int]) -> None:
    observations: list[Observation] = []

    def interrupt(_count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(address, plan_shop_traffic(1), Pace(clients=2), observations, on_progress=interrupt)
    assert threading.active_count() < 10


def test_a_spool_that_no_record_has_made_yet_lacks_all_requests(tmp_path: Path) -> None:
    assert wait_for_records(str(tmp_path / "spool"), {"a", "b"}, 0.0) == {"a", "b"}
