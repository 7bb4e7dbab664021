"""What one process knows about one request, as it is kept in the spool.

Three records, all msgpack arrays with a leading tag (`msgspec` structs): `WorkerRecord` is written by the
app's process when the response body is closed, `NginxRecord` by the collector for each access-log line, and
`WriterInfo` opens every spool file and holds what is the same for all its records.

The order of the fields is the format: new fields go to the end and have defaults, so that older readers
skip them and newer readers fill them in.

Example::

    >>> decode_record(encode(NginxRecord(trace_id="0" * 31 + "1", span_id="0" * 15 + "2", end_ns=7)))
    NginxRecord(trace_id='00000000000000000000000000000001', ...)
"""

from __future__ import annotations

from typing import Literal

import msgspec

#: Bumped when a reader of the old format can't make sense of the new one.
FORMAT_VERSION = 3

#: A value that OpenTelemetry allows for an attribute; a list is of one kind.
AttributeValue = str | bool | int | float | list[str | bool | int | float]
Transport = Literal["tcp", "unix"]


class Operation(msgspec.Struct, array_like=True, gc=False):
    """One database operation as the client saw it; instants are ns since `WorkerRecord.app_start_ns`.

    `kind` is connect, query, commit, rollback or (not shown as a query) ping.
    """

    kind: Literal["connect", "query", "commit", "rollback", "ping"]
    start_ns: int
    end_ns: int
    #: First byte of the reply. None where the hooks could not see it.
    first_byte_ns: int | None = None
    #: The statement with placeholders; never its values.
    statement: str | None = None
    #: Rows returned or affected; None when unknown (an unbuffered read that was left).
    rows: int | None = None
    #: `Class: code` of the error that the app saw, without the message, which may hold values.
    error: str | None = None
    transport: Transport | None = None
    #: Host name, or path of the socket.
    server_address: str | None = None
    server_port: int | None = None
    namespace: str | None = None
    #: Of `executemany`: how many parameter sets; None for a single one.
    batch_size: int | None = None
    #: Ran on another thread or greenlet than the request's, so its time is in no segment.
    concurrent: bool = False
    #: Of a connect: (name, ns) in order: tls_context, socket, handshake, setup.
    phases: list[tuple[str, int]] = []
    #: Which of the process's connections, so that reuse can be seen; unique within the process.
    connection: int | None = None
    #: Of a query: ns of its reply spent fetching and decoding while it was this request's turn.
    fetch_ns: int | None = None
    #: The span that the app's own OpenTelemetry instrumentation makes of the call, and exports.
    app_span_id: str | None = None


class SpanEvent(msgspec.Struct, array_like=True, gc=False):
    """An event that the app put on the request's span; `time_ns` is ns since `app_start_ns`."""

    name: str
    time_ns: int
    attributes: dict[str, AttributeValue] = {}


class AppSpan(msgspec.Struct, array_like=True, gc=False):
    """The request's span of the app's own OpenTelemetry SDK, which exports it; ns since `app_start_ns`."""

    #: Another than the record's where the app was called with ids that nginx does not know.
    trace_id: str
    span_id: str
    start_ns: int
    #: None where it ends after the request.
    end_ns: int | None = None


class WorkerRecord(msgspec.Struct, array_like=True, tag=1, gc=False):
    """One request in one worker; offsets are ns since `app_start_ns`, None means unknown."""

    trace_id: str
    span_id: str
    #: nginx's span, or the caller's where no proxy handed on its own; empty at a root.
    parent_id: str
    sampled: bool
    #: Counts up by one per record and process; gaps are losses.
    sequence: int
    method: str
    #: Without the query string unless the settings say otherwise.
    path: str
    route: str | None
    status: int | None
    app_start_ns: int
    closed_offset_ns: int | None
    #: Exclusive time of each of `tiers.WORKER_SEGMENTS`, in their order; None where not instrumented.
    exclusive_ns: list[int | None]
    nginx_start_ns: int | None = None
    nginx_pass_ns: int | None = None
    #: Of the two above: 1_000_000 for stock nginx, 1_000 with its perl module.
    nginx_resolution_ns: int | None = None
    accept_ns: int | None = None
    parsed_ns: int | None = None
    flask_start_offset_ns: int | None = None
    view_start_offset_ns: int | None = None
    view_end_offset_ns: int | None = None
    response_start_offset_ns: int | None = None
    #: Of the thread, from `app_start` to the end. None under greenlets, where a thread is many requests.
    cpu_ns: int | None = None
    #: Time the scheduler let the runnable thread wait.
    run_queue_ns: int | None = None
    #: uWSGI's core: the thread or greenlet slot within the worker.
    core: int | None = None
    transport: Transport | None = None
    host: str | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None
    operations: list[Operation] = []
    #: Operations beyond the limit: in the segments, not in the list.
    dropped_operations: int = 0
    #: What the app set on the current span.
    span_name: str | None = None
    attributes: dict[str, AttributeValue] = {}
    events: list[SpanEvent] = []
    #: OpenTelemetry's status of the span, when the app set it: ("OK" | "ERROR", description).
    span_status: tuple[str, str | None] | None = None
    #: (type, message, stack) of the exception that the app did not handle.
    exception: tuple[str, str, str] | None = None
    #: Names of stamps that were there and not believed: garbage, forged, before 2000, in the future.
    rejected_stamps: list[str] = []
    #: The server called `close()`: it had sent the body. None where there was nothing to close.
    closing_offset_ns: int | None = None
    #: When the request entered which segment: (index in `tiers.WORKER_SEGMENTS`, ns) of each switch, flat;
    #: the last one is the end. Kept where a template was rendered, whose instants nothing else has, and empty
    #: where there were too many switches to keep.
    timeline: list[int] = []
    #: Where the app's own instrumentation makes a sampled span of the request; its parent is `span_id`.
    app_span: AppSpan | None = None
    #: The app's own SDK was told that the trace is sampled, by its own sampler: it may export spans of it.
    app_samples: bool = False


class Attempt(msgspec.Struct, array_like=True, gc=False):
    """One upstream that nginx tried, as its comma-separated variables list them."""

    address: str
    status: int | None = None
    connect_ns: int | None = None
    header_ns: int | None = None
    response_ns: int | None = None


class NginxRecord(msgspec.Struct, array_like=True, tag=2, gc=False):
    """One access-log line; instants are ns since the epoch."""

    trace_id: str
    span_id: str
    end_ns: int
    sequence: int = 0
    #: The caller's span, when a trusted client's trace is continued.
    parent_id: str = ""
    start_ns: int | None = None
    pass_ns: int | None = None
    #: 1_000_000 for stock nginx, 1_000 with its perl module.
    resolution_ns: int = 1_000_000
    status: int | None = None
    method: str = ""
    path: str = ""
    host: str | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None
    attempts: list[Attempt] = []
    cache_status: str | None = None
    sampled: bool = True
    protocol: str | None = None
    scheme: str | None = None
    client_address: str | None = None
    user_agent: str | None = None


class WriterInfo(msgspec.Struct, array_like=True, tag=0, frozen=True, gc=False):
    """Who writes a spool file: the first record in it."""

    format_version: int
    #: Unique to the process; random.
    writer_id: str
    kind: Literal["worker", "nginx"]
    service_name: str
    host: str
    pid: int
    created_ns: int
    reqpath_version: str
    #: uWSGI's number of the worker, from 1; None outside uWSGI.
    worker: int | None = None
    processes: int | None = None
    threads: int | None = None
    #: How requests run side by side in the process.
    concurrency: Literal["processes", "threads", "greenlets", "unknown"] = "unknown"
    server: str | None = None


Record = WorkerRecord | NginxRecord

_encoder = msgspec.msgpack.Encoder()
#: Encodes any of the structs above to msgpack bytes.
encode = _encoder.encode
#: The same, into a `bytearray` from an offset on, which it then ends with.
encode_into = _encoder.encode_into
#: Decodes one `WorkerRecord` or `NginxRecord`. Raises: msgspec.DecodeError, UnicodeDecodeError.
decode_record = msgspec.msgpack.Decoder(Record).decode
#: Decodes the `WriterInfo` at a file's start. Raises: msgspec.DecodeError, UnicodeDecodeError.
decode_info = msgspec.msgpack.Decoder(WriterInfo).decode


def operation_time_ns(operation: Operation) -> int:
    """Return how long the client was at an operation, without what it did between two fetches."""
    if operation.fetch_ns is None or operation.first_byte_ns is None:
        return operation.end_ns - operation.start_ns
    return operation.first_byte_ns - operation.start_ns + operation.fetch_ns
