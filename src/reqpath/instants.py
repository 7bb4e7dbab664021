"""When the parts of a request took place, as instants of the wall clock, ns since the epoch.

`tiers` says how long each segment took; here is where those have a place that lie between two stamps, from
when to when a worker had the request, and when templates were rendered in it. What the worker's segments sum
up over many short stays has no place, and is not here::

    >>> [(each.segment, each.start_ns - path.timing.start_ns) for each in place_segments(path)]
    [('nginx.receive', 0), ('queue', 500000), ('uwsgi.read', 2500000), ('uwsgi.gil', 3000000), …]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from reqpath.path import RequestPath
from reqpath.record import WorkerRecord
from reqpath.tiers import INDEX, WORKER_SEGMENTS

#: nginx rounds the time of each upstream attempt to a millisecond, also where its stamps are finer.
_ATTEMPT_RESOLUTION_NS: Final = 1_000_000
_UWSGI_RESOLUTION_NS: Final = 1_000
_TEMPLATE: Final = WORKER_SEGMENTS.index("flask.template")
_MYSQL: Final = frozenset(i for i, name in enumerate(WORKER_SEGMENTS) if name.startswith("mysql."))


class PlacedSegment(NamedTuple):
    """A segment that lies between two stamps."""

    segment: str
    start_ns: int
    duration_ns: int
    resolution_ns: int


def place_segments(path: RequestPath) -> Iterator[PlacedSegment]:
    """Yield the known segments outside the app, in the order of time; also those that took no time."""
    timing, worker, nginx = path.timing, path.worker, path.nginx
    segments, nginx_ns = timing.segments, timing.resolution_ns
    pass_ns = nginx.pass_ns if nginx is not None else None
    if worker is not None and worker.nginx_pass_ns is not None:
        pass_ns = worker.nginx_pass_ns
    places: list[tuple[str, int | None, int]] = [("nginx.receive", timing.start_ns, nginx_ns)]
    if worker is None:
        places += [
            ("nginx.local", timing.start_ns, nginx_ns),
            ("nginx.upstream", timing.start_ns if pass_ns is None else pass_ns, _ATTEMPT_RESOLUTION_NS),
        ]
    else:
        failed_ns = segments[INDEX["nginx.upstream"]] or 0
        closed_ns = worker.closed_offset_ns
        places += [
            ("nginx.upstream", pass_ns, _ATTEMPT_RESOLUTION_NS),
            ("queue", None if pass_ns is None else pass_ns + failed_ns, nginx_ns),
            ("uwsgi.read", worker.accept_ns, _UWSGI_RESOLUTION_NS),
            ("uwsgi.gil", worker.parsed_ns, _UWSGI_RESOLUTION_NS),
            ("nginx.send", None if closed_ns is None else worker.app_start_ns + closed_ns, nginx_ns),
        ]
    for name, start_ns, resolution_ns in places:
        value = segments[INDEX[name]]
        if value is not None and start_ns is not None:
            yield PlacedSegment(name, max(start_ns, timing.start_ns), value, resolution_ns)


def find_first_ns(worker: WorkerRecord) -> int:
    """Return when the worker's side had the request: accepted, else parsed, else the app entered."""
    app_start_ns = worker.app_start_ns
    accept_ns, parsed_ns = worker.accept_ns, worker.parsed_ns
    return min(
        app_start_ns if accept_ns is None else accept_ns,
        app_start_ns if parsed_ns is None else parsed_ns,
        app_start_ns,
    )


def find_end_ns(worker: WorkerRecord) -> int:
    """Return when the worker was done: when the body was closed, or the last instant that is known."""
    end_ns = worker.closed_offset_ns
    if end_ns is None:
        end_ns = sum(filter(None, worker.exclusive_ns))
    for operation in worker.operations:
        end_ns = max(end_ns, operation.end_ns)
    if worker.timeline:
        end_ns = max(end_ns, worker.timeline[-1])
    return worker.app_start_ns + max(end_ns, worker.view_end_offset_ns or 0)


def find_templates(worker: WorkerRecord) -> Iterator[tuple[int, int]]:
    """Yield from when to when templates were rendered, the database calls in them included."""
    app_start_ns, timeline = worker.app_start_ns, worker.timeline
    start_ns = None
    for segment, at_ns in zip(timeline[::2], timeline[1::2], strict=True):
        if segment == _TEMPLATE:
            if start_ns is None:
                start_ns = at_ns
        elif start_ns is not None and segment not in _MYSQL:
            yield app_start_ns + start_ns, app_start_ns + at_ns
            start_ns = None
    if start_ns is not None:
        yield app_start_ns + start_ns, app_start_ns + timeline[-1]
