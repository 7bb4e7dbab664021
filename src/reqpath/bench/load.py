"""Drives traffic at a server and notes what each client waited.

The layer below is a socket and `http.client`'s reader of responses. Every request carries a `traceparent` of
its own, or its response nginx's `traceresponse`, so that what the client saw and the path that reqpath
recorded can be joined::

    observations: list[Observation] = []
    drive(("127.0.0.1", 8080), plan_shop_traffic(seed=1), Pace(clients=4, seconds_s=10), observations)
    observations[0]   →  Observation(trace_id='4bf9…', kind='search', start_ns=…, end_ns=…, status=200)
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote_plus

from reqpath.collect.join import read_paths
from reqpath.errors import ServerError
from reqpath.path import RequestPath
from reqpath.record import NginxRecord
from reqpath.spool import SpoolReader

_TIMEOUT_S = 60.0
_POLL_S = 0.05


class Plan(NamedTuple):
    """A request to be sent."""

    #: What it stands for in the mix.
    kind: str
    method: str
    path: str
    #: The body, in the pieces in which it is sent.
    body: tuple[bytes, ...] = ()
    content_type: str = ""
    #: Pause before each piece of the body: a client with a slow line.
    send_pause_s: float = 0.0
    #: Pause before each piece of the response is read: a client that is slow itself.
    read_pause_s: float = 0.0
    read_bytes: int = 1 << 16
    #: Claimed in the place of the body's true length; the body is then never sent.
    claimed_bytes: int | None = None


class Observation(NamedTuple):
    """What the client saw of one request; wall clock, ns since the epoch, good to a few tens of µs.

    From before the first byte was sent until after the last was read; without connecting, without parsing.
    """

    #: Empty when neither side began a trace that the client knows of.
    trace_id: str
    kind: str
    start_ns: int
    end_ns: int
    #: None when the connection broke.
    status: int | None
    response_bytes: int = 0


class Followed(NamedTuple):
    """A request as the client saw it and as it was recorded."""

    observation: Observation
    path: RequestPath

    @property
    def attributed_share(self) -> float:
        """The known segments, over what the client waited; above 1 means that time was counted twice."""
        timing = self.path.timing
        attributed_ns = sum(filter(None, timing.segments))
        return attributed_ns / max(1, self.observation.end_ns - self.observation.start_ns)


@dataclass(frozen=True, slots=True)
class Pace:
    """How much traffic: so many clients, each with one request at a time over a connection that it keeps."""

    clients: int = 4
    #: Ends the traffic; None: only `requests` does.
    seconds_s: float | None = None
    #: Requests in all; None: as many as there are plans.
    requests: int | None = None
    #: Mean pause of a client between two requests, exponentially distributed; 0 is a closed loop.
    think_s: float = 0.0
    seed: int = 1
    #: False: as browsers do, the clients leave it to nginx to begin the traces, and are told of them.
    traced: bool = True


class _Arrivals(io.RawIOBase):
    """A connection as a file that knows when bytes last came; parsing them takes longer than the way here."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.last_ns = 0

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, 1 << 16)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._connection.recv_into(buffer)
        self.last_ns = time.perf_counter_ns()
        return count


class Client:
    """One client with one connection, kept open from request to request."""

    def __init__(
        self, address: tuple[str, int], *, receive_buffer_bytes: int | None = None, traced: bool = True
    ) -> None:
        """`receive_buffer_bytes` bounds what the kernel takes for a client that does not read.

        `traced` False leaves out the traceparent.
        """
        self._address = address
        self._traced = traced
        self._receive_buffer_bytes = receive_buffer_bytes
        self._socket: socket.socket | None = None

    def send(self, plan: Plan) -> Observation:
        """Send a request and read its response to the end. A connection that breaks is an observation too."""
        trace_id = os.urandom(16).hex() if self._traced else ""
        head = self._build_head(plan, f"00-{trace_id}-{os.urandom(8).hex()}-01" if trace_id else "")
        received = 0
        status: int | None = None
        try:
            connection = self._connect()
            start_ns = time.time_ns()
            begin_ns = time.perf_counter_ns()
            # Small bodies go in one packet with their head, as any client's do.
            if plan.send_pause_s or plan.claimed_bytes is not None:
                connection.sendall(head)
                for piece in plan.body:
                    time.sleep(plan.send_pause_s)
                    connection.sendall(piece)
            else:
                connection.sendall(b"".join((head, *plan.body)))
            arrivals = _Arrivals(connection)
            response = http.client.HTTPResponse(arrivals, method=plan.method)  # type: ignore[arg-type]
            with contextlib.closing(response):
                response.begin()
                status = response.status
                trace_id = trace_id or _read_trace_id(response.getheader("traceresponse", ""))
                received = _read_body(response, plan)
                must_close = response.will_close
            end_ns = start_ns + arrivals.last_ns - begin_ns
        except (OSError, http.client.HTTPException):
            # A refused connection has no start; it is told as an instant.
            if self._socket is None:
                start_ns, begin_ns = time.time_ns(), time.perf_counter_ns()
            end_ns = start_ns + time.perf_counter_ns() - begin_ns
            must_close = True
        if must_close:
            self.close()
        return Observation(trace_id, plan.kind, start_ns, end_ns, status, received)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        if self._socket is None:
            fresh = socket.socket()
            try:
                if self._receive_buffer_bytes is not None:
                    # Before the connection is made, for the window that is announced in the handshake.
                    fresh.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer_bytes)
                fresh.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                fresh.settimeout(_TIMEOUT_S)
                fresh.connect(self._address)
            except OSError:
                fresh.close()
                raise
            self._socket = fresh
        return self._socket

    def _build_head(self, plan: Plan, traceparent: str) -> bytes:
        lines = [
            f"{plan.method} {plan.path} HTTP/1.1",
            f"Host: {self._address[0]}:{self._address[1]}",
        ]
        if traceparent:
            lines.append(f"traceparent: {traceparent}")
        length = sum(map(len, plan.body)) if plan.claimed_bytes is None else plan.claimed_bytes
        if length or plan.method == "POST":
            lines.append(f"Content-Length: {length}")
        if plan.content_type:
            lines.append(f"Content-Type: {plan.content_type}")
        return "\r\n".join([*lines, "", ""]).encode("ascii")


def drive(
    address: tuple[str, int],
    plans: Iterable[Plan],
    pace: Pace,
    observations: list[Observation],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Send `plans` at `pace` and append to `observations` what was seen, in the order of the ends.

    Ctrl-C, or any exception in the calling thread, ends the traffic: the requests under way are finished,
    then it is raised again. `on_progress` gets the number of requests so far, some times a second.
    """
    source = _Source(plans, pace)
    threads = [
        threading.Thread(
            target=_run_client,
            args=(Client(address, traced=pace.traced), source, pace.seed * 1_000 + number, observations),
            name=f"client-{number}",
        )
        for number in range(pace.clients)
    ]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(_POLL_S)
            if on_progress is not None:
                on_progress(len(observations))
    finally:
        source.stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def wait_for_records(spool: str, trace_ids: Set[str], deadline_s: float) -> set[str]:
    """Wait until each of these requests is in the spool, by nginx and by the worker; return the others.

    A worker closes its record after nginx has answered, so either may be the last. The first record makes
    the spool.
    """
    missing = set(trace_ids)
    by_nginx: set[str] = set()
    by_worker: set[str] = set()
    give_up_s = time.monotonic() + deadline_s
    reader: SpoolReader | None = None
    while True:
        if reader is None and os.path.isdir(spool):
            reader = SpoolReader(spool)
        for _info, records in reader.read() if reader is not None else ():
            for record in records:
                if not isinstance(record, NginxRecord):
                    by_worker.add(record.trace_id)
                else:
                    by_nginx.add(record.trace_id)
                    if not record.attempts:
                        by_worker.add(record.trace_id)
        missing -= by_nginx & by_worker
        if not missing or time.monotonic() > give_up_s:
            return missing
        time.sleep(_POLL_S)


def follow(
    address: tuple[str, int], spool: str, plans: Iterable[Plan], pace: Pace, *, deadline_s: float = 10.0
) -> list[Followed]:
    """Drive traffic and return what each client saw, beside the path that was recorded of it.

    Raises: ServerError when a request is not in the spool `deadline_s` after the traffic.
    """
    observations: list[Observation] = []
    drive(address, plans, pace, observations)
    missing = wait_for_records(spool, {o.trace_id for o in observations}, deadline_s)
    if missing:
        kinds = ", ".join(sorted({o.kind for o in observations if o.trace_id in missing}))
        raise ServerError(f"{len(missing)} of {len(observations)} requests are not in the spool: {kinds}")
    paths = {path.trace_id: path for path in read_paths(SpoolReader(spool))}
    return [Followed(observation, paths[observation.trace_id]) for observation in observations]


def plan_shop_traffic(seed: int) -> Iterator[Plan]:
    """Yield what the customers of examples/shop do, without end, the same for the same seed."""
    dice = _make_dice(seed)
    makers, weights = zip(*_SHOP_MIX, strict=True)
    while True:
        yield dice.choices(makers, weights)[0](dice)


class _Source:
    """Hands out plans to the clients until one of the pace's bounds is reached."""

    def __init__(self, plans: Iterable[Plan], pace: Pace) -> None:
        self.stop = threading.Event()
        self.think_s = pace.think_s
        self._plans = iter(plans)
        self._left = pace.requests
        self._until_s = None if pace.seconds_s is None else time.monotonic() + pace.seconds_s
        # Of the clients alone: a generator can't be stepped by two threads at once.
        self._lock = threading.Lock()

    def take(self) -> Plan | None:
        with self._lock:
            if self._left == 0 or (self._until_s is not None and time.monotonic() >= self._until_s):
                return None
            if self._left is not None:
                self._left -= 1
            return next(self._plans, None)


def _run_client(client: Client, source: _Source, seed: int, observations: list[Observation]) -> None:
    dice = _make_dice(seed)
    with contextlib.closing(client):
        while not source.stop.is_set():
            plan = source.take()
            if plan is None:
                return
            observations.append(client.send(plan))
            if source.think_s:
                source.stop.wait(dice.expovariate(1 / source.think_s))


def _read_trace_id(traceresponse: str) -> str:
    """Return the trace id; empty when there is none. Source: W3C Trace Context Level 2, a draft."""
    parts = traceresponse.split("-")
    return parts[1] if len(parts) == 4 else ""


def _make_dice(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - traffic is to be the same each time, not secret


def _read_body(response: http.client.HTTPResponse, plan: Plan) -> int:
    received = 0
    while not response.isclosed():
        if plan.read_pause_s:
            time.sleep(plan.read_pause_s)
        received += len(response.read(plan.read_bytes))
    return received


def _plan_health(_dice: random.Random) -> Plan:
    return Plan("health", "GET", "/health")


def _plan_catalogue(_dice: random.Random) -> Plan:
    return Plan("catalogue", "GET", "/")


def _plan_product(dice: random.Random) -> Plan:
    return Plan("product", "GET", f"/products/{dice.randint(1, 240)}")


def _plan_search(dice: random.Random) -> Plan:
    words = dice.choice(("honey", "pine smoke", "cocoa", "lemon cake", "seaweed", "plum"))
    return Plan("search", "GET", f"/search?q={quote_plus(words)}")


def _plan_orders(dice: random.Random) -> Plan:
    return Plan("orders", "GET", f"/customers/{dice.randint(1, 400)}/orders")


def _plan_price_report(_dice: random.Random) -> Plan:
    return Plan("price report", "GET", "/reports/prices")


def _plan_export(dice: random.Random) -> Plan:
    return Plan("export", "GET", "/orders.csv", read_pause_s=dice.choice((0.0, 0.0, 0.02)))


def _plan_review(dice: random.Random) -> Plan:
    body = f"author=Ada+Ito&stars={dice.randint(2, 5)}&body=Tastes+of+rain."
    return Plan(
        "review",
        "POST",
        f"/products/{dice.randint(1, 240)}/reviews",
        (body.encode("ascii"),),
        "application/x-www-form-urlencoded",
    )


def _plan_photo(dice: random.Random) -> Plan:
    """A photo of 240 kB, every other one over a slow line."""
    boundary = "f4b1c9e07d3a"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="photo"; filename="tea.jpg"\r\n\r\n'
    pieces = (
        head.encode("ascii"),
        *(dice.randbytes(40_000) for _ in range(6)),
        f"\r\n--{boundary}--\r\n".encode(),
    )
    return Plan(
        "photo",
        "POST",
        f"/products/{dice.randint(1, 240)}/photos",
        pieces,
        f"multipart/form-data; boundary={boundary}",
        send_pause_s=dice.choice((0.0, 0.02)),
    )


def _plan_price_per_cup(dice: random.Random) -> Plan:
    """Fails for what no tea is made of: about one in six."""
    return Plan("price per cup", "GET", f"/products/{dice.randint(1, 240)}/price-per-cup")


def _plan_missing(dice: random.Random) -> Plan:
    return Plan("missing", "GET", f"/products/{dice.randint(10_000, 20_000)}")


def _plan_too_large(dice: random.Random) -> Plan:
    """A video in the place of a photo: nginx refuses it by its length."""
    return Plan("too large", "POST", f"/products/{dice.randint(1, 240)}/photos", claimed_bytes=900 << 20)


#: What the shop's customers do, and how often, in hundredths.
_SHOP_MIX: tuple[tuple[Callable[[random.Random], Plan], int], ...] = (
    (_plan_product, 28),
    (_plan_catalogue, 16),
    (_plan_health, 14),
    (_plan_search, 9),
    (_plan_orders, 9),
    (_plan_price_per_cup, 6),
    (_plan_price_report, 4),
    (_plan_review, 4),
    (_plan_missing, 4),
    (_plan_photo, 3),
    (_plan_export, 2),
    (_plan_too_large, 1),
)
