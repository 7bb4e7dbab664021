"""What a worker notes of a request as it is, and the `WorkerRecord` that a reader makes of it.

A worker's time is its users' time, a reader's is not. So the worker copies strings out of the WSGI environ,
marks instants in a list and writes both; which stamps to believe, how long each segment was and what a mark
means is worked out here, when the record is read::

    worker: RawRecord ─► spool ─► complete_record ─► WorkerRecord: join, report, spans

The order of the fields is the format, as in `record`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from operator import attrgetter, sub
from typing import Any, Final, Literal

import msgspec

from reqpath.record import (
    AppSpan,
    AttributeValue,
    Operation,
    SpanEvent,
    Transport,
    WorkerRecord,
)
from reqpath.stamps import ALWAYS_COPIED, ENVIRON_KEYS, is_digits, read_stamps
from reqpath.tiers import WORKER_SEGMENTS

# What a mark says: the index of the segment that was entered, in `tiers.WORKER_SEGMENTS`, or one of these,
# which are Flask's own instants as well.
#: Flask is called: its framework.
FLASK_START: Final = len(WORKER_SEGMENTS)
#: The view is called.
VIEW_START: Final = FLASK_START + 1
#: The view has returned: the framework again.
VIEW_END: Final = FLASK_START + 2
#: The reply to the statement that was sent asks for a file (LOAD DATA LOCAL).
ASKED_FOR_FILE: Final = FLASK_START + 3
#: More of an earlier reply is read. `mysql.fetch` itself is the mark of a reply's first packet.
READ: Final = FLASK_START + 4
#: The segment of each mark.
SEGMENT_OF: Final = (
    *range(len(WORKER_SEGMENTS)),
    *(
        WORKER_SEGMENTS.index(name)
        for name in ("flask.framework", "flask.view", "flask.framework", "mysql.query", "mysql.fetch")
    ),
)
#: A bit of `RawRecord.unmeasured` beside those of segments: first packets are not seen in this process.
NO_FIRST_PACKETS: Final = 1 << len(WORKER_SEGMENTS)
_TEMPLATE: Final = WORKER_SEGMENTS.index("flask.template")
_QUERY: Final = WORKER_SEGMENTS.index("mysql.query")
_FETCH: Final = WORKER_SEGMENTS.index("mysql.fetch")
_COMMIT: Final = WORKER_SEGMENTS.index("mysql.commit")
_SEND: Final = WORKER_SEGMENTS.index("uwsgi.send")
_SEGMENTS: Final = len(WORKER_SEGMENTS)
FLASK_SEGMENTS: Final = frozenset(
    index for index, name in enumerate(WORKER_SEGMENTS) if name.startswith("flask.")
)

#: `RawRecord.end`: at the last mark the body was closed; it never was; the server sends it by itself, later.
CLOSED: Final = 0
NOT_CLOSED: Final = 1
NOT_SENT: Final = 2

#: How many of `RawRecord.statements` are one.
STATEMENT_ITEMS: Final = 5

#: `RawOperation.first_byte_ns`: the reply is one packet; it is not known.
ONE_PACKET: Final = 0
NOT_SEEN: Final = -1

_MAX_PATH: Final = 1024
#: PyMySQL says so of an unbuffered result, whose number of rows it does not know.
_UNKNOWN_ROWS: Final = (1 << 64) - 1

#: What a record that makes no sense raises while it is completed.
_SENSELESS: Final = (TypeError, ValueError, IndexError, AttributeError)
_OPTIONAL_TEXT: Final = (str, type(None))

#: Of a database connection: transport, host name or path of the socket, port, database, number.
Link = tuple[Transport | None, str | None, int | None, str | None, int]


class RawOperation(msgspec.Struct, array_like=True, gc=False):
    """A database operation, with instants of the monotonic clock; the rest as in `record.Operation`.

    Most queries are noted in `RawRecord.statements` instead.
    """

    start_ns: int
    #: First byte of the reply, or `ONE_PACKET` or `NOT_SEEN`.
    first_byte_ns: int
    end_ns: int
    statement: str | None
    #: What the driver returned; a number of rows only where it is one.
    rows: Any
    link: Link
    kind: Literal["connect", "query", "commit", "rollback", "ping"] = "query"
    batch_size: int | None = None
    error: str | None = None
    concurrent: bool = False
    phases: list[tuple[str, int]] = []
    #: Where it is not from the first byte to the end.
    fetch_ns: int | None = None
    app_span_id: str | None = None


class Identity(msgspec.Struct, array_like=True, gc=False):
    """The ids of a request for which they were needed while it ran, as in `record.WorkerRecord`."""

    trace_id: str
    span_id: str
    parent_id: str
    sampled: bool


class AppNotes(msgspec.Struct, array_like=True, gc=False):
    """What the app's code, or its own OpenTelemetry, did to the request; as in `record.WorkerRecord`."""

    span_name: str | None = None
    attributes: dict[str, AttributeValue] = {}
    events: list[SpanEvent] = []
    span_status: tuple[str, str | None] | None = None
    exception: tuple[str, str, str] | None = None
    app_span: AppSpan | None = None
    app_samples: bool = False


class Marks(msgspec.Struct, array_like=True, gc=False):
    """A request's marks summed up: there were too many to keep. Instants are monotonic, None is no mark."""

    exclusive_ns: list[int]
    start_ns: int
    flask_start_ns: int | None
    view_start_ns: int | None
    view_end_ns: int | None


#: What a `RawRecord` begins with where it is written, as a list of its values.
RAW_TAG: Final = 4


class RawRecord(msgspec.Struct, array_like=True, tag=RAW_TAG, gc=False):
    """One request as its worker noted it; a worker's instants are of its monotonic clock."""

    #: The wall clock at the first mark.
    app_start_ns: int
    #: The values of `stamps.ENVIRON_KEYS`; None is not there, or not to be believed or kept.
    environ: list[Any]
    #: (mark, instant) of each change of segment, flat; the last is the end.
    marks: list[int]
    #: The span id, if nobody asked for it.
    span_bits: int
    #: Segments that no hook measures, by a bit for each index.
    unmeasured: int
    transport: Transport | None
    sequence: int = 0
    #: Of each query that went as most do: start, end, statement, what the driver returned, `Link`; flat. Its
    #: first packet is the `mysql.fetch` that is marked between the two instants.
    statements: list[Any] = []
    operations: list[RawOperation] = []
    #: The status line.
    status: Any = None
    route: str | None = None
    response_start_ns: int | None = None
    closing_ns: int | None = None
    response_bytes: int | None = None
    #: The thread's CPU clock at the beginning and at the end.
    cpu_start_ns: int | None = None
    cpu_end_ns: int | None = None
    run_queue_ns: int | None = None
    end: int = CLOSED
    dropped_operations: int = 0
    identity: Identity | None = None
    notes: AppNotes | None = None
    #: What was marked before the first of `marks`.
    folded: Marks | None = None


def index_of(field: str) -> int:
    """Return where a field of `RawRecord` is in the list that is written of it."""
    return 1 + RawRecord.__struct_fields__.index(field)


def sum_marks(marks: list[int], folded: Marks | None = None) -> Marks:
    """Sum up what is marked, in addition to what was before; the last mark's segment has no time yet."""
    codes, instants_ns = marks[::2], marks[1::2]
    sums = [0] * _SEGMENTS
    for code, duration_ns in zip(codes, map(sub, instants_ns[1:], instants_ns)):  # noqa: B905 - one less
        sums[SEGMENT_OF[code]] += duration_ns
    flask_start_ns = instants_ns[codes.index(FLASK_START)] if FLASK_START in codes else None
    view_start_ns = instants_ns[codes.index(VIEW_START)] if VIEW_START in codes else None
    view_end_ns = instants_ns[codes.index(VIEW_END)] if VIEW_END in codes else None
    if folded is None:
        return Marks(sums, instants_ns[0], flask_start_ns, view_start_ns, view_end_ns)
    return Marks(
        [before + more for before, more in zip(folded.exclusive_ns, sums, strict=True)],
        folded.start_ns,
        flask_start_ns if folded.flask_start_ns is None else folded.flask_start_ns,
        view_start_ns if folded.view_start_ns is None else folded.view_start_ns,
        view_end_ns if folded.view_end_ns is None else folded.view_end_ns,
    )


def take_statement(statements: list[Any], at: int, marks: list[int], unmeasured: int) -> RawOperation:
    """Return as an operation the one that begins at index `at` of `RawRecord.statements`."""
    start_ns, end_ns, statement, rows, link = statements[at : at + STATEMENT_ITEMS]
    first_byte_ns = find_first_byte(marks[::2], marks[1::2], start_ns, unmeasured)
    return RawOperation(start_ns, first_byte_ns, end_ns, statement, rows, link)


def find_first_byte(codes: list[int], instants_ns: list[int], start_ns: int, unmeasured: int) -> int:
    """Return `RawOperation.first_byte_ns` of the command that began at `start_ns`, by what was marked."""
    try:
        at = instants_ns.index(start_ns)
        while codes[at] != _QUERY and codes[at] != _COMMIT:
            at = instants_ns.index(start_ns, at + 1)
    except ValueError:
        # It has been summed up.
        return NOT_SEEN
    # Until the mark by which the command is left.
    reading = False
    for code in codes[at + 1 :]:
        at += 1
        if code == _FETCH:
            return instants_ns[at]
        if code == ASKED_FOR_FILE:
            return NOT_SEEN
        if code != READ and not reading:
            break
        # What was left of an earlier reply, and the way back.
        reading = code == READ
    return NOT_SEEN if unmeasured & NO_FIRST_PACKETS else ONE_PACKET


def read_path(environ: Sequence[Any]) -> str:
    """Return the request's path out of the values of `ENVIRON_KEYS`, bounded."""
    path: str = environ[4] or ""
    if script := environ[5]:
        path = script + path
    if len(environ) > ALWAYS_COPIED and environ[9]:
        path = f"{path}?{environ[9]}"
    if not path.isascii():
        # PEP 3333: bytes travel as latin-1.
        path = path.encode("latin-1", "replace").decode("utf-8", "replace")
    return path[:_MAX_PATH]


def complete_record(raw: RawRecord, writer_id: str) -> WorkerRecord:
    """Make of what a worker has noted the record of its request; `writer_id` is `WriterInfo.writer_id`.

    Raises: msgspec.ValidationError for what no worker writes.
    """
    with contextlib.suppress(*_SENSELESS):
        return _complete(raw, writer_id)
    # A server may put anything into its environ; what is no text is as good as not there.
    raw.environ = [
        value if isinstance(value, int if key == "uwsgi.core" else str) else None
        for key, value in zip(ENVIRON_KEYS, raw.environ, strict=False)
    ]
    with contextlib.suppress(*_SENSELESS):
        return _complete(raw, writer_id)
    raw.dropped_operations += len(raw.statements) // STATEMENT_ITEMS
    raw.statements = []
    try:
        return _complete(raw, writer_id)
    except _SENSELESS as error:
        raise msgspec.ValidationError(f"not a worker's record: {error}") from error


def _complete(raw: RawRecord, writer_id: str) -> WorkerRecord:
    environ, app_start_ns = raw.environ, raw.app_start_ns
    (trace_id, parent_id, sampled, start_ns, pass_ns, resolution_ns, accept_ns, parsed_ns, rejected) = (
        read_stamps(environ, app_start_ns)
    )
    span_id = f"{raw.span_bits:016x}"
    identity = raw.identity
    if identity is not None:
        trace_id, span_id = identity.trace_id, identity.span_id
        parent_id, sampled = identity.parent_id, identity.sampled
    elif not trace_id:
        # Nobody asked for it, so any will do that is the same whenever this is read.
        trace_id = writer_id + span_id
    method, _, _, host, length, core = environ[3:ALWAYS_COPIED]
    summed = sum_marks(raw.marks, raw.folded)
    base_ns = summed.start_ns
    status = raw.status
    record = WorkerRecord(
        trace_id,
        span_id,
        parent_id,
        sampled,
        raw.sequence,
        method or "",
        read_path(environ),
        raw.route,
        int(status[:3]) if status.__class__ is str and is_digits(status[:3]) else None,
        app_start_ns,
        raw.marks[-1] - base_ns if raw.end == CLOSED else None,
        _hide_unmeasured(raw, summed),
        start_ns,
        pass_ns,
        resolution_ns,
        accept_ns,
        parsed_ns,
        _since(base_ns, summed.flask_start_ns),
        _since(base_ns, summed.view_start_ns),
        _since(base_ns, summed.view_end_ns),
        _since(base_ns, raw.response_start_ns),
        None if raw.cpu_start_ns is None or raw.cpu_end_ns is None else raw.cpu_end_ns - raw.cpu_start_ns,
        raw.run_queue_ns,
        core if core.__class__ is int else None,
        raw.transport,
        host,
        int(length) if length and len(length) < 19 and is_digits(length) else None,
        raw.response_bytes,
        _complete_operations(raw, base_ns),
        raw.dropped_operations,
        rejected_stamps=rejected,
        closing_offset_ns=_since(base_ns, raw.closing_ns),
    )
    if summed.exclusive_ns[_TEMPLATE] and raw.folded is None:
        record.timeline = timeline = raw.marks.copy()
        timeline[::2] = [SEGMENT_OF[code] for code in raw.marks[::2]]
        timeline[1::2] = [instant_ns - base_ns for instant_ns in raw.marks[1::2]]
    if raw.notes is not None:
        notes = raw.notes
        record.span_name, record.attributes, record.events = notes.span_name, notes.attributes, notes.events
        record.span_status, record.exception = notes.span_status, notes.exception
        record.app_span, record.app_samples = notes.app_span, notes.app_samples
    return record


def _since(base_ns: int, instant_ns: int | None) -> int | None:
    return None if instant_ns is None else instant_ns - base_ns


def _hide_unmeasured(raw: RawRecord, summed: Marks) -> list[int | None]:
    """Return the segments' times; None for those that nothing could have measured in this process."""
    exclusive_ns: list[int | None] = [*summed.exclusive_ns]
    for index in range(_SEGMENTS) if raw.unmeasured else ():
        # Another app's hook may have measured it, or Flask inside a plain middleware.
        if (
            raw.unmeasured >> index & 1
            and not exclusive_ns[index]
            and (index not in FLASK_SEGMENTS or summed.flask_start_ns is None)
        ):
            exclusive_ns[index] = None
    if raw.end == NOT_SENT:
        exclusive_ns[_SEND] = None
    return exclusive_ns


def _complete_operations(raw: RawRecord, base_ns: int) -> list[Operation]:
    """Return what was noted of the database, in order."""
    noted = [
        take_statement(raw.statements, at, raw.marks, raw.unmeasured)
        for at in range(0, len(raw.statements), STATEMENT_ITEMS)
    ]
    for operation in noted:
        if not (
            isinstance(operation.statement, _OPTIONAL_TEXT) and isinstance(operation.link[0], _OPTIONAL_TEXT)
        ):
            raise TypeError("neither statement nor transport can be anything but text")
    noted += raw.operations
    noted.sort(key=_start_of)
    return [_complete_operation(operation, base_ns) for operation in noted]


def _tell_first_byte(first_byte_ns: int, end_ns: int, base_ns: int) -> tuple[int | None, int | None]:
    """Return what `record.Operation` has for the first byte and the fetching of a query."""
    if first_byte_ns > 0:
        return first_byte_ns - base_ns, end_ns - first_byte_ns
    # Of a reply in one packet reading it is no fetching.
    return (end_ns - base_ns, 0) if first_byte_ns == ONE_PACKET else (None, None)


def _complete_operation(raw: RawOperation, base_ns: int) -> Operation:
    end_ns = raw.end_ns
    first_byte_ns, fetch_ns = _tell_first_byte(raw.first_byte_ns, end_ns, base_ns)
    if raw.fetch_ns is not None or (raw.kind != "query" and raw.first_byte_ns == ONE_PACKET):
        fetch_ns = raw.fetch_ns
    rows = raw.rows
    transport, address, port, namespace, number = raw.link
    return Operation(
        raw.kind,
        raw.start_ns - base_ns,
        end_ns - base_ns,
        first_byte_ns,
        raw.statement,
        # None also for what is not PyMySQL's.
        rows if rows.__class__ is int and rows < _UNKNOWN_ROWS else None,
        raw.error,
        transport,
        address,
        port,
        namespace,
        raw.batch_size,
        raw.concurrent,
        raw.phases,
        number,
        fetch_ns,
        raw.app_span_id,
    )


_start_of: Final = attrgetter("start_ns")
