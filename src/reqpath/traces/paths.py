"""Makes request paths of spans again: of reqpath's own exactly, of other instrumentation's what they know.

The layers below are `traces.otlp` and `traces.jaeger`, which read spans; the one above is any report::

    [Span("… GET /items/<int:id>", "server", "shop-nginx", …), …]  →  [RequestPath(worker, info, nginx)]

reqpath's spans carry every stamp as an attribute, so a path that comes back has the timing that it had, also
where a backend rounds a span's times to microseconds. Of plain OpenTelemetry instrumentation a SERVER span is
the app as a whole and the CLIENT spans of MySQL below it are its queries; all else about it is unknown, and
stays so. Source: OpenTelemetry's semantic conventions for HTTP and databases, the stable ones and those
before (`http.method`, `db.statement`), as opentelemetry-instrumentation 0.66 has both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final, Literal, cast
from urllib.parse import urlsplit

from reqpath import conventions as names
from reqpath.path import RequestPath
from reqpath.record import (
    FORMAT_VERSION,
    AppSpan,
    Attempt,
    AttributeValue,
    NginxRecord,
    Operation,
    SpanEvent,
    Transport,
    WorkerRecord,
    WriterInfo,
)
from reqpath.tiers import INDEX, WORKER_SEGMENTS
from reqpath.traces.span import Span

_Attributes = dict[str, AttributeValue]

_WORKER_SEGMENT_KEYS: Final = names.SEGMENT_KEYS[INDEX["flask.middleware"] : INDEX["uwsgi.send"] + 1]
_SEND_KEY: Final = names.SEGMENT_KEYS[INDEX["uwsgi.send"]]
_MASK: Final = (1 << 64) - 1
#: What can lie between a request's span and nginx's.
_AROUND: Final = frozenset((names.UWSGI, names.ATTEMPT, names.PROXY))
#: What can lie between an operation's span and its request's.
_WITHIN: Final = frozenset((names.VIEW, names.TEMPLATE))
_KINDS: Final = ("connect", "query", "commit", "rollback", "ping")
_CONNECT_PHASES: Final[tuple[str, ...]] = ("tls_context", "socket", "handshake", "setup")
_MYSQL: Final = ("mysql", "mariadb")
#: nginx's own module for OpenTelemetry takes the time from its event loop.
_NGINX_SCOPE: Final = "nginx"
_NGINX_RESOLUTION_NS: Final = 1_000_000
_APP: Final = WORKER_SEGMENTS.index("wsgi.app")
_QUERY: Final = WORKER_SEGMENTS.index("mysql.query")
_CONNECT: Final = WORKER_SEGMENTS.index("mysql.connect")


def build_paths(spans: Iterable[Span]) -> list[RequestPath]:
    """Build the paths of whole traces, in the order of their beginnings; spans of no request are left out."""
    traces: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    paths = [path for trace in traces.values() for path in _Trace(trace).build()]
    paths.sort(key=lambda path: path.timing.start_ns)
    return paths


class _Trace:
    """The spans of one trace, by id, by parent and by role."""

    def __init__(self, spans: list[Span]) -> None:
        self.spans = {span.span_id: span for span in spans}
        self.children: dict[str, list[Span]] = defaultdict(list)
        self.roles: dict[str, list[Span]] = defaultdict(list)
        for span in self.spans.values():
            self.children[span.parent_id].append(span)
            self.roles[_role(span)].append(span)
        #: The request's spans of reqpath, by the id of the one that the app's own SDK made below it.
        self.calls = {
            app_span: span
            for span in self.roles[names.REQUEST]
            if (app_span := _text(span.attributes, names.APP_SPAN)) and names.APP_TRACE not in span.attributes
        }
        self.operations: dict[str, list[Span]] = defaultdict(list)
        for span in self.roles[names.OPERATION]:
            request_id = _text(span.attributes, names.OF_REQUEST)
            request = self.climb(span, _WITHIN) if request_id is None else self.spans.get(request_id)
            if request is not None:
                self.operations[request.span_id].append(span)

    def build(self) -> Iterator[RequestPath]:
        """Yield the trace's paths: reqpath's, those of nginx alone, those of other instrumentation."""
        claimed = set()
        for span in self.roles[names.REQUEST]:
            if names.RETRIED in span.attributes:
                continue
            nginx = self._find_nginx(span)
            if nginx is not None:
                claimed.add(nginx.span_id)
            retried = tuple(
                self._build_worker(earlier)
                for link in span.links
                if names.RETRIED in link.attributes and (earlier := self.spans.get(link.span_id)) is not None
            )
            line = None if nginx is None else self._build_line(nginx)
            yield RequestPath(self._build_worker(span), _build_info(span), line, retried)
        for span in self.roles[names.NGINX]:
            if span.span_id not in claimed:
                yield RequestPath(None, None, self._build_line(span))
        yield from self._build_plain()

    def climb(self, span: Span, through: frozenset[str]) -> Span | None:
        """Return the nearest span above that is none of these roles; None where it is not in the trace."""
        above = self._find_above(span)
        seen = {span.span_id}
        while above is not None and _role(above) in through and above.span_id not in seen:
            seen.add(above.span_id)
            above = self._find_above(above)
        return above

    def _find_above(self, span: Span) -> Span | None:
        """Return the span above; of one below an SDK's span of the request, whether that is there or not."""
        return self.calls.get(span.parent_id) or self.spans.get(span.parent_id)

    def _find_nginx(self, request: Span) -> Span | None:
        above = self.climb(request, _AROUND)
        return above if above is not None and _role(above) == names.NGINX else None

    def _find_parent_id(self, request: Span) -> str:
        """Return the span that a worker was told to be called from."""
        span = request
        for _ in range(4):  # uWSGI's, an attempt's or a proxy's, and nginx's
            above = self.spans.get(span.parent_id)
            if above is None or _role(above) not in _AROUND:
                break
            span = above
        return span.parent_id

    def _build_worker(self, span: Span) -> WorkerRecord:
        own, of_app = _split_attributes(span.attributes)
        method, route = _read_method(own), _text(own, "http.route")
        app_start_ns = span.start_ns + (_int(own, names.APP_START) or 0)
        record = WorkerRecord(
            span.trace_id,
            span.span_id,
            self._find_parent_id(span),
            names.NOT_SAMPLED not in own,
            0,
            method,
            _text(own, "url.path") or "",
            route,
            _int(own, "http.response.status_code"),
            app_start_ns,
            None,
            _read_exclusive(own),
            host=_read_host(own),
            operations=self._build_operations(span, app_start_ns),
            dropped_operations=_int(own, names.DROPPED_OPERATIONS) or 0,
            attributes=of_app,
            rejected_stamps=_texts(own, names.REJECTED_STAMPS),
            timeline=_read_timeline(own),
            app_span=_read_app_span(own, span.trace_id),
            app_samples=names.APP_SAMPLES in own,
        )
        for key, field in names.WORKER_FIELDS.items():
            setattr(record, field, _transport(own) if field == "transport" else _int(own, key))
        for field, key in names.WORKER_INSTANTS.items():
            offset_ns = _int(own, key)
            if offset_ns is not None:
                setattr(record, field, app_start_ns + offset_ns)
        named_by_sdk = record.app_span is not None and record.app_span.trace_id == span.trace_id
        if span.name != names.name_request(method, route) and not named_by_sdk:
            record.span_name = span.name
        if names.APP_STATUS in own and span.status != "UNSET":
            record.span_status = (span.status, span.status_description)
        for event in span.events:
            if names.UNHANDLED in event.attributes:
                record.exception = (
                    _text(event.attributes, "exception.type") or "",
                    _text(event.attributes, "exception.message") or "",
                    _text(event.attributes, "exception.stacktrace") or "",
                )
            else:
                record.events.append(
                    SpanEvent(event.name, event.time_ns - app_start_ns, dict(event.attributes))
                )
        return record

    def _build_operations(self, request: Span, app_start_ns: int) -> list[Operation]:
        base = names.derive_base(request.trace_id, request.span_id)
        spans = self.operations[request.span_id]
        # Their ids count up in the order in which the worker kept them.
        spans.sort(key=lambda span: (int(span.span_id, 16) - base) & _MASK)
        return [_build_operation(span, app_start_ns) for span in spans]

    def _build_line(self, span: Span) -> NginxRecord:
        attributes = span.attributes
        record = NginxRecord(
            span.trace_id,
            span.span_id,
            span.end_ns,
            parent_id=span.parent_id,
            method=_read_method(attributes),
            path=_text(attributes, "url.path") or "",
            host=_read_host(attributes),
            attempts=[
                _build_attempt(attempt)
                for attempt in sorted(
                    (child for child in self.children[span.span_id] if _role(child) == names.ATTEMPT),
                    key=lambda child: _int(child.attributes, names.ATTEMPT_NUMBER) or 0,
                )
            ],
            sampled=names.NOT_SAMPLED not in attributes,
            protocol=_read_protocol(attributes),
        )
        for key, field in names.NGINX_FIELDS.items():
            value = _text(attributes, key) if field in _NGINX_TEXTS else _int(attributes, key)
            if value is not None:
                setattr(record, field, value)
        for field, key in names.NGINX_INSTANTS.items():
            offset_ns = _int(attributes, key)
            if offset_ns is not None:
                setattr(record, field, span.start_ns + offset_ns)
        return record

    # Other instrumentation's spans.

    def _build_plain(self) -> Iterator[RequestPath]:
        claimed = set()
        servers = [
            span
            for span in self.roles[""]
            if span.kind == "server" and _first(span.attributes, "http.request.method", "http.method")
        ]
        for span in servers:
            if span.scope == _NGINX_SCOPE or span.span_id in self.calls or self._is_within_request(span):
                continue
            above = self.spans.get(span.parent_id)
            if above is not None and above.kind == "client":
                above = self.spans.get(above.parent_id)
            nginx = above if above is not None and above.scope == _NGINX_SCOPE else None
            if nginx is not None:
                claimed.add(nginx.span_id)
            worker = self._build_plain_worker(span, nginx)
            yield RequestPath(worker, _build_info(span), None if nginx is None else _build_plain_line(nginx))
        for span in servers:
            if span.scope == _NGINX_SCOPE and span.span_id not in claimed:
                yield RequestPath(None, None, _build_plain_line(span))

    def _is_within_request(self, span: Span) -> bool:
        """Tell whether reqpath recorded the same request, which then has an instrumentation beside it."""
        seen = set()
        above = self.spans.get(span.parent_id)
        while above is not None and above.service == span.service and above.span_id not in seen:
            if _role(above) == names.REQUEST:
                return True
            seen.add(above.span_id)
            above = self.spans.get(above.parent_id)
        return False

    def _build_plain_worker(self, span: Span, nginx: Span | None) -> WorkerRecord:
        attributes = span.attributes
        duration_ns = max(0, span.end_ns - span.start_ns)
        operations = [
            _build_plain_operation(child, span.start_ns) for child in self._find_queries(span.span_id)
        ]
        operations.sort(key=lambda operation: operation.start_ns)
        method = _plain_method(attributes)
        return WorkerRecord(
            span.trace_id,
            span.span_id,
            span.parent_id if nginx is None else nginx.span_id,
            True,
            0,
            method,
            _plain_path(attributes),
            _text(attributes, "http.route"),
            _first_int(attributes, "http.response.status_code", "http.status_code"),
            span.start_ns,
            duration_ns,
            _split_plain(operations, duration_ns),
            host=_read_host(attributes) or _first(attributes, "http.host", "net.host.name"),
            operations=operations,
            exception=_plain_exception(span),
        )

    def _find_queries(self, span_id: str) -> Iterator[Span]:
        """Yield the CLIENT spans of MySQL below a span, down to the next request or query."""
        waiting, seen = [span_id], set()
        while waiting:
            above = waiting.pop()
            if above in seen:
                continue
            seen.add(above)
            for child in self.children[above]:
                if child.kind == "client" and _plain_system(child.attributes) in _MYSQL:
                    yield child
                elif child.kind != "server" and not _role(child):
                    waiting.append(child.span_id)


def _role(span: Span) -> str:
    """Return which of reqpath's spans it is; empty for any other's."""
    return _text(span.attributes, names.ROLE) or ""


def _text(attributes: _Attributes, key: str) -> str | None:
    value = attributes.get(key)
    return value if isinstance(value, str) else None


def _int(attributes: _Attributes, key: str) -> int | None:
    value = attributes.get(key)
    return value if type(value) is int else None


def _texts(attributes: _Attributes, key: str) -> list[str]:
    value = attributes.get(key)
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _transport(attributes: _Attributes) -> Transport | None:
    value = attributes.get("network.transport")
    return cast(Transport, value) if value in ("tcp", "unix") else None


def _split_attributes(attributes: _Attributes) -> tuple[_Attributes, _Attributes]:
    """Return reqpath's attributes of a request's span, and the app's."""
    doubled = _texts(attributes, names.APP_ATTRIBUTES)
    own: _Attributes = {}
    of_app: _Attributes = {}
    for key, value in attributes.items():
        if key.startswith(names.OWN):
            continue
        if key.startswith(names.OF_APP):
            of_app[key.removeprefix(names.OF_APP)] = value
            continue
        (own if key in names.REQUEST_KEYS and key not in doubled else of_app)[key] = value
    for key in doubled:
        kept = attributes.get(names.OWN + key)
        if kept is not None:
            own[key] = kept
    return own, of_app


def _read_method(attributes: _Attributes) -> str:
    original = _text(attributes, "http.request.method_original")
    return original if original is not None else _text(attributes, "http.request.method") or ""


def _read_host(attributes: _Attributes) -> str | None:
    address, port = _text(attributes, "server.address"), _int(attributes, "server.port")
    return address if address is None or port is None else f"{address}:{port}"


def _read_protocol(attributes: _Attributes) -> str | None:
    version = _text(attributes, "network.protocol.version")
    if version is None:
        return _text(attributes, names.PROTOCOL)
    return f"HTTP/{version}" if "." in version else f"HTTP/{version}.0"


def _read_exclusive(attributes: _Attributes) -> list[int | None]:
    values = [_int(attributes, key) for key in _WORKER_SEGMENT_KEYS]
    late_ns = _int(attributes, names.LATE)
    if late_ns is not None:
        values[-1] = (values[-1] or 0) + late_ns
    return values


def _read_timeline(attributes: _Attributes) -> list[int]:
    """Return the numbers of the time line; empty where something else put its hands on it."""
    try:
        numbers = [int(number) for number in (_text(attributes, names.TIMELINE) or "").split()]
    except ValueError:
        return []
    return numbers if len(numbers) % 2 == 0 else []


def _read_app_span(attributes: _Attributes, trace_id: str) -> AppSpan | None:
    span_id = _text(attributes, names.APP_SPAN)
    if span_id is None:
        return None
    start_ns, end_ns = (_int(attributes, key) for key in names.APP_SPAN_FIELDS)
    return AppSpan(_text(attributes, names.APP_TRACE) or trace_id, span_id, start_ns or 0, end_ns)


def _build_operation(span: Span, app_start_ns: int) -> Operation:
    attributes = span.attributes
    start_ns = span.start_ns - app_start_ns
    kind = attributes.get("reqpath.kind")
    operation = Operation(
        cast(Literal["query"], kind if kind in _KINDS else "query"),
        start_ns,
        # Where the app's SDK has the call's span, this one is the server's.
        start_ns + (_int(attributes, names.OPERATION_END) or 0)
        if names.OPERATION_END in attributes
        else span.end_ns - app_start_ns,
        rows=_first_int(attributes, names.RETURNED_ROWS, names.AFFECTED_ROWS),
        error=_read_error(attributes),
        concurrent=names.CONCURRENT in attributes,
        phases=_read_phases(attributes),
        app_span_id=_text(attributes, names.APP_SPAN),
    )
    for key, field in names.OPERATION_FIELDS.items():
        if field not in ("kind", "transport"):
            value = attributes.get(key)
            if isinstance(value, str if field in _TEXT_FIELDS else int):
                setattr(operation, field, value)
    operation.transport = _transport(attributes)
    first_byte_ns = _int(attributes, names.FIRST_BYTE)
    if first_byte_ns is not None:
        operation.first_byte_ns = start_ns + first_byte_ns
    return operation


_NGINX_TEXTS: Final = ("cache_status", "scheme", "client_address", "user_agent")
_TEXT_FIELDS: Final = ("statement", "namespace", "server_address")


def _read_error(attributes: _Attributes) -> str | None:
    kind, code = _text(attributes, "error.type"), _text(attributes, "db.response.status_code")
    return kind if kind is None or code is None else f"{kind}: {code}"


def _read_phases(attributes: _Attributes) -> list[tuple[str, int]]:
    """Return a connect's phases in the order in which they happen, whatever a backend made of it."""
    found = {
        key.removeprefix(names.PHASE).removesuffix("_ns"): value
        for key, value in attributes.items()
        if key.startswith(names.PHASE) and type(value) is int
    }
    known = [name for name in _CONNECT_PHASES if name in found]
    return [(name, found[name]) for name in dict.fromkeys([*known, *found])]


def _build_attempt(span: Span) -> Attempt:
    attributes = span.attributes
    return Attempt(
        _text(attributes, names.UPSTREAM) or "",
        *(_int(attributes, key) for key in names.ATTEMPT_FIELDS),
    )


def _build_info(span: Span) -> WriterInfo:
    """Build what is known of the process whose span it is."""
    resource = span.resource
    concurrency = resource.get("reqpath.concurrency")
    return WriterInfo(
        FORMAT_VERSION,
        _text(resource, "service.instance.id") or "",
        "worker",
        span.service,
        _text(resource, "host.name") or "",
        _int(resource, "process.pid") or 0,
        _int(resource, "reqpath.created_ns") or 0,
        _text(resource, "reqpath.version") or "",
        _int(resource, "reqpath.worker"),
        _int(resource, "reqpath.processes"),
        _int(resource, "reqpath.threads"),
        cast(
            Literal["unknown"],
            concurrency if concurrency in ("processes", "threads", "greenlets") else "unknown",
        ),
        _text(resource, "reqpath.server"),
    )


# Of other instrumentation's spans.


def _first(attributes: _Attributes, *keys: str) -> str | None:
    """Return the first of these attributes that is there and text."""
    return next((value for key in keys if (value := _text(attributes, key)) is not None), None)


def _first_int(attributes: _Attributes, *keys: str) -> int | None:
    return next((value for key in keys if (value := _int(attributes, key)) is not None), None)


def _plain_method(attributes: _Attributes) -> str:
    original = _text(attributes, "http.request.method_original")
    return original or _first(attributes, "http.request.method", "http.method") or ""


def _plain_path(attributes: _Attributes) -> str:
    """Return the path without the query string, which older conventions have in one attribute."""
    path = _text(attributes, "url.path")
    if path is not None:
        return path
    target = _first(attributes, "http.target", "http.url", "url.full") or ""
    try:
        return urlsplit(target).path
    except ValueError:
        return target.partition("?")[0]


def _plain_system(attributes: _Attributes) -> str | None:
    return _first(attributes, "db.system.name", "db.system")


def _plain_exception(span: Span) -> tuple[str, str, str] | None:
    """Return the exception that ended the request, where it failed with one."""
    if span.status != "ERROR":
        return None
    for event in reversed(span.events):
        if event.name == "exception":
            return (
                _text(event.attributes, "exception.type") or "",
                _text(event.attributes, "exception.message") or "",
                _text(event.attributes, "exception.stacktrace") or "",
            )
    return None


def _build_plain_line(span: Span) -> NginxRecord:
    """Build nginx's line of a span of nginx's own module; whether it asked an upstream is not told."""
    attributes = span.attributes
    status = _first_int(attributes, "http.response.status_code", "http.status_code")
    return NginxRecord(
        span.trace_id,
        span.span_id,
        span.end_ns,
        parent_id=span.parent_id,
        start_ns=span.start_ns,
        resolution_ns=_NGINX_RESOLUTION_NS,
        status=status,
        method=_plain_method(attributes),
        path=_plain_path(attributes),
        host=_read_host(attributes) or _first(attributes, "http.host", "net.host.name"),
        attempts=[Attempt("", status)],
    )


def _build_plain_operation(span: Span, app_start_ns: int) -> Operation:
    attributes = span.attributes
    error = _read_error(attributes)
    if error is None and span.status == "ERROR":
        error = "error"
    statement = _first(attributes, "db.query.text", "db.statement")
    return Operation(
        "connect" if statement is None and span.name == "connect" else "query",
        span.start_ns - app_start_ns,
        max(span.start_ns, span.end_ns) - app_start_ns,
        statement=statement,
        rows=_int(attributes, names.RETURNED_ROWS),
        error=error,
        transport=_transport(attributes),
        server_address=_first(attributes, "server.address", "net.peer.name"),
        server_port=_first_int(attributes, "server.port", "net.peer.port"),
        namespace=_first(attributes, "db.namespace", "db.name"),
        batch_size=_int(attributes, "db.operation.batch.size"),
    )


def _split_plain(operations: list[Operation], duration_ns: int) -> list[int | None]:
    """Split a SERVER span's time into its queries' and the app's; mark queries that ran beside others.

    `operations` are in the order of their starts. A query's span holds its fetching as well; Flask's parts
    and templates are within the app's.
    """
    exclusive_ns: list[int | None] = [None] * len(WORKER_SEGMENTS)
    until_ns = spent_ns = 0
    for operation in operations:
        start_ns = max(operation.start_ns, until_ns)
        end_ns = min(operation.end_ns, duration_ns)
        if operation.start_ns < until_ns or operation.end_ns > duration_ns:
            operation.concurrent = True
        taken_ns = max(0, end_ns - start_ns)
        segment = _CONNECT if operation.kind == "connect" else _QUERY
        exclusive_ns[segment] = (exclusive_ns[segment] or 0) + taken_ns
        spent_ns += taken_ns
        until_ns = max(until_ns, end_ns)
    exclusive_ns[_APP] = duration_ns - spent_ns
    return exclusive_ns
