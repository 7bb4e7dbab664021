"""Sends requests at planned instants, whether or not earlier ones were answered, and notes each one's time.

The load is open: arrivals are a Poisson process, made beforehand from a seed, or given; a slow server gets
no fewer. A latency runs from the *planned* instant, so a late send makes it longer and not shorter; how late
is noted too. Each request has a `traceparent` of its own, by which the client's times join the recorded path.
`rate` None makes the load closed: so many connections, each with one request at a time.

The generator is a process of its own, `python -m reqpath.bench.generator`: one thread over plain sockets and
`select`, since what it computes on a machine that it shares is taken from the servers::

    outcome = generate(Traffic(("127.0.0.1", 8080), "/", rate=500.0, seconds_s=10.0, seed=1))
    outcome.rows[0]   →  Row(trace_id='4bf9…', planned_ns=…, lag_ns=11402, latency_ns=812345, status=200)
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import random
import select
import socket
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from reqpath.errors import ConfigurationError
from reqpath.servers.process import run_to_end

#: In the place of a status: there was no connection to send it on, all had a request under way.
DROPPED = -1
#: The connection was refused, or broke before the response's end.
BROKEN = -2
#: No response within the load's `timeout_s`.
TIMED_OUT = -3

#: The mean number of requests under way is noted for each such slice of the run.
SLICE_NS = 100_000_000

#: More would be mapped and unmapped each time.
_READ_BYTES = 1 << 16
_SWEEP_NS = 100_000_000
#: Connections are made, and the first request is due so much later.
_LEAD_NS = 50_000_000
_CONNECT_S = 1.0
_REFUSED_S = 0.01
#: One late waking weighs as much as 49 in time, which balances where one in 50 is late.
_FALL_NS = 100
_RISE_NS = 49 * _FALL_NS
_FIRST_EARLY_NS = 50_000
#: `select` takes no descriptor beyond 1023, and some are the process's own.
_MOST_CONNECTIONS = 1_000
#: So much a socket takes at once, whatever its settings.
_LONGEST_REQUEST = 4_096
_LOWEST_REALTIME = 1
#: Source: linux/prctl.h
_PR_SET_TIMERSLACK = 29
#: Beyond the load itself: start, connections, the last responses, the outcome.
_GRACE_S = 60.0

_BLANK_LINE = b"\r\n\r\n"
#: Apps that put something of its own into each response's head would fill the memory.
_MOST_HEADS = 1_000
_TRACE_BYTES = 16
_SPAN_BYTES = 8
_ID_BYTES = _TRACE_BYTES + _SPAN_BYTES


class Traffic(msgspec.Struct, frozen=True):
    """What is to be sent."""

    #: Where nginx listens: host and port, or the path of a Unix socket.
    address: tuple[str, int] | str
    #: Of the request, with its query.
    path: str
    #: Requests per second, on average; None: as many as `connections` can make, each one after another.
    rate: float | None
    seconds_s: float
    seed: int
    #: Most requests under way at a time; an arrival beyond them is dropped and counted.
    connections: int = 128
    timeout_s: float = 10.0
    #: Further headers.
    headers: tuple[tuple[str, str], ...] = ()
    #: Processors that the generator keeps to; empty: any.
    cpus: tuple[int, ...] = ()
    #: When to send, ns after the start, ascending; empty: a Poisson process of `rate` and `seed`.
    arrivals_ns: tuple[int, ...] = ()


class Row(NamedTuple):
    """One request, as the client saw it."""

    trace_id: str
    #: When it was to be sent; wall clock, ns since the epoch.
    planned_ns: int
    #: From then until it really was.
    lag_ns: int
    #: From the planned instant to the response's end, or to the failure; 0 for what was dropped.
    latency_ns: int
    #: Of HTTP; below 0 `DROPPED`, `BROKEN` or `TIMED_OUT`.
    status: int

    @property
    def is_failure(self) -> bool:
        """Whether there was no response, or one that tells of an error."""
        return not 200 <= self.status < 400


class Outcome(msgspec.Struct, frozen=True):
    """What came of a load: a row for each arrival, kept as columns, and what the generator says of itself."""

    traffic: Traffic
    #: Wall clock at the run's start, from which arrivals are planned.
    start_ns: int
    #: 24 bytes for each request: trace id and span id.
    ids: bytes
    #: Of each request, int64 in this machine's order, ns after `start_ns`.
    planned: bytes
    #: int64, ns.
    lags: bytes
    #: int64, ns.
    latencies: bytes
    #: int16.
    statuses: bytes
    #: Mean number of requests under way in each whole `SLICE_NS` from the start on.
    in_flight: tuple[float, ...]
    #: User and system time of the generator's process, from the first arrival to the last response.
    cpu_ns: int
    #: From the start to the last response.
    elapsed_ns: int
    #: Whether it ran before all others, as SCHED_FIFO, which takes privileges; closed loads never do.
    realtime: bool

    @property
    def planned_offsets_ns(self) -> array[int]:
        """When each request was planned, after the start, ascending."""
        return _read_column("q", self.planned)

    @property
    def lags_ns(self) -> array[int]:
        """From each planned instant to the sending; 0 for what was dropped."""
        return _read_column("q", self.lags)

    @property
    def latencies_ns(self) -> array[int]:
        """From each planned instant to the end; 0 for what was dropped."""
        return _read_column("q", self.latencies)

    @property
    def status_codes(self) -> array[int]:
        """Of each request: HTTP's, `DROPPED`, `BROKEN` or `TIMED_OUT`."""
        return _read_column("h", self.statuses)

    def trace_id(self, number: int) -> str:
        """Return the trace id of a request, by its place in the columns."""
        return self.ids[number * _ID_BYTES : number * _ID_BYTES + _TRACE_BYTES].hex()

    @property
    def rows(self) -> list[Row]:
        """All requests, in the order in which they were planned."""
        columns = zip(
            self.planned_offsets_ns, self.lags_ns, self.latencies_ns, self.status_codes, strict=True
        )
        return [
            Row(self.trace_id(number), self.start_ns + planned_ns, lag_ns, latency_ns, status)
            for number, (planned_ns, lag_ns, latency_ns, status) in enumerate(columns)
        ]


def generate(traffic: Traffic, *, while_running: Callable[[], None] | None = None) -> Outcome:
    """Run a generator's process to its end; `while_running` is called about once a second.

    Ctrl-C, or an exception of `while_running`, ends the process; what it had is lost then.

    Raises: ServerError with what the generator said; ConfigurationError when the load can't be sent.
    """
    check_traffic(traffic)
    with tempfile.TemporaryDirectory(prefix="reqpath-load-") as directory:
        plan, result, log = (os.path.join(directory, name) for name in ("load", "outcome", "log"))
        _write(plan, msgspec.msgpack.encode(traffic))
        run_to_end(
            [sys.executable, "-m", __name__, plan, result],
            log,
            traffic.seconds_s + traffic.timeout_s + _GRACE_S,
            "the load generator",
            while_running=while_running,
        )
        with open(result, "rb") as file:
            return msgspec.msgpack.decode(file.read(), type=Outcome)


def check_traffic(traffic: Traffic) -> None:
    """Do nothing when this can be sent. Raises: ConfigurationError."""
    if not 1 <= traffic.connections <= _MOST_CONNECTIONS:
        raise ConfigurationError(f"connections is {traffic.connections}; it must be 1 to {_MOST_CONNECTIONS}")
    for name in ("rate", "seconds_s", "timeout_s"):
        value = getattr(traffic, name)
        # So that NaN is refused too.
        if value is not None and not 0 < value < math.inf:
            raise ConfigurationError(f"a load's {name} is {value:g}; it must be above 0")
    arrivals = traffic.arrivals_ns
    if arrivals and traffic.rate is None:
        raise ConfigurationError("a closed load has no instants to send at")
    if arrivals and not 0 <= arrivals[0] <= arrivals[-1] < traffic.seconds_s * 1e9:
        raise ConfigurationError(f"a load's instants are not all within its {traffic.seconds_s:g} s")
    if list(arrivals) != sorted(arrivals):
        raise ConfigurationError("a load's instants must ascend")
    head, tail = _build_request(traffic)
    if len(head) + len(tail) > _LONGEST_REQUEST:
        raise ConfigurationError(
            f"a load's request has at most {_LONGEST_REQUEST} bytes, its headers counted"
        )
    # A line's end in any of them would begin another header or request.
    for text in (traffic.path, *(part for header in traffic.headers for part in header)):
        if not text.isascii() or not text.isprintable():
            raise ConfigurationError(f"not to be sent in a request's head: {text!r}")
    if not traffic.path.startswith("/") or " " in traffic.path:
        raise ConfigurationError(f"a request's path starts with / and has no blank: {traffic.path!r}")


def plan_arrivals(rate: float, seconds_s: float, seed: int) -> array[int]:
    """Return the instants of a Poisson process, ns from 0 to before `seconds_s`, ascending."""
    dice = random.Random(seed)  # noqa: S311 - arrivals are to be the same each time, not secret
    end_ns = seconds_s * 1e9
    mean = rate / 1e9
    arrivals = array("q")
    at_ns = dice.expovariate(mean)
    while at_ns < end_ns:
        arrivals.append(int(at_ns))
        at_ns += dice.expovariate(mean)
    return arrivals


class Response:
    """Finds the end of one response in its bytes as they come: of known length, chunked, or neither.

    Source: RFC 9112, section 6.
    """

    __slots__ = ("_body", "_chunked", "_pending", "closes", "head", "length", "status")

    def __init__(self) -> None:
        #: 0 until the head is complete.
        self.status = 0
        #: Without the blank line.
        self.head = b""
        #: Of the body; None when the head doesn't tell.
        self.length: int | None = None
        #: Whether the connection can't be used again.
        self.closes = False
        self._chunked = False
        self._pending = b""
        #: Bytes of the body so far.
        self._body = 0

    @property
    def ends_with_connection(self) -> bool:
        """Whether the connection's end is this response's; nothing else then is."""
        return self.status != 0 and self.length is None and not self._chunked

    def feed(self, data: bytes) -> bool:
        """Take further bytes; return whether that was the last of them.

        Raises: ValueError for what is no response, or more than one.
        """
        if not self.status:
            data = self._pending + data
            head, found, data = data.partition(_BLANK_LINE)
            if not found:
                self._pending = head
                return False
            self._pending = b""
            self._read_head(head)
        if self._chunked:
            return self._feed_chunks(data)
        self._body += len(data)
        if self.length is not None and self._body > self.length:
            raise ValueError("more than one response")
        return self._body == self.length

    def _read_head(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.") or int(head[9:12]) < 200:
            raise ValueError("not a final response of HTTP/1")
        lowered = head.lower() + b"\r\n"
        self.head = head
        self.status = int(head[9:12])
        self.closes = b"\r\nconnection: close\r\n" in lowered
        _, found, rest = lowered.partition(b"\r\ncontent-length:")
        if self.status in (204, 304):
            self.length = 0
        elif b"\r\ntransfer-encoding: chunked\r\n" in lowered:
            self._chunked = True
        elif found:
            self.length = int(rest.partition(b"\r\n")[0])
        else:
            self.closes = True

    def _feed_chunks(self, data: bytes) -> bool:
        """Go from chunk to chunk; what there is of an incomplete one waits for the rest."""
        data = self._pending + data
        at = 0
        while (line_end := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:line_end].partition(b";")[0], 16)
            if size == 0:
                # The trailer is further lines or none, and a blank one.
                end = data.find(_BLANK_LINE, line_end)
                if end >= 0 and end + len(_BLANK_LINE) != len(data):
                    raise ValueError("more than one response")
                self._pending = data[at:]
                return end >= 0
            following = line_end + 2 + size + 2
            if following > len(data):
                break
            at = following
        self._pending = data[at:]
        return False


class _Connection:
    """A connection to the server; while a request is under way, that one's numbers too."""

    __slots__ = ("due_ns", "number", "response", "sent_ns", "socket")

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.number = 0
        self.due_ns = 0
        self.sent_ns = 0
        #: What came of an incomplete response; None before its first byte.
        self.response: Response | None = None


class _Generator:
    """One run: the connections, the columns so far, and the loops."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._head, self._tail = _build_request(traffic)
        self._timeout_ns = int(traffic.timeout_s * 1e9)
        #: The last one used comes first: the others' memory stays cold.
        self._idle: list[_Connection] = []
        #: By descriptor, as `select` takes them.
        self._busy: dict[int, _Connection] = {}
        self._ids = bytearray()
        self._planned = array("q")
        self._lags = array("q")
        self._latencies = array("q")
        self._statuses = array("h")
        #: By a response's head: the body's length, and the status. Heads are the same for a second or longer.
        self._known: dict[bytes, tuple[int, int]] = {}
        #: Requests under way, integrated over the slice, up to `_counted_ns`.
        self._area = 0
        self._counted_ns = 0
        self._slice_end_ns = 0
        self._in_flight: list[float] = []
        self._sweep_ns = 0
        self._start_ns = 0

    def run(self) -> Outcome:
        """Send the load, and wait for the last response or its time-out."""
        traffic = self._traffic
        rate = traffic.rate
        if traffic.cpus:
            os.sched_setaffinity(0, traffic.cpus)
        arrivals = None
        if rate is not None:
            arrivals = array("q", traffic.arrivals_ns) or plan_arrivals(rate, traffic.seconds_s, traffic.seed)
        for _ in range(traffic.connections):
            self._connect()
        # Who never waits for an instant need not be woken at one; it would only be woken more often.
        realtime = _become_prompt() if arrivals is not None else False
        gc.collect()
        gc.freeze()
        gc.disable()
        self._start_ns = time.perf_counter_ns() + _LEAD_NS
        wall_ns = time.time_ns() + _LEAD_NS
        self._counted_ns, self._slice_end_ns = self._start_ns, self._start_ns + SLICE_NS
        time.sleep(_LEAD_NS / 2e9)
        cpu_ns = time.process_time_ns()
        if arrivals is None:
            self._run_closed()
        else:
            self._run_open(arrivals)
        elapsed_ns = time.perf_counter_ns() - self._start_ns
        cpu_ns = time.process_time_ns() - cpu_ns
        for connection in self._idle:
            connection.socket.close()
        return Outcome(
            traffic=traffic,
            start_ns=wall_ns,
            ids=bytes(self._ids),
            planned=self._planned.tobytes(),
            lags=self._lags.tobytes(),
            latencies=self._latencies.tobytes(),
            statuses=self._statuses.tobytes(),
            in_flight=tuple(self._in_flight),
            cpu_ns=cpu_ns,
            elapsed_ns=elapsed_ns,
            realtime=realtime,
        )

    def _run_open(self, arrivals: array[int]) -> None:
        clock = time.perf_counter_ns
        busy = self._busy
        message = self._prepare()
        # The kernel wakes a sleeper late, by as much as an idle processor takes to start. So a nap ends some
        # time before the instant, which is then waited for awake: enough for most wakings, and no more.
        early_ns = _FIRST_EARLY_NS
        for offset_ns in arrivals:
            due_ns = self._start_ns + offset_ns
            while (now_ns := clock()) < due_ns:
                nap_ns = due_ns - now_ns - early_ns
                ready = select.select(busy, (), (), nap_ns / 1e9 if nap_ns > 0 else 0)[0]
                woken_ns = clock()
                if nap_ns > 0 and not ready:
                    early_ns += _RISE_NS if woken_ns > now_ns + nap_ns + early_ns else -_FALL_NS
                if ready and woken_ns >= due_ns:
                    # What is due goes first: what has come is stamped, and can wait.
                    self._send(due_ns, message)
                    self._receive(ready, woken_ns)
                    break
                if ready:
                    self._receive(ready, woken_ns)
            else:
                self._send(due_ns, message)
            message = self._prepare()
            if now_ns > self._sweep_ns:
                self._sweep(now_ns)
        del self._ids[-_ID_BYTES:]
        while busy:
            ready = select.select(busy, (), (), _SWEEP_NS / 1e9)[0]
            self._receive(ready, clock())
            self._sweep(clock())

    def _run_closed(self) -> None:
        clock = time.perf_counter_ns
        busy = self._busy
        end_ns = self._start_ns + int(self._traffic.seconds_s * 1e9)
        while (now_ns := clock()) < self._start_ns:
            time.sleep((self._start_ns - now_ns) / 1e9)
        while (now_ns := clock()) < end_ns or busy:
            if now_ns < end_ns:
                for _ in range(self._traffic.connections - len(busy)):
                    message = self._prepare()
                    self._send(clock(), message)
                if not busy:
                    # All were refused; to try at once again would be all that the machine does.
                    time.sleep(_REFUSED_S)
            ready = select.select(busy, (), (), _SWEEP_NS / 1e9)[0]
            woken_ns = clock()
            self._receive(ready, woken_ns)
            if woken_ns > self._sweep_ns:
                self._sweep(woken_ns)

    def _prepare(self) -> bytes:
        """Return the next request, ready to be sent."""
        ids = os.urandom(_ID_BYTES)
        self._ids += ids
        text = ids.hex("-", -_TRACE_BYTES)
        return self._head + text.encode("ascii") + self._tail

    def _send(self, due_ns: int, message: bytes) -> None:
        """Send a request over an idle connection, and open its row."""
        number = len(self._planned)
        self._planned.append(due_ns - self._start_ns)
        self._latencies.append(0)
        idle = self._idle
        if not idle and len(self._busy) < self._traffic.connections:
            # One that broke is made anew when it is needed; that is part of the latency.
            self._connect()
        if not idle:
            self._lags.append(0)
            self._statuses.append(DROPPED if len(self._busy) == self._traffic.connections else BROKEN)
            return
        connection = idle.pop()
        connection.number = number
        connection.due_ns = due_ns
        self._statuses.append(0)
        sent_ns = connection.sent_ns = time.perf_counter_ns()
        self._lags.append(sent_ns - due_ns)
        self._count_until(sent_ns)
        self._busy[connection.socket.fileno()] = connection
        try:
            connection.socket.send(message)
        except OSError:
            self._fail(connection, BROKEN, time.perf_counter_ns())

    def _receive(self, ready: list[int], now_ns: int) -> None:
        """Read what has come; `now_ns` is when it had."""
        self._count_until(now_ns)
        for descriptor in ready:
            connection = self._busy[descriptor]
            try:
                data = connection.socket.recv(_READ_BYTES)
            except OSError:
                data = b""
            head_end = data.find(_BLANK_LINE)
            known = self._known.get(data[:head_end])
            if (
                known is not None
                and head_end >= 0
                and connection.response is None
                and len(data) == head_end + len(_BLANK_LINE) + known[0]
            ):
                number = connection.number
                self._latencies[number] = now_ns - connection.due_ns
                self._statuses[number] = known[1]
                del self._busy[descriptor]
                self._idle.append(connection)
            else:
                self._receive_piece(connection, data, now_ns)

    def _receive_piece(self, connection: _Connection, data: bytes, now_ns: int) -> None:
        """Take a part of a response, or one whose head was not seen before, or the connection's end."""
        response = connection.response = connection.response or Response()
        try:
            ended = response.feed(data) if data else response.ends_with_connection
        except ValueError:
            ended, data = False, b""
        if not ended:
            if not data:
                self._fail(connection, BROKEN, now_ns)
            return
        connection.response = None
        self._latencies[connection.number] = now_ns - connection.due_ns
        self._statuses[connection.number] = response.status
        del self._busy[connection.socket.fileno()]
        if response.closes:
            connection.socket.close()
            return
        self._idle.append(connection)
        if response.length is not None:
            if len(self._known) >= _MOST_HEADS:
                self._known.clear()
            self._known[response.head] = (response.length, response.status)

    def _fail(self, connection: _Connection, status: int, now_ns: int) -> None:
        self._latencies[connection.number] = now_ns - connection.due_ns
        self._statuses[connection.number] = status
        del self._busy[connection.socket.fileno()]
        connection.socket.close()

    def _sweep(self, now_ns: int) -> None:
        """End what has taken too long; a time-out is noticed up to `_SWEEP_NS` late."""
        self._sweep_ns = now_ns + _SWEEP_NS
        self._count_until(now_ns)
        for connection in list(self._busy.values()):
            if now_ns - connection.due_ns > self._timeout_ns:
                self._fail(connection, TIMED_OUT, now_ns)

    def _count_until(self, now_ns: int) -> None:
        """Add what is under way to the slices, up to now."""
        if now_ns <= self._counted_ns:
            return
        count = len(self._busy)
        while now_ns >= self._slice_end_ns:
            self._area += count * (self._slice_end_ns - self._counted_ns)
            self._in_flight.append(self._area / SLICE_NS)
            self._area = 0
            self._counted_ns = self._slice_end_ns
            self._slice_end_ns += SLICE_NS
        self._area += count * (now_ns - self._counted_ns)
        self._counted_ns = now_ns

    def _connect(self) -> None:
        """Add an idle connection, if the server takes it."""
        address = self._traffic.address
        fresh = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        try:
            fresh.settimeout(_CONNECT_S)
            fresh.connect(address)
            fresh.setblocking(False)
            if not isinstance(address, str):
                fresh.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            fresh.close()
            return
        self._idle.append(_Connection(fresh))


def _build_request(traffic: Traffic) -> tuple[bytes, bytes]:
    """Return the request before and after what follows `00-` in its traceparent."""
    address = traffic.address
    host = "localhost" if isinstance(address, str) else f"{address[0]}:{address[1]}"
    lines = [
        f"GET {traffic.path} HTTP/1.1",
        f"Host: {host}",
        *(f"{name}: {value}" for name, value in traffic.headers),
        "traceparent: 00-",
    ]
    return "\r\n".join(lines).encode("utf-8"), b"-01\r\n\r\n"


def _become_prompt() -> bool:
    """Have the kernel wake this process as soon as it is time; return whether it goes before all others."""
    # Threads of ordinary priority may be woken 50 µs late, so that the kernel can do two things at once.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_LOWEST_REALTIME))
    except PermissionError:
        return False
    return True


def _read_column(code: Literal["q", "h"], data: bytes) -> array[int]:
    column = array(code)
    column.frombytes(data)
    return column


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _main() -> None:
    plan, result = sys.argv[1:]
    with open(plan, "rb") as file:
        traffic = msgspec.msgpack.decode(file.read(), type=Traffic)
    _write(result, msgspec.msgpack.encode(_Generator(traffic).run()))


if __name__ == "__main__":
    _main()
