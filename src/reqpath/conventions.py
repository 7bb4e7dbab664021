"""Names on reqpath's spans: what the collector writes into them and what a reader finds in them again.

The one list of them, for `collect.spans` and `traces.paths`. Where OpenTelemetry's semantic conventions have
a name it is theirs; ours begin with `reqpath.`. docs/spans.md says what each of ours means and excludes::

    {"reqpath.span": "request", "http.route": "/items/<int:id>", "reqpath.mysql.query_ns": 1_200_000, …}
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from reqpath.path import METHODS
from reqpath.tiers import NAMES

#: What all names begin with that are reqpath's alone.
PREFIX: Final = "reqpath."
#: Name of the instrumentation scope of all of reqpath's spans.
SCOPE: Final = "reqpath"

#: What a span is; its values follow.
ROLE: Final = "reqpath.span"
NGINX: Final = "nginx"
PROXY: Final = "proxy"
ATTEMPT: Final = "attempt"
QUEUE: Final = "queue"
UWSGI: Final = "uwsgi"
GIL: Final = "gil"
REQUEST: Final = "request"
VIEW: Final = "view"
TEMPLATE: Final = "template"
OPERATION: Final = "operation"
SERVER: Final = "server"
ROLES: Final = (NGINX, PROXY, ATTEMPT, QUEUE, UWSGI, GIL, REQUEST, VIEW, TEMPLATE, OPERATION, SERVER)

#: Of the ids that `derive_base` gives, those of these spans begin here; an operation takes two, the second
#: for its server's.
FIRST_ATTEMPT: Final = 16
FIRST_TEMPLATE: Final = 1_024
FIRST_OPERATION: Final = 65_536

#: Appended to the app's `service.name`, one for each tier but the app's own.
NGINX_SUFFIX: Final = "-nginx"
UWSGI_SUFFIX: Final = "-uwsgi"
MYSQL_SUFFIX: Final = "-mysql"

#: Fields of `WriterInfo` that a resource has as `reqpath.<field>`, where they are known.
INFO_FIELDS: Final = ("worker", "processes", "threads", "server")

# On the span that a path's times are on: the request's, or nginx's where no worker recorded the request.
#: One per `tiers.SEGMENTS`; an unknown one is absent.
SEGMENT_KEYS: Final = tuple(f"reqpath.{name}_ns" for name in NAMES)
TOTAL: Final = "reqpath.total_ns"
RESIDUAL: Final = "reqpath.residual_ns"
RESOLUTION: Final = "reqpath.resolution_ns"
MISSING: Final = "reqpath.missing"
SKEWED: Final = "reqpath.skewed"
CLAMPED: Final = "reqpath.clamped"
ABANDONED: Final = "reqpath.abandoned"
#: What of the worker's sending came after nginx had ended, and so is not in `reqpath.uwsgi.send_ns`.
LATE: Final = "reqpath.late_ns"
#: Why the keep policy exported the path.
KEPT: Final = "reqpath.kept"
CLOCK_CORRECTION: Final = "reqpath.clock.correction_ns"
CLOCK_LOWER: Final = "reqpath.clock.lower_ns"
CLOCK_UPPER: Final = "reqpath.clock.upper_ns"

#: On the request's span: stamps of nginx and uWSGI, as ns since the span's start.
WORKER_INSTANTS: Final = {
    "nginx_start_ns": "reqpath.nginx_start_offset_ns",
    "nginx_pass_ns": "reqpath.nginx_pass_offset_ns",
    "accept_ns": "reqpath.accept_offset_ns",
    "parsed_ns": "reqpath.parsed_offset_ns",
}
#: On the request's span: fields of `WorkerRecord` as they are.
WORKER_FIELDS: Final = {
    "http.request.body.size": "request_bytes",
    "http.response.body.size": "response_bytes",
    "network.transport": "transport",
    **{
        f"reqpath.{field}": field
        for field in (
            "nginx_resolution_ns",
            "closed_offset_ns",
            "flask_start_offset_ns",
            "view_start_offset_ns",
            "view_end_offset_ns",
            "response_start_offset_ns",
            "closing_offset_ns",
            "cpu_ns",
            "run_queue_ns",
            "core",
        )
    },
}
#: The span that the app's own SDK made and exports: of the request, and on a server's span of the statement.
APP_SPAN: Final = "reqpath.app_span"
#: Its trace, where that is another one: the app was called with ids that nginx does not know.
APP_TRACE: Final = "reqpath.app_trace"
#: On the request's span: fields of `AppSpan` as they are, and how much later the app was entered than the
#: span starts, which holds the SDK's.
APP_SPAN_FIELDS: Final = {
    "reqpath.app_span_start_offset_ns": "start_ns",
    "reqpath.app_span_end_offset_ns": "end_ns",
}
APP_START: Final = "reqpath.app_start_offset_ns"
#: The app's own SDK may have exported spans of the trace.
APP_SAMPLES: Final = "reqpath.app_samples"
#: The name of the request's span where the app's own SDK makes the one that has its name.
CALL: Final = "wsgi"
#: On a server's span that stands for an operation whose own span the app's SDK made: the request it is of,
#: and its end, as ns since the span's start.
OF_REQUEST: Final = "reqpath.request_span"
OPERATION_END: Final = "reqpath.end_offset_ns"
DROPPED_OPERATIONS: Final = "reqpath.dropped_operations"
REJECTED_STAMPS: Final = "reqpath.rejected_stamps"
#: Numbers of `WorkerRecord.timeline`, as text: "2 0 3 120000 2 560000".
TIMELINE: Final = "reqpath.timeline"
#: Of a worker's record that nginx gave up, to go on to another worker.
RETRIED: Final = "reqpath.retried"
#: The app set the span's status.
APP_STATUS: Final = "reqpath.app_status"
#: The app set these attributes of the conventions, which reqpath has as well: its own values are under `OWN`.
APP_ATTRIBUTES: Final = "reqpath.app_attributes"
OWN: Final = "reqpath.own."
#: Under which the app's values are of attributes that are reqpath's alone.
OF_APP: Final = "reqpath.app."
#: On the `exception` event of the exception that left the app.
UNHANDLED: Final = "reqpath.unhandled"
#: The caller did not ask for the trace to be sampled, or the sampler of the app's own SDK said no.
NOT_SAMPLED: Final = "reqpath.not_sampled"

#: On nginx's span: its own stamps, as ns since the span's start.
NGINX_INSTANTS: Final = {
    "start_ns": "reqpath.start_offset_ns",
    "pass_ns": "reqpath.pass_offset_ns",
    "end_ns": "reqpath.end_offset_ns",
}
#: On nginx's span: fields of `NginxRecord` as they are.
NGINX_FIELDS: Final = {
    "http.request.size": "request_bytes",
    "http.response.size": "response_bytes",
    "http.response.status_code": "status",
    "url.scheme": "scheme",
    "client.address": "client_address",
    "user_agent.original": "user_agent",
    "reqpath.cache_status": "cache_status",
    "reqpath.nginx_resolution_ns": "resolution_ns",
}
#: Of those, what the conventions want on the request's span as well.
FROM_NGINX: Final = {
    "url.scheme": "scheme",
    "client.address": "client_address",
    "user_agent.original": "user_agent",
}
#: nginx's protocol, where it is not HTTP in one of the forms that the conventions know.
PROTOCOL: Final = "reqpath.protocol"
CLIENT_GONE: Final = "reqpath.client_gone"

#: On an attempt's span.
UPSTREAM: Final = "reqpath.upstream"
ATTEMPT_NUMBER: Final = "reqpath.attempt"
ATTEMPT_FIELDS: Final = {
    "http.response.status_code": "status",
    "reqpath.connect_ns": "connect_ns",
    "reqpath.header_ns": "header_ns",
    "reqpath.response_ns": "response_ns",
}

#: On a database operation's span: fields of `Operation` as they are.
OPERATION_FIELDS: Final = {
    "db.query.text": "statement",
    "db.namespace": "namespace",
    "db.operation.batch.size": "batch_size",
    "network.transport": "transport",
    "server.address": "server_address",
    "server.port": "server_port",
    "reqpath.kind": "kind",
    "reqpath.fetch_ns": "fetch_ns",
    "reqpath.connection": "connection",
}
#: On a database operation's span, as ns since the span's start.
FIRST_BYTE: Final = "reqpath.first_byte_ns"
RETURNED_ROWS: Final = "db.response.returned_rows"
AFFECTED_ROWS: Final = "reqpath.affected_rows"
CONCURRENT: Final = "reqpath.concurrent"
#: Of a connect, each of its phases: `reqpath.phase.handshake_ns`.
PHASE: Final = "reqpath.phase."
#: Who measured a span of a database server.
MEASURED_BY: Final = "reqpath.measured_by"

#: What reqpath may write on the request's span; any other attribute there is the app's.
REQUEST_KEYS: Final = frozenset(
    (
        ROLE,
        "http.request.method",
        "http.request.method_original",
        "http.response.status_code",
        "http.route",
        "url.path",
        "server.address",
        "server.port",
        "error.type",
        "network.protocol.version",
        PROTOCOL,
        *FROM_NGINX,
        *WORKER_FIELDS,
        *WORKER_INSTANTS.values(),
        *SEGMENT_KEYS,
        TOTAL,
        RESIDUAL,
        RESOLUTION,
        MISSING,
        SKEWED,
        CLAMPED,
        ABANDONED,
        LATE,
        KEPT,
        CLOCK_CORRECTION,
        CLOCK_LOWER,
        CLOCK_UPPER,
        DROPPED_OPERATIONS,
        REJECTED_STAMPS,
        TIMELINE,
        RETRIED,
        APP_STATUS,
        APP_ATTRIBUTES,
        APP_SPAN,
        APP_TRACE,
        *APP_SPAN_FIELDS,
        APP_START,
        APP_SAMPLES,
        NOT_SAMPLED,
    )
)


def derive_base(trace_id: str, span_id: str) -> int:
    """Return the number from which the ids of spans that reqpath makes around this one are counted.

    A function of the two ids alone, so that a path that is exported again has the same spans.
    """
    return int.from_bytes(blake2b(f"{trace_id}{span_id}".encode(), digest_size=8).digest())


def name_request(method: str, route: str | None) -> str:
    """Name a server's span. Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/#name."""
    method = method if method in METHODS else "HTTP"
    return f"{method} {route}" if route else method
