"""Builds the OpenTelemetry spans of a request path: one trace, one service for each tier.

The layer below is `path.RequestPath`, in one clock (`collect.clocks` sees to that); spans come out that the
SDK's exporters take for its own. docs/spans.md has the model as a table::

    shop-nginx   GET /items/<int:id>            nginx's start → its end
    shop-nginx     GET upstream                 one for each attempt
    shop-uwsgi       queue                      passed on → accepted
    shop-uwsgi       GET /items/<int:id>        accepted → closed
    shop-uwsgi         gil                      parsed → the app is entered
    shop               GET /items/<int:id>      the app is entered → closed; all times as attributes
    shop                 view, template
    shop                   SELECT shop          a database operation
    shop-mysql               SELECT shop        sent → first byte, as the client saw it

What lies inside the worker is where the worker's clock has it. nginx's stamps are coarser, so it is nginx's
spans that are stretched where a child would stick out; the stamps themselves are attributes. Ids that no
process has made follow from the path's own, so the same path always gives the same spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, Final, NamedTuple

import msgspec
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

import reqpath
from reqpath import conventions as names
from reqpath.collect.attributes import (
    Attributes,
    describe_attempt,
    describe_line,
    describe_method,
    describe_operation,
    describe_timing,
    describe_worker,
)
from reqpath.collect.clocks import ClockOffset, bound_offset, shift_nginx
from reqpath.instants import find_end_ns, find_first_ns, find_templates
from reqpath.path import RequestPath
from reqpath.record import Attempt, AttributeValue, Operation, WorkerRecord, WriterInfo
from reqpath.tiers import INDEX, Timing

_SCOPE: Final = InstrumentationScope(names.SCOPE, reqpath.__version__)
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
UNSET: Final = Status(StatusCode.UNSET)
_ERROR: Final = Status(StatusCode.ERROR)
_OK: Final = Status(StatusCode.OK)
_MASK: Final = (1 << 64) - 1
_MS: Final = 1_000_000
#: An app can give its events any instant; readers take 63 bits.
_LATEST_NS: Final = (1 << 63) - 1

_SEND: Final = INDEX["uwsgi.send"]
_QUEUE: Final = INDEX["queue"]
_GIL: Final = INDEX["uwsgi.gil"]

#: What nginx did when it ended before the worker, by its status.
_GIVEN_UP: Final = {499: "client closed the connection", 504: "nginx gave up waiting"}


class PathSpan(msgspec.Struct, frozen=True, gc=False):
    """A finished span: what exporters read of the SDK's, which takes four times as long to make."""

    name: str
    context: SpanContext
    parent: SpanContext | None
    resource: Resource
    attributes: Attributes
    start_time: int
    end_time: int
    kind: SpanKind
    status: Status
    events: Sequence[Event]
    links: Sequence[Link]

    instrumentation_scope: ClassVar[InstrumentationScope] = _SCOPE
    dropped_attributes: ClassVar[int] = 0
    dropped_events: ClassVar[int] = 0
    dropped_links: ClassVar[int] = 0

    def get_span_context(self) -> SpanContext:
        """Return the context, as the SDK's encoder asks for it."""
        return self.context


def build_spans(
    path: RequestPath,
    *,
    service_name: str = "app",
    kept: str | None = None,
    offset: ClockOffset | None = None,
) -> list[PathSpan]:
    """Build all spans of a path, the root first.

    `service_name` is for a path without a worker's record; `kept` is why the policy kept it; `offset` is what
    is known of the two hosts' clocks, by which the path is corrected already.
    """
    timing = path.timing
    builder = _Builder(path, timing, path.info.service_name if path.info else service_name)
    facts = describe_timing(timing)
    if kept is not None:
        facts[names.KEPT] = kept
    if offset is not None:
        facts[names.CLOCK_CORRECTION] = offset.correction_ns
        if offset.lower_ns is not None:
            facts[names.CLOCK_LOWER] = offset.lower_ns
        if offset.upper_ns is not None:
            facts[names.CLOCK_UPPER] = offset.upper_ns
    builder.build(facts)
    return builder.spans


class _Builder:
    """The spans of one path as they come to be."""

    __slots__ = ("_base", "_name", "_path", "_service", "_shift_ns", "_timing", "_trace_id", "spans")

    def __init__(self, path: RequestPath, timing: Timing, service: str) -> None:
        self.spans: list[PathSpan] = []
        self._shift_ns = 0
        if timing.skewed:
            # The stamps stay what they are, and the spans stand where the order of things lets them.
            path, self._shift_ns = _place(path)
        self._path, self._timing, self._service = path, timing, service
        self._trace_id = int(path.trace_id, 16)
        self._name = names.name_request(path.method, path.worker.route if path.worker else None)
        self._base = 0

    def build(self, facts: Attributes) -> None:
        path = self._path
        worker, nginx = path.worker, path.nginx
        if nginx is None:
            assert worker is not None
            self._build_without_line(worker, facts)
            return
        self._seed(nginx.span_id)
        method = describe_method(nginx.method)
        attempts = _place_attempts(path)
        starts = [worker.nginx_start_ns if worker else None, nginx.start_ns]
        start_ns = min(
            [
                next((ns for ns in starts if ns is not None), nginx.end_ns),
                *(each.start_ns for each in attempts),
            ]
        )
        end_ns = (
            max(nginx.end_ns, start_ns, *(each.end_ns for each in attempts)) if attempts else nginx.end_ns
        )
        # A span of no length is one that Jaeger warns of.
        end_ns = max(end_ns, start_ns + 1)
        resource = _build_resource(self._service + names.NGINX_SUFFIX)
        attributes = describe_line(nginx, start_ns, self._shift_ns, method)
        if worker is None:
            attributes |= facts
        events: tuple[Event, ...] = ()
        if worker is not None and self._timing.abandoned:
            reason = _GIVEN_UP.get(nginx.status or 0, "response sent")
            events = (Event(reason, None, nginx.end_ns),)
        parent = self._context(nginx.parent_id, remote=True) if nginx.parent_id else None
        root = self._add(
            self._name,
            self._context(nginx.span_id),
            parent,
            resource,
            attributes,
            start_ns=start_ns,
            end_ns=end_ns,
            kind=SpanKind.SERVER,
            status=_ERROR if nginx.status is not None and nginx.status >= 500 else UNSET,
            events=events,
        )
        links = tuple(Link(self._context(earlier.span_id), {names.RETRIED: True}) for earlier in path.retried)
        for number, (attempt, begin_ns, until_ns, workers) in enumerate(attempts):
            if number:
                # A worker's spans came between.
                self._seed(nginx.span_id)
            context = self._add(
                f"{method['http.request.method']} upstream",
                self._new(names.FIRST_ATTEMPT + number),
                root,
                resource,
                describe_attempt(attempt, number, method),
                start_ns=begin_ns,
                end_ns=until_ns,
                kind=SpanKind.CLIENT,
                status=UNSET if attempt.status is not None and attempt.status < 400 else _ERROR,
            )
            for each in workers:
                if each is worker:
                    self._build_worker(each, context, begin_ns, facts, links)
                else:
                    self._build_worker(each, context, None, None, ())
        if worker is not None and not attempts:
            self._build_worker(worker, root, None, facts, links)

    def _build_without_line(self, worker: WorkerRecord, facts: Attributes) -> None:
        """Build what a worker's record knows by itself; the proxy before it may have had a span or not."""
        parent = self._context(worker.parent_id, remote=True) if worker.parent_id else None
        stamps_ns = [ns for ns in (worker.nginx_start_ns, worker.nginx_pass_ns) if ns is not None]
        passed_ns = None
        if stamps_ns:
            end_ns = find_end_ns(worker)
            begin_ns = min(*stamps_ns, find_first_ns(worker))
            passed_ns = begin_ns if worker.nginx_pass_ns is None else worker.nginx_pass_ns
            self._seed(worker.span_id)
            parent = self._add(
                self._name,
                self._new(8),
                parent,
                _build_resource(self._service + names.NGINX_SUFFIX),
                {names.ROLE: names.PROXY, **describe_method(worker.method)},
                start_ns=begin_ns,
                end_ns=end_ns,
                kind=SpanKind.SERVER,
            )
        links = tuple(
            Link(self._context(earlier.span_id), {names.RETRIED: True}) for earlier in self._path.retried
        )
        for earlier in self._path.retried:
            self._build_worker(earlier, parent, None, None, ())
        self._build_worker(worker, parent, passed_ns, facts, links)

    def _build_worker(
        self,
        worker: WorkerRecord,
        parent: SpanContext | None,
        passed_ns: int | None,
        facts: Attributes | None,
        links: Sequence[Link],
    ) -> None:
        """Build the spans from the queue inwards; `facts` None: of a worker that nginx gave up."""
        self._seed(worker.span_id)
        info = self._path.info if facts is not None else None
        first_ns, end_ns = find_first_ns(worker), find_end_ns(worker)
        app_start_ns = worker.app_start_ns
        segments = self._timing.segments
        uwsgi = _build_resource(self._service + names.UWSGI_SUFFIX, info)
        method = describe_method(worker.method)
        failed = worker.status is not None and worker.status >= 500
        if facts is not None and passed_ns is not None and segments[_QUEUE] is not None:
            attributes: Attributes = {names.ROLE: names.QUEUE}
            if worker.transport is not None:
                attributes["network.transport"] = worker.transport
            start_ns = min(max(passed_ns, worker.nginx_pass_ns or passed_ns), first_ns)
            if start_ns < first_ns:
                self._add(
                    "queue", self._new(1), parent, uwsgi, attributes, start_ns=start_ns, end_ns=first_ns
                )
        if first_ns < app_start_ns or worker.accept_ns is not None or worker.parsed_ns is not None:
            attributes = {names.ROLE: names.UWSGI, **method}
            if worker.status is not None:
                attributes["http.response.status_code"] = worker.status
                if failed:
                    attributes["error.type"] = str(worker.status)
            parent = self._add(
                names.name_request(worker.method, worker.route),
                self._new(2),
                parent,
                uwsgi,
                attributes,
                start_ns=first_ns,
                end_ns=end_ns,
                kind=SpanKind.SERVER,
                status=_ERROR if failed else UNSET,
            )
            parsed_ns = worker.parsed_ns
            if parsed_ns is not None and (facts is None or segments[_GIL] is not None):
                start_ns = max(first_ns, min(parsed_ns, app_start_ns))
                attributes = {names.ROLE: names.GIL}
                if start_ns < app_start_ns:
                    self._add(
                        "gil",
                        self._new(3),
                        parent,
                        uwsgi,
                        attributes,
                        start_ns=start_ns,
                        end_ns=app_start_ns,
                    )
        late_ns = (worker.exclusive_ns[-1] or 0) - (segments[_SEND] or 0)
        line = self._path.nginx if facts is not None else None
        attributes = describe_worker(worker, self._shift_ns, method, facts, late_ns, nginx=line)
        self._build_request(worker, parent, end_ns, info, attributes, links=links)

    def _build_request(
        self,
        worker: WorkerRecord,
        parent: SpanContext | None,
        end_ns: int,
        info: WriterInfo | None,
        attributes: Attributes,
        *,
        links: Sequence[Link],
    ) -> None:
        app_start_ns = worker.app_start_ns
        resource = _build_resource(self._service, info)
        app_span = worker.app_span
        if app_span is not None and app_span.trace_id != worker.trace_id:
            # A trace of its own, so that this one has no other span of the request.
            context = SpanContext(int(app_span.trace_id, 16), int(app_span.span_id, 16), False, _SAMPLED)
            links, app_span = (*links, Link(context, {names.APP_SPAN: True})), None
        request_start_ns = app_start_ns
        if app_span is not None and app_span.start_ns < 0:
            # The SDK's instrumentation is around reqpath's.
            request_start_ns += max(app_span.start_ns, find_first_ns(worker) - app_start_ns)
            attributes[names.APP_START] = app_start_ns - request_start_ns
        request = self._add(
            names.CALL if app_span else worker.span_name or names.name_request(worker.method, worker.route),
            self._context(worker.span_id),
            parent,
            resource,
            attributes,
            start_ns=request_start_ns,
            end_ns=end_ns,
            kind=SpanKind.INTERNAL if app_span else SpanKind.SERVER,
            status=_judge(worker),
            events=_build_events(worker, end_ns),
            links=links,
        )
        frames = [(request_start_ns, end_ns, request)]
        if app_span is not None:
            until_ns = end_ns if app_span.end_ns is None else app_start_ns + app_span.end_ns
            frames.append((app_start_ns + app_span.start_ns, until_ns, self._context(app_span.span_id)))
        view_ns, view_end_ns = worker.view_start_offset_ns, worker.view_end_offset_ns
        if view_ns is not None and view_end_ns is not None:
            start_ns = app_start_ns + view_ns
            until_ns = max(start_ns, app_start_ns + view_end_ns)
            view = self._add(
                "view",
                self._new(4),
                _innermost(frames, start_ns, until_ns),
                resource,
                {names.ROLE: names.VIEW},
                start_ns=start_ns,
                end_ns=until_ns,
            )
            frames.append((start_ns, until_ns, view))
        around = tuple(frames)
        for number, (start_ns, until_ns) in enumerate(find_templates(worker)):
            template = self._add(
                "template",
                self._new(names.FIRST_TEMPLATE + number),
                _innermost(around, start_ns, until_ns),
                resource,
                {names.ROLE: names.TEMPLATE},
                start_ns=start_ns,
                end_ns=until_ns,
            )
            frames.append((start_ns, until_ns, template))
        for number, operation in enumerate(worker.operations):
            self._build_operation(operation, number, worker, frames, resource)

    def _build_operation(
        self,
        operation: Operation,
        number: int,
        worker: WorkerRecord,
        frames: list[tuple[int, int, SpanContext]],
        resource: Resource,
    ) -> None:
        app_start_ns = worker.app_start_ns
        start_ns = app_start_ns + operation.start_ns
        end_ns = app_start_ns + operation.end_ns
        attributes = describe_operation(operation)
        word = attributes.get("db.operation.name")
        target = operation.namespace or operation.server_address
        name = " ".join(part for part in (word or operation.kind, target) if part)
        if operation.app_span_id is not None:
            # The SDK exports the call's span; the server's below it holds what reqpath knows of it.
            attributes[names.MEASURED_BY] = "client"
            attributes[names.APP_SPAN] = operation.app_span_id
            attributes[names.OF_REQUEST] = worker.span_id
            attributes[names.OPERATION_END] = operation.end_ns - operation.start_ns
            if operation.first_byte_ns is not None:
                end_ns = app_start_ns + operation.first_byte_ns
            self._add(
                name,
                self._new(names.FIRST_OPERATION + 2 * number),
                self._context(operation.app_span_id),
                _build_resource(self._service + names.MYSQL_SUFFIX),
                attributes,
                start_ns=start_ns,
                end_ns=end_ns,
                kind=SpanKind.SERVER,
                status=UNSET if operation.error is None else _ERROR,
            )
            return
        context = self._add(
            name,
            self._new(names.FIRST_OPERATION + 2 * number),
            _innermost(frames, start_ns, end_ns),
            resource,
            attributes,
            start_ns=start_ns,
            end_ns=end_ns,
            kind=SpanKind.CLIENT,
            status=UNSET if operation.error is None else _ERROR,
        )
        if operation.first_byte_ns is not None:
            self._add(
                name,
                self._new(names.FIRST_OPERATION + 2 * number + 1),
                context,
                _build_resource(self._service + names.MYSQL_SUFFIX),
                {names.ROLE: names.SERVER, "db.system.name": "mysql", names.MEASURED_BY: "client"},
                start_ns=start_ns,
                end_ns=app_start_ns + operation.first_byte_ns,
                kind=SpanKind.SERVER,
            )

    def _seed(self, span_id: str) -> None:
        """Choose the span from which further ids follow."""
        self._base = names.derive_base(self._path.trace_id, span_id)

    def _new(self, number: int) -> SpanContext:
        """Return the context of a span that reqpath makes; `number` tells those of one seed apart."""
        return SpanContext(self._trace_id, (self._base + number) & _MASK or 1, False, _SAMPLED)

    def _context(self, span_id: str, *, remote: bool = False) -> SpanContext:
        return SpanContext(self._trace_id, int(span_id, 16), remote, _SAMPLED)

    def _add(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        resource: Resource,
        attributes: Attributes,
        *,
        start_ns: int,
        end_ns: int,
        kind: SpanKind = SpanKind.INTERNAL,
        status: Status = UNSET,
        events: Sequence[Event] = (),
        links: Sequence[Link] = (),
    ) -> SpanContext:
        self.spans.append(
            PathSpan(
                name,
                context,
                parent,
                resource,
                attributes,
                start_ns,
                end_ns,
                kind,
                status,
                events,
                links,
            )
        )
        return context


@lru_cache(maxsize=4_096)
def _build_resource(service: str, info: WriterInfo | None = None) -> Resource:
    """Build what is the same for all spans of a process, or of a tier that reqpath sees from outside.

    Under it lies what `OTEL_RESOURCE_ATTRIBUTES` says.
    """
    attributes: dict[str, Any] = {"service.name": service}
    if info is not None:
        attributes |= {
            "service.instance.id": info.writer_id,
            "host.name": info.host,
            "process.pid": info.pid,
            "reqpath.version": info.reqpath_version,
            "reqpath.created_ns": info.created_ns,
            "reqpath.concurrency": info.concurrency,
        }
        for key in names.INFO_FIELDS:
            value = getattr(info, key)
            if value is not None:
                attributes[f"reqpath.{key}"] = value
    return OTELResourceDetector().detect().merge(Resource(attributes))


def _place(path: RequestPath) -> tuple[RequestPath, int]:
    """Move nginx's stamps to where the order of things lets them be; return by how much, too."""
    if path.worker is None:
        return path, 0
    bounds = bound_offset(path.worker, path.nginx)
    # Where no place is right, the request at least begins before the worker has it.
    shift_ns = bounds.upper_ns if bounds.contradictory else bounds.correction_ns
    return shift_nginx(path, shift_ns or 0), shift_ns or 0


class _Placed(NamedTuple):
    """An upstream attempt, from where to where its span is, and the workers that recorded it."""

    attempt: Attempt
    start_ns: int
    end_ns: int
    workers: list[WorkerRecord]


def _place_attempts(path: RequestPath) -> list[_Placed]:
    """Place the attempts one after the other, as nginx makes them, around what the workers recorded."""
    worker, nginx = path.worker, path.nginx
    assert nginx is not None
    attempts = nginx.attempts
    if not attempts:
        return []
    times_ns = [attempt.response_ns or 0 for attempt in attempts]
    cursor_ns = nginx.end_ns - sum(times_ns)
    stamps: tuple[int | None, ...] = (nginx.start_ns, nginx.pass_ns)
    if worker is not None:
        cursor_ns = min(cursor_ns, find_first_ns(worker))
        stamps = (nginx.start_ns, worker.nginx_start_ns, nginx.pass_ns, worker.nginx_pass_ns)
    for stamp_ns in stamps:
        cursor_ns = cursor_ns if stamp_ns is None else stamp_ns
    starts_ns = [cursor_ns]
    for time_ns in times_ns:
        starts_ns.append(starts_ns[-1] + time_ns)
    workers: list[list[WorkerRecord]] = [[] for _ in attempts]
    # Each time is rounded to a millisecond, and the stamp before them may be as well.
    tolerance_ns = (len(attempts) + 1) * _MS
    last = len(attempts) - 1
    for record in () if worker is None else (worker, *reversed(path.retried)):
        first_ns = find_first_ns(record) + tolerance_ns
        last = max((i for i in range(last + 1) if starts_ns[i] <= first_ns), default=0)
        workers[last].insert(0, record)
        # Each attempt has a worker of its own, as far as there are so many.
        last = max(0, last - 1)
    placed = []
    for i, attempt in enumerate(attempts):
        end_ns = min(starts_ns[i + 1], nginx.end_ns)
        if i == len(attempts) - 1 and attempt.response_ns is None:
            end_ns = nginx.end_ns
        start_ns = min((starts_ns[i], end_ns, *map(find_first_ns, workers[i])))
        placed.append(
            _Placed(attempt, start_ns, max((start_ns + 1, end_ns, *map(find_end_ns, workers[i]))), workers[i])
        )
    return placed


def _innermost(frames: Sequence[tuple[int, int, SpanContext]], start_ns: int, end_ns: int) -> SpanContext:
    """Return the last of the frames that holds the interval; the first holds all."""
    found = frames[0][2]
    for frame_start_ns, frame_end_ns, context in frames[1:]:
        if frame_start_ns <= start_ns and end_ns <= frame_end_ns:
            found = context
    return found


def _judge(worker: WorkerRecord) -> Status:
    """Return the span's status: the app's own word for it comes first."""
    if worker.span_status is not None:
        code, description = worker.span_status
        return _OK if code == "OK" else Status(StatusCode.ERROR, description)
    if worker.exception is not None:
        return Status(StatusCode.ERROR, f"{worker.exception[0]}: {worker.exception[1]}")
    return _ERROR if worker.status is not None and worker.status >= 500 else UNSET


def _build_events(worker: WorkerRecord, end_ns: int) -> tuple[Event, ...]:
    """Return the app's events, and the exception that left it, at the end: its instant was not noted."""
    if not worker.events and worker.exception is None:
        return ()
    events = [
        Event(event.name, event.attributes, max(1, min(worker.app_start_ns + event.time_ns, _LATEST_NS)))
        for event in worker.events
    ]
    if worker.exception is not None:
        kind, message, stack = worker.exception
        attributes: dict[str, AttributeValue] = {
            "exception.type": kind,
            "exception.message": message,
            "exception.stacktrace": stack,
            names.UNHANDLED: True,
        }
        events.append(Event("exception", attributes, end_ns))
    return tuple(events)
