"""Request paths as a trace for Perfetto and Chrome's viewer: a track a worker's core, nginx and the queue.

What a viewer shows of it, each request's slices tied by arrows::

    nginx              requests    ├ GET /items ─────────────────┤ ├ POST /orders ──
    listen queue       waiting        ├ queue ┤
    worker 1, pid 4711 core 0                 ├ GET /items ────┤
                                              │gil│ app ───────│
                       waiting for the GIL  ▁▁▂▂▁▁             a counter

A track's slices must nest, so requests that nginx has at one time lie on tracks of their own, as many as were
needed: their number is the queue's length. Instants are µs since a midnight before the first request, which
`otherData` names: a viewer reads them as doubles, and since the epoch these would not hold nanoseconds.

Source: the Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import Any, Final, NamedTuple

import msgspec

import reqpath
from reqpath.instants import find_end_ns, find_first_ns, find_templates, place_segments
from reqpath.path import RequestPath
from reqpath.record import AttributeValue, Operation, WorkerRecord, WriterInfo
from reqpath.render.units import clean, format_instant
from reqpath.tiers import WORKER_SEGMENTS

_DAY_NS: Final = 86_400_000_000_000
#: Paths come in the order of their ends; so many are held to be put in the order of their starts.
_HELD: Final = 4_096
_LABEL: Final = 160
_TEXT: Final = 1_000
#: Events in one chunk of the output.
_CHUNK: Final = 512
_NGINX: Final = "nginx"
_QUEUE: Final = "listen queue"

_Event = dict[str, Any]


class _Slice(NamedTuple):
    """A stretch of a track; instants are ns since the epoch."""

    name: str
    tier: str
    start_ns: int
    end_ns: int
    args: dict[str, Any]


class _Process:
    """A group of tracks, and how many requests waited in it at which time."""

    __slots__ = ("counter", "lanes", "left_ns", "met_ns", "number")

    def __init__(self, number: int, counter: str) -> None:
        self.number = number
        self.counter = counter
        #: By the name of a track: of each of its lanes the id, and until when it is taken.
        self.lanes: dict[str, list[tuple[int, int]]] = {}
        self.met_ns = array("q")
        self.left_ns = array("q")

    def count(self, waiting: _Slice) -> None:
        """Count a request that waited."""
        self.met_ns.append(waiting.start_ns)
        self.left_ns.append(waiting.end_ns)


def render_perfetto(paths: Iterable[RequestPath]) -> Iterator[bytes]:
    """Yield a trace in JSON, in chunks; in memory are some thousand paths at a time, and the counters."""
    ordered = _order(paths)
    first = next(ordered, None)
    writer = _Writer(_DAY_NS if first is None else first.timing.start_ns)
    yield writer.head()
    events = writer.events(ordered if first is None else chain((first,), ordered))
    separator = b""
    while chunk := b",\n".join(map(msgspec.json.encode, islice(events, _CHUNK))):
        yield separator + chunk
        separator = b",\n"
    yield b"\n]}\n"


def _order(paths: Iterable[RequestPath]) -> Iterator[RequestPath]:
    """Yield the paths by their start, as far as none comes more than `_HELD` paths late."""
    held: list[tuple[int, int, RequestPath]] = []
    for number, path in enumerate(paths):
        entry = (path.timing.start_ns, number, path)
        if len(held) < _HELD:
            heapq.heappush(held, entry)
        else:
            yield heapq.heappushpop(held, entry)[2]
    while held:
        yield heapq.heappop(held)[2]


class _Track(NamedTuple):
    process: int
    number: int


class _Writer:
    """Makes events of paths; numbers the tracks."""

    def __init__(self, start_ns: int) -> None:
        """No request may start a day before `start_ns`."""
        self._start_ns = start_ns
        self._base_ns = (start_ns // _DAY_NS - 1) * _DAY_NS
        self._processes: dict[str, _Process] = {}
        self._numbers = 0
        self._paths = 0
        #: Events that name processes and tracks, not yet handed out.
        self._names: list[_Event] = []

    def head(self) -> bytes:
        """Return what comes before the events."""
        head = msgspec.json.encode(
            {
                "displayTimeUnit": "ns",
                "otherData": {
                    "producer": f"reqpath {reqpath.__version__}",
                    "first request": format_instant(self._start_ns),
                    "zero of ts, ns since the epoch": str(self._base_ns),
                },
            }
        )
        return head[:-1] + b',"traceEvents":[\n'

    def events(self, paths: Iterable[RequestPath]) -> Iterator[_Event]:
        """Yield the events of all paths, those that need to know all at the end."""
        for path in paths:
            yield from self._add(path)
        yield from self._count()

    def _add(self, path: RequestPath) -> list[_Event]:
        """Return the events of one path."""
        self._paths += 1
        events: list[_Event] = []
        stops: list[tuple[_Track, int]] = []
        nginx, queue, worker = _place_nginx(path), _place_queue(path), path.worker
        if nginx is not None:
            track = self._draw(events, self._find(_NGINX, 0), "requests", nginx)
            passed_ns = nginx[0].start_ns if queue is None else queue.start_ns
            stops.append((track, min(max(passed_ns, nginx[0].start_ns), nginx[0].end_ns)))
        if queue is not None:
            process = self._find(_QUEUE, 1)
            process.count(queue)
            stops.append((self._draw(events, process, "waiting", [queue]), queue.start_ns))
        if worker is not None:
            stops.append(self._add_worker(events, path, worker))
        # Where stamps contradict each other there is no arrow: none leads back in time.
        if len(stops) > 1 and all(one[1] <= next_one[1] for one, next_one in pairwise(stops)):
            for number, (track, at_ns) in enumerate(stops):
                last = number == len(stops) - 1
                events.append(
                    self._event("f" if last else "t" if number else "s", "path", track, at_ns)
                    | {"cat": "path", "id": self._paths}
                    | ({"bp": "e"} if last else {})
                )
        names, self._names = self._names, []
        return names + events

    def _count(self) -> Iterator[_Event]:
        """Yield the counters' events."""
        for process in self._processes.values():
            waiting = 0
            for at_ns, step in heapq.merge(
                ((at_ns, 1) for at_ns in sorted(process.met_ns)),
                ((at_ns, -1) for at_ns in sorted(process.left_ns)),
            ):
                waiting += step
                yield {
                    "ph": "C",
                    "name": process.counter,
                    "pid": process.number,
                    "ts": self._ts(at_ns),
                    "args": {"requests": waiting},
                }

    def _add_worker(
        self, events: list[_Event], path: RequestPath, worker: WorkerRecord
    ) -> tuple[_Track, int]:
        info = path.info
        process = self._find(_name_worker(info), 2 + ((info.worker or 0) if info is not None else 0))
        slices, beside = _place_worker(path, worker)
        for each in slices:
            if each.name == "uwsgi.gil":
                process.count(each)
        name = "requests" if worker.core is None else f"core {worker.core}"
        track = self._draw(events, process, name, slices)
        for each in beside:
            self._draw(events, process, f"{name}, beside", [each])
        start_ns, end_ns = slices[0].start_ns, slices[0].end_ns
        for event in worker.events:
            at_ns = min(max(worker.app_start_ns + event.time_ns, start_ns), end_ns)
            events.append(self._mark(event.name, track, at_ns, event.attributes))
        if worker.exception is not None:
            kind, message, _stack = worker.exception
            events.append(self._mark(kind, track, end_ns, {"message": message}))
        return track, start_ns

    def _draw(self, events: list[_Event], process: _Process, name: str, slices: Sequence[_Slice]) -> _Track:
        """Draw slices, of which the first holds the others, on a lane that is free then."""
        whole = slices[0]
        lanes = process.lanes.setdefault(name, [])
        for index, (number, until_ns) in enumerate(lanes):
            if until_ns <= whole.start_ns:
                lanes[index] = (number, whole.end_ns)
                break
        else:
            number = self._number()
            lanes.append((number, whole.end_ns))
            label = name if len(lanes) == 1 else f"{name} ({len(lanes)})"
            self._name("thread", process.number, label, len(process.lanes) * 1_000 + len(lanes), tid=number)
        track = _Track(process.number, number)
        for each in slices:
            event = self._event("X", each.name, track, each.start_ns) | {
                "cat": each.tier,
                "dur": (each.end_ns - each.start_ns) / 1_000,
            }
            if each.args:
                event["args"] = each.args
            events.append(event)
        return track

    def _mark(self, name: str, track: _Track, at_ns: int, attributes: dict[str, AttributeValue]) -> _Event:
        args = {clean(key, _LABEL): _clean_value(value) for key, value in attributes.items()}
        return self._event("i", clean(name, _LABEL), track, at_ns) | {"cat": "app", "s": "t", "args": args}

    def _event(self, phase: str, name: str, track: _Track, at_ns: int) -> _Event:
        return {"ph": phase, "name": name, "pid": track.process, "tid": track.number, "ts": self._ts(at_ns)}

    def _find(self, name: str, order: int) -> _Process:
        process = self._processes.get(name)
        if process is None:
            counter = "waiting for a worker" if name == _QUEUE else "waiting for the GIL"
            process = self._processes[name] = _Process(self._number(), counter)
            self._name("process", process.number, name, order)
        return process

    def _name(self, kind: str, process: int, name: str, order: int, **track: int) -> None:
        """Have a process or a track named, and put in its place among the others."""
        event: _Event = {"ph": "M", "pid": process, **track}
        self._names += [
            event | {"name": f"{kind}_name", "args": {"name": name}},
            event | {"name": f"{kind}_sort_index", "args": {"sort_index": order}},
        ]

    def _number(self) -> int:
        """Return the next number; a track with its process's own would be taken for the main thread."""
        self._numbers += 1
        return self._numbers

    def _ts(self, at_ns: int) -> float:
        return (at_ns - self._base_ns) / 1_000


def _place_nginx(path: RequestPath) -> list[_Slice] | None:
    """Return what nginx did; None where none of its stamps is there."""
    timing, line, worker = path.timing, path.nginx, path.worker
    start_ns = line.start_ns if line is not None else None
    if worker is not None and worker.nginx_start_ns is not None:
        start_ns = worker.nginx_start_ns
    if start_ns is None:
        return None
    end_ns = timing.start_ns + timing.total_ns if line is None else line.end_ns
    whole = _Slice(
        clean(path.route, _LABEL),
        "nginx",
        start_ns,
        max(start_ns, end_ns),
        _known(
            {
                "trace id": path.trace_id,
                "path": clean(path.url_path, _TEXT),
                "status": path.status,
                "total ms": timing.total_ns / 1e6,
                "± ms": timing.resolution_ns / 1e6,
                "residual ms": timing.residual_ns / 1e6,
                "stamps missing": ", ".join(timing.missing) or None,
                "stamps contradict": ", ".join(timing.skewed) or None,
            }
        ),
    )
    inner = [
        _Slice(each.segment, "nginx", each.start_ns, each.start_ns + each.duration_ns, {})
        for each in place_segments(path)
        if each.duration_ns and each.segment.startswith("nginx.")
    ]
    return _nest(whole, inner)[0]


def _place_queue(path: RequestPath) -> _Slice | None:
    for each in place_segments(path):
        if each.segment == "queue" and each.duration_ns:
            args = {"request": clean(path.route, _LABEL), "trace id": path.trace_id}
            return _Slice("queue", "queue", each.start_ns, each.start_ns + each.duration_ns, args)
    return None


def _place_worker(path: RequestPath, worker: WorkerRecord) -> tuple[list[_Slice], list[_Slice]]:
    """Return what went on in the worker, and what of it ran beside the request."""
    app_start_ns = worker.app_start_ns
    whole = _Slice(
        clean(path.route, _LABEL),
        "uwsgi",
        find_first_ns(worker),
        find_end_ns(worker),
        _known(
            {
                "trace id": path.trace_id,
                "path": clean(worker.path, _TEXT),
                "status": worker.status,
                "cpu ms": None if worker.cpu_ns is None else worker.cpu_ns / 1e6,
                "run queue ms": None if worker.run_queue_ns is None else worker.run_queue_ns / 1e6,
                "operations not kept": worker.dropped_operations or None,
                **{
                    f"{name} ms": value / 1e6
                    for name, value in zip(WORKER_SEGMENTS, worker.exclusive_ns, strict=True)
                    if value
                },
                **{clean(key, _LABEL): _clean_value(value) for key, value in worker.attributes.items()},
            }
        ),
    )
    inner = [
        _Slice(each.segment, "uwsgi", each.start_ns, each.start_ns + each.duration_ns, {})
        for each in place_segments(path)
        if each.duration_ns and each.segment.startswith("uwsgi.")
    ]
    inner.append(_Slice(clean(worker.span_name or "app", _LABEL), "flask", app_start_ns, whole.end_ns, {}))
    if worker.view_start_offset_ns is not None and worker.view_end_offset_ns is not None:
        begin_ns, until_ns = (
            app_start_ns + ns for ns in (worker.view_start_offset_ns, worker.view_end_offset_ns)
        )
        inner.append(_Slice("view", "flask", begin_ns, until_ns, {}))
    inner += [
        _Slice("template", "flask", begin_ns, until_ns, {}) for begin_ns, until_ns in find_templates(worker)
    ]
    beside: list[_Slice] = []
    for operation in worker.operations:
        (beside if operation.concurrent else inner).append(_place_operation(operation, app_start_ns))
        if operation.first_byte_ns is not None and not operation.concurrent:
            until_ns = app_start_ns + operation.first_byte_ns
            inner.append(_Slice("mysql.query", "mysql", app_start_ns + operation.start_ns, until_ns, {}))
    nested, crossing = _nest(whole, inner)
    return nested, beside + crossing


def _place_operation(operation: Operation, app_start_ns: int) -> _Slice:
    statement = None if operation.statement is None else clean(operation.statement, _TEXT)
    return _Slice(
        operation.kind if statement is None else statement[:_LABEL],
        "mysql",
        app_start_ns + operation.start_ns,
        app_start_ns + operation.end_ns,
        _known(
            {
                "statement": statement,
                "rows": operation.rows,
                "error": None if operation.error is None else clean(operation.error, _TEXT),
                "fetch ms": None if operation.fetch_ns is None else operation.fetch_ns / 1e6,
                "connection": operation.connection,
                **{f"{clean(name, _LABEL)} ms": ns / 1e6 for name, ns in operation.phases},
            }
        ),
    )


def _nest(whole: _Slice, inner: Iterable[_Slice]) -> tuple[list[_Slice], list[_Slice]]:
    """Return `whole` and what nests within it, each after what holds it, and those that cross another.

    Slices are cut to `whole`: what reaches over it does so by the resolution of its stamps.
    """
    nested, crossing, around = [whole], [], [whole.end_ns]
    cut = [
        each._replace(
            start_ns=min(max(each.start_ns, whole.start_ns), whole.end_ns),
            end_ns=max(min(each.end_ns, whole.end_ns), min(max(each.start_ns, whole.start_ns), whole.end_ns)),
        )
        for each in inner
    ]
    for each in sorted(cut, key=lambda each: (each.start_ns, -each.end_ns)):
        while len(around) > 1 and around[-1] <= each.start_ns:
            around.pop()
        if each.end_ns > around[-1]:
            crossing.append(each)
            continue
        nested.append(each)
        around.append(each.end_ns)
    return nested, crossing


def _name_worker(info: WriterInfo | None) -> str:
    if info is None:
        return "worker"
    name = clean(info.service_name, 60) if info.worker is None else f"worker {info.worker}"
    return f"{name}, pid {info.pid} on {clean(info.host, 60)}"


def _known(args: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in args.items() if value is not None}


def _clean_value(value: AttributeValue) -> str | bool | int | float:
    if isinstance(value, (bool, int, float)):
        return value
    return clean(", ".join(map(str, value)) if isinstance(value, list) else value, _TEXT)
