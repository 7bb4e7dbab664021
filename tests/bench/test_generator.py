"""The open load: planned beforehand, timed from the plan, and no request lost sight of."""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import math
import os
import socketserver
import statistics
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.bench.generator import (
    BROKEN,
    DROPPED,
    SLICE_NS,
    TIMED_OUT,
    Outcome,
    Response,
    Traffic,
    check_traffic,
    generate,
    plan_arrivals,
)
from reqpath.errors import ConfigurationError, ServerError

_ANSWERS = {
    "/": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "/failing": b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n",
    "/chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
    "/closing": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
    "/unbounded": b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    "/large": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000),
    "/half": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
    "/double": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc",
    "/other": b"SSH-2.0-other\r\n\r\n",
}


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while head := self._read_head():
            path = head.split(" ", 2)[1]
            self.server.heads.append(head)  # type: ignore[attr-defined]  # ours, below
            if path == "/silent":
                continue
            if path == "/hung":
                self.server.release.wait()  # type: ignore[attr-defined]
                path = "/"
            self.wfile.write(_ANSWERS[path])
            if path in ("/closing", "/unbounded", "/half"):
                return

    def _read_head(self) -> str:
        lines = []
        with contextlib.suppress(OSError):
            while (line := self.rfile.readline()) not in (b"", b"\r\n"):
                lines.append(line.decode("ascii"))
        return "".join(lines)


class _Tcp(socketserver.ThreadingTCPServer):
    request_queue_size = 128
    block_on_close = True
    #: All that were received.
    heads: list[str]
    release: threading.Event


class _Unix(socketserver.ThreadingUnixStreamServer):
    request_queue_size = 128
    heads: list[str]
    release: threading.Event


@contextlib.contextmanager
def _serve(server: _Tcp | _Unix) -> Iterator[_Tcp | _Unix]:
    server.heads, server.release = [], threading.Event()
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.release.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[_Tcp]:
    with _serve(_Tcp(("127.0.0.1", 0), _Handler)) as started:
        assert isinstance(started, _Tcp)
        yield started


def _send(server: _Tcp, path: str = "/", **changes: Any) -> Outcome:
    address = ("127.0.0.1", server.server_address[1])
    # As many connections as there are requests: a server that stands still for a moment drops none.
    traffic = {"rate": 200.0, "seconds_s": 0.3, "seed": 1, "connections": 64, "timeout_s": 5.0} | changes
    return generate(Traffic(address=address, path=path, **traffic))


class TestArrivals:
    @given(st.floats(0.5, 5_000), st.floats(0.001, 2), st.integers(0, 2**32 - 1))
    def test_are_the_same_for_a_seed_ascending_and_within_the_run(
        self, rate: float, seconds_s: float, seed: int
    ) -> None:
        arrivals = plan_arrivals(rate, seconds_s, seed)
        assert arrivals == plan_arrivals(rate, seconds_s, seed)
        assert list(arrivals) == sorted(arrivals)
        assert all(0 <= at_ns < seconds_s * 1e9 for at_ns in arrivals)

    def test_are_a_poisson_process(self) -> None:
        arrivals = plan_arrivals(1_000.0, 20.0, seed=3)
        assert len(arrivals) == pytest.approx(20_000, abs=5 * math.sqrt(20_000))
        gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
        # Exponential: the deviation is the mean, and 1/e of the gaps is longer than that.
        mean_ns = statistics.fmean(gaps)
        assert statistics.stdev(gaps) == pytest.approx(mean_ns, rel=0.05)
        assert sum(gap > mean_ns for gap in gaps) / len(gaps) == pytest.approx(1 / math.e, abs=0.02)
        # Counts in slices of time: the variance is the mean.
        counts = Counter(at_ns // 10_000_000 for at_ns in arrivals)
        per_slice = [counts[number] for number in range(2_000)]
        assert statistics.variance(per_slice) == pytest.approx(statistics.fmean(per_slice), rel=0.15)


class _File(io.BytesIO):
    def makefile(self, _mode: str) -> io.BytesIO:
        return self


@st.composite
def _responses(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A response as bytes, and whether only the connection's end is its own."""
    body = draw(st.binary(max_size=300))
    headers = draw(st.sampled_from(([], ["X-Length: 7"], ["Server: nginx/1.22", "Connection: keep-alive"])))
    kind = draw(st.sampled_from(("length", "chunked", "end", "none")))
    name = draw(st.sampled_from((str.lower, str.upper, str.title)))
    status = draw(st.sampled_from((200, 201, 404, 502)))
    if kind == "none":
        status, body = draw(st.sampled_from((204, 304))), b""
    if kind == "length":
        headers = [*headers, f"{name('content-length')}:{draw(st.sampled_from(('', ' ')))}{len(body)}"]
    if kind == "chunked":
        headers = [*headers, f"{name('transfer-encoding')}: chunked"]
        sizes = draw(st.lists(st.integers(1, 100)))
        file = io.BytesIO(body)
        chunks = [file.read(size) for size in sizes] + [file.read()]
        written = [
            b"%x%s\r\n%s\r\n" % (len(c), draw(st.sampled_from((b"", b";a=b"))), c) for c in chunks if c
        ]
        body = b"".join([*written, b"0\r\n", draw(st.sampled_from((b"", b"Checked: yes\r\n"))), b"\r\n"])
    head = "\r\n".join([f"HTTP/1.1 {status} Some", *headers, "", ""]).encode("ascii")
    return head + body, kind == "end"


class TestResponse:
    @given(_responses(), st.lists(st.integers(1, 400), max_size=20))
    def test_ends_with_its_last_byte_however_it_is_cut(
        self, written: tuple[bytes, bool], cuts: list[int]
    ) -> None:
        data, until_the_end = written
        whole = http.client.HTTPResponse(_File(data))  # type: ignore[arg-type]  # all of a socket that it needs
        whole.begin()
        edges = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
        response = Response()
        ends = [response.feed(data[begin:end]) for begin, end in itertools.pairwise(edges)]
        assert ends == [False] * (len(ends) - 1) + [not until_the_end]
        assert (response.status, response.ends_with_connection) == (whole.status, until_the_end)
        assert not until_the_end or response.closes

    @given(_responses().filter(lambda written: not written[1]), st.binary(min_size=1, max_size=9))
    def test_with_more_behind_it_is_an_error(self, written: tuple[bytes, bool], more: bytes) -> None:
        with pytest.raises(ValueError, match="more than one"):
            Response().feed(written[0] + more)

    @given(st.binary(max_size=200))
    def test_of_no_http_is_refused_or_waited_for(self, data: bytes) -> None:
        with contextlib.suppress(ValueError):
            assert not Response().feed(data)


def test_each_arrival_is_a_row_and_each_row_was_received_with_its_trace(server: _Tcp) -> None:
    outcome = _send(server)
    assert list(outcome.planned_offsets_ns) == list(plan_arrivals(200.0, 0.3, 1))
    assert set(outcome.status_codes) == {200}
    rows = outcome.rows
    assert all(0 <= row.lag_ns < row.latency_ns for row in rows)
    assert [row.planned_ns - outcome.start_ns for row in rows] == list(outcome.planned_offsets_ns)
    received = [head.partition("traceparent: 00-")[2].split("-")[0] for head in server.heads]
    assert len(set(received)) == len(rows)
    # Two of them may be received in the other order.
    assert sorted(received) == sorted(row.trace_id for row in rows)


def test_instants_that_are_given_are_kept_to(server: _Tcp) -> None:
    # Two at one instant too.
    instants_ns = (0, 50_000_000, 50_000_000, 120_000_000)
    outcome = _send(server, arrivals_ns=instants_ns)
    assert tuple(outcome.planned_offsets_ns) == instants_ns
    assert set(outcome.status_codes) == {200}


def test_over_a_unix_socket_too() -> None:
    path = f"/tmp/reqpath-test-{os.getpid()}.sock"
    try:
        with _serve(_Unix(path, _Handler)) as server:
            outcome = generate(Traffic(path, "/", 200.0, 0.2, seed=2, connections=64))
            assert "Host: localhost\r\n" in server.heads[0]
    finally:
        os.unlink(path)
    assert set(outcome.status_codes) == {200}


@pytest.mark.parametrize("path", ["/chunked", "/closing", "/unbounded", "/large"])
def test_responses_of_every_form_are_read_to_their_end(path: str, server: _Tcp) -> None:
    outcome = _send(server, path, rate=100.0)
    assert set(outcome.status_codes) == {200}
    assert len(outcome.status_codes) == len(server.heads)


@pytest.mark.parametrize(
    ("path", "status"), [("/failing", 500), ("/half", BROKEN), ("/double", BROKEN), ("/other", BROKEN)]
)
def test_what_fails_is_a_row(path: str, status: int, server: _Tcp) -> None:
    outcome = _send(server, path)
    assert set(outcome.status_codes) == {status}
    assert len(outcome.rows) == len(plan_arrivals(200.0, 0.3, 1))
    assert all(row.is_failure and row.latency_ns > 0 for row in outcome.rows)


def test_what_is_never_answered_times_out(server: _Tcp) -> None:
    outcome = _send(server, "/silent", timeout_s=0.2, rate=30.0, connections=64)
    assert set(outcome.status_codes) == {TIMED_OUT}
    assert all(row.latency_ns >= 200_000_000 for row in outcome.rows)


def test_arrivals_beyond_the_connections_are_dropped_and_counted(server: _Tcp) -> None:
    outcome = _send(server, "/silent", timeout_s=5.0, seconds_s=0.2, connections=3, rate=100.0)
    arrivals = len(plan_arrivals(100.0, 0.2, 1))
    assert Counter(outcome.status_codes) == {TIMED_OUT: 3, DROPPED: arrivals - 3}
    dropped = [row for row in outcome.rows if row.status == DROPPED]
    assert all(row.is_failure and (row.lag_ns, row.latency_ns) == (0, 0) for row in dropped)


def test_a_server_that_is_not_there_is_a_failure_each_time() -> None:
    with _Tcp(("127.0.0.1", 0), _Handler) as server:
        pass
    assert set(_send(server).status_codes) == {BROKEN}
    assert set(_send(server, rate=None).status_codes) == {BROKEN}


def test_requests_under_way_are_the_arrival_rate_times_their_time(server: _Tcp) -> None:
    """What was under way, counted as it changed, is what the rows say of it."""
    outcome = _send(server, "/large", rate=300.0, seconds_s=0.8)
    covered_ns = len(outcome.in_flight) * SLICE_NS
    by_rows = 0
    for offset_ns, lag_ns, latency_ns in zip(
        outcome.planned_offsets_ns, outcome.lags_ns, outcome.latencies_ns, strict=True
    ):
        by_rows += max(0, min(covered_ns, offset_ns + latency_ns) - min(covered_ns, offset_ns + lag_ns))
    assert sum(outcome.in_flight) * SLICE_NS == pytest.approx(by_rows, rel=0.05)


def test_a_closed_load_keeps_each_connection_busy(server: _Tcp) -> None:
    outcome = _send(server, rate=None, connections=3)
    assert set(outcome.status_codes) == {200}
    assert max(outcome.in_flight) <= 3
    assert statistics.fmean(outcome.in_flight) > 2
    assert not outcome.realtime


def test_an_exception_of_the_callers_ends_the_process(server: _Tcp) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    traffic = Traffic(("127.0.0.1", server.server_address[1]), "/", 50.0, 60.0, seed=1)
    with pytest.raises(KeyboardInterrupt):
        generate(traffic, while_running=interrupt)
    assert children.read_text() == before


class TestCheck:
    CHANGES: ClassVar[list[dict[str, Any]]] = [
        {"connections": 0},
        {"connections": 1_001},
        {"rate": 0.0},
        {"rate": math.nan},
        {"seconds_s": -1.0},
        {"timeout_s": 0.0},
        {"path": "no-slash"},
        {"path": "/a b"},
        {"path": "/a\r\nHost: x"},
        {"path": "/" + "a" * 5_000},
        {"headers": (("Cookie", "a\nb"),)},
        {"arrivals_ns": (0, 1_000_000_000)},
        {"arrivals_ns": (-1, 5)},
        {"arrivals_ns": (0, 3, 2, 4)},
        {"arrivals_ns": (0,), "rate": None},
    ]

    @pytest.mark.parametrize("change", CHANGES, ids=str)
    def test_what_can_not_be_sent_is_refused_before_anything_is(self, change: dict[str, Any]) -> None:
        arguments: dict[str, Any] = {"rate": 1.0, "seconds_s": 1.0, "path": "/"} | change
        with pytest.raises(ConfigurationError):
            check_traffic(Traffic(address=("127.0.0.1", 1), seed=1, **arguments))


def test_a_process_that_fails_says_why() -> None:
    traffic = Traffic(("no such host", 80), "/", 50.0, 0.1, seed=1, cpus=(100_000,))
    with pytest.raises(ServerError, match="the load generator ended"):
        generate(traffic)
