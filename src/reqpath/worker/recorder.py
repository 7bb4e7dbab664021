"""The recorder of one request: it is at each instant in exactly one segment.

A hook marks the instant at which it enters a segment, and that at which it goes back. The time between two
marks is the first one's segment's, so a request's segments add up to its time in the worker by construction,
however hooks nest::

    previous = recorder.switch(QUERY)
    ...                                # the driver waits
    recorder.switch(previous)

Here nothing is summed up: that is done when the record is read. See `raw`. What runs in every request writes
a switch out, as two calls of `append` in a row: the interpreter makes a few instructions of these, and looks
at no signal between them.
"""

from __future__ import annotations

import secrets
import threading
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from time import monotonic_ns
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import TraceState

from reqpath.raw import (
    CLOSED,
    FLASK_START,
    NOT_CLOSED,
    SEGMENT_OF,
    STATEMENT_ITEMS,
    AppNotes,
    Identity,
    Link,
    Marks,
    RawOperation,
    index_of,
    sum_marks,
    take_statement,
)
from reqpath.record import AttributeValue, SpanEvent
from reqpath.stamps import read_trace
from reqpath.tiers import WORKER_SEGMENTS
from reqpath.worker.guard import note_fault

MIDDLEWARE: Final = WORKER_SEGMENTS.index("flask.middleware")
FRAMEWORK: Final = WORKER_SEGMENTS.index("flask.framework")
VIEW: Final = WORKER_SEGMENTS.index("flask.view")
TEMPLATE: Final = WORKER_SEGMENTS.index("flask.template")
APP: Final = WORKER_SEGMENTS.index("wsgi.app")
CONNECT: Final = WORKER_SEGMENTS.index("mysql.connect")
QUERY: Final = WORKER_SEGMENTS.index("mysql.query")
FETCH: Final = WORKER_SEGMENTS.index("mysql.fetch")
COMMIT: Final = WORKER_SEGMENTS.index("mysql.commit")
SEND: Final = WORKER_SEGMENTS.index("uwsgi.send")

#: Bounds of what an app can put on the current span, after OpenTelemetry's default limits.
MAX_ATTRIBUTES: Final = 128
MAX_EVENTS: Final = 128
MAX_TEXT: Final = 4096
#: Twice the marks after which they are summed up: a body can have millions of steps.
MAX_MARKS: Final = 1024


class Middleware(Protocol):
    """What records requests, as its recorders see it."""

    max_operations: int

    def finish(self, recorder: RequestRecorder, end: int = CLOSED, /) -> None:
        """End the record, once, as `end` says."""


class Rare(msgspec.Struct, eq=False):
    """What most requests have nothing of; as in `raw.RawRecord`, or the recorder's own."""

    operations: list[RawOperation] = []
    dropped_operations: int = 0
    identity: Identity | None = None
    notes: AppNotes | None = None
    folded: Marks | None = None
    closing_ns: int | None = None
    cpu_start_ns: int | None = None
    cpu_end_ns: int | None = None
    #: The lens at `app_start`; None where it can't be had.
    run_queue_start_ns: int | None = None
    run_queue_ns: int | None = None
    end: int = CLOSED
    #: OpenTelemetry's context with the request's span, for the steps of a body; None where that failed,
    #: where the app's own instrumentation has a span of the request, and after the end.
    span_context: Context | None = None
    #: Where the app's own OpenTelemetry instrumentation keeps its span, or that span: until the end.
    app_environ: Any = None
    app_span: Any = None
    #: W3C's `tracestate` of the trace that is continued.
    trace_state: TraceState | None = None
    #: What to put back at the end of the step.
    token: Token[RequestRecorder | None] | None = None
    span_token: Any = None


_Value = TypeVar("_Value")


class _Field(Generic[_Value]):
    """A field of `raw.RawRecord`, kept in the recorder's `values`."""

    def __init__(self, name: str) -> None:
        self._index = index_of(name)

    def __get__(self, recorder: RequestRecorder, _owner: type) -> _Value:
        value: _Value = recorder.values[self._index]
        return value

    def __set__(self, recorder: RequestRecorder, value: _Value) -> None:
        recorder.values[self._index] = value


#: Where they are in `RequestRecorder.values`, for what runs in every request.
STATUS: Final = index_of("status")
ROUTE: Final = index_of("route")
RESPONSE_START: Final = index_of("response_start_ns")
RESPONSE_BYTES: Final = index_of("response_bytes")
_OPERATIONS: Final = index_of("operations")
_CLOSING: Final = index_of("closing_ns")
#: The first that `values` may end before.
_CPU_START: Final = index_of("cpu_start_ns")


class RequestRecorder:
    """One request, from `app_start` to `closed`.

    Whoever makes one sets what has no default here, and `rare` and `finished`: so the interpreter finds it by
    position, where it would look up a class's attribute by name. An `__init__` would be one call more.
    """

    middleware: Middleware
    #: The request's thread or greenlet: `threading.get_ident()`.
    owner: int
    #: The record as it is written, a list in the order of `raw.RawRecord` after its tag, up to the last field
    #: that a usual request has something of.
    values: list[Any]
    #: In `values` too. Hooks only add to it, and the last pair is where the recorder is.
    marks: list[int]
    #: In `values` too.
    statements: list[Any]
    app_start_ns: _Field[int] = _Field("app_start_ns")
    environ: _Field[Sequence[Any]] = _Field("environ")
    span_bits: _Field[int] = _Field("span_bits")
    unmeasured: _Field[int] = _Field("unmeasured")
    status: _Field[Any] = _Field("status")
    route: _Field[str | None] = _Field("route")
    response_start_ns: _Field[int | None] = _Field("response_start_ns")
    response_bytes: _Field[int | None] = _Field("response_bytes")
    rare: Rare | None = None
    #: The server's `start_response`; None once the body is closed.
    start_response: Any = None
    #: False from the beginning on; one that was never begun is nobody's.
    finished: bool = True

    def __del__(self) -> None:
        # A server that never closes the body is at fault, but its request did happen.
        if not self.finished:
            self.middleware.finish(self, NOT_CLOSED)

    @property
    def more(self) -> Rare:
        """What this request has more of than most, to be set."""
        rare = self.rare
        if rare is None:
            rare = self.rare = Rare()
        return rare

    def complete_values(self) -> list[Any]:
        """Return `values` with what is rare in it, for the end or as it is so far."""
        values, rare = self.values, self.rare
        if rare is not None:
            values[_OPERATIONS] = rare.operations
            values[_CLOSING] = rare.closing_ns
            values[_CPU_START:] = (
                rare.cpu_start_ns,
                rare.cpu_end_ns,
                rare.run_queue_ns,
                rare.end,
                rare.dropped_operations,
                rare.identity,
                rare.notes,
                rare.folded,
            )
        return values

    def switch(self, mark: int) -> int:
        """Enter a segment, or what else `raw` has for a mark, and return the mark that was current.

        `last_ns` is then the instant of the switch. Only the request's own thread may: see `is_own_thread`.
        """
        marks = self.marks
        previous = marks[-2]
        try:
            now_ns = monotonic_ns()
            marks.append(mark)
            marks.append(now_ns)
            if len(marks) > MAX_MARKS:
                self.fold()
        except Exception:
            note_fault("the change of a segment")
        return previous

    @property
    def segment(self) -> int:
        """Which of `tiers.WORKER_SEGMENTS` the request is in."""
        segment: int = SEGMENT_OF[self.marks[-2]]
        return segment

    @property
    def last_ns(self) -> int:
        """The monotonic instant of the latest switch."""
        return self.marks[-1]

    @property
    def base_ns(self) -> int:
        """The monotonic instant of `app_start`."""
        rare = self.rare
        return self.marks[1] if rare is None or rare.folded is None else rare.folded.start_ns

    def is_in_flask(self) -> bool:
        """Tell whether Flask was called for this request."""
        if FLASK_START in self.marks[::2]:
            return True
        rare = self.rare
        return rare is not None and rare.folded is not None and rare.folded.flask_start_ns is not None

    def fold(self) -> None:
        """Sum up what is marked so far, and go on from the last mark."""
        rare, marks, statements = self.more, self.marks, self.statements
        for at in range(0, len(statements), STATEMENT_ITEMS):
            if len(rare.operations) < self.middleware.max_operations:
                rare.operations.append(take_statement(statements, at, marks, self.unmeasured))
            else:
                rare.dropped_operations += 1
        statements.clear()
        rare.folded = sum_marks(marks, rare.folded)
        del marks[:-2]

    def take_latest(self, link: Link) -> RawOperation | None:
        """Return the latest operation of this connection, taken out of `statements` if it is there."""
        statements = self.statements
        for at in range(len(statements) - STATEMENT_ITEMS, -1, -STATEMENT_ITEMS):
            if statements[at + STATEMENT_ITEMS - 1] is link:
                operation = take_statement(statements, at, self.marks, self.unmeasured)
                del statements[at : at + STATEMENT_ITEMS]
                self.more.operations.append(operation)
                return operation
        kept = self.rare.operations if self.rare is not None else ()
        return next((operation for operation in reversed(kept) if operation.link is link), None)

    def enter(self, segment: int) -> None:
        """Enter a step in which the app's code runs: the call, a step of the body, `close`.

        In it this recorder and the request's span are current; between steps nothing is: the server sends.
        """
        rare = self.more
        self.switch(segment)
        rare.token = set_current(self)
        rare.span_token = None
        if rare.span_context is not None:
            try:
                rare.span_token = attach_context(rare.span_context)
            except Exception:
                rare.span_context = None
                note_fault("OpenTelemetry's context")

    def leave(self) -> None:
        """Leave the step: what was current before is so again, and the time goes to sending."""
        rare = self.more
        # Each raises where the app has gone on in a context of its own making, which ends with it.
        try:
            if rare.token is not None:
                reset_current(rare.token)
        except Exception:
            note_fault("leaving the request")
        try:
            if rare.span_token is not None:
                detach_context(rare.span_token)
        except Exception:
            note_fault("leaving OpenTelemetry's context")
        self.switch(SEND)

    def is_own_thread(self) -> bool:
        """Tell whether the caller's time is the request's: it runs on its thread (or greenlet)."""
        return threading.get_ident() == self.owner

    def count_bytes(self, chunk: bytes) -> None:
        """Count what the app hands out of the response's body."""
        try:
            self.response_bytes = (self.response_bytes or 0) + len(chunk)
        except Exception:
            note_fault("a chunk without a length")

    @property
    def identity(self) -> Identity:
        """The request's ids, worked out when they are first asked for: most requests' never are."""
        rare = self.more
        if rare.identity is None:
            trace_id, parent_id, sampled = read_trace(self.environ)
            span_id = f"{self.span_bits:016x}"
            rare.identity = Identity(trace_id or secrets.token_hex(16), span_id, parent_id, sampled)
        return rare.identity

    @property
    def notes(self) -> AppNotes:
        """What is noted of the app's own doing."""
        rare = self.more
        if rare.notes is None:
            rare.notes = AppNotes()
        return rare.notes

    def add_operation(self, operation: RawOperation) -> None:
        """Keep a database operation, up to the bound."""
        rare = self.more
        if len(rare.operations) < self.middleware.max_operations:
            rare.operations.append(operation)
        else:
            rare.dropped_operations += 1
        if len(self.marks) > MAX_MARKS:
            self.fold()

    def bound_operations(self) -> None:
        """Drop the operations beyond the bound."""
        known = len(self.more.operations) + len(self.statements) // STATEMENT_ITEMS
        if known > self.middleware.max_operations:
            self.fold()

    def keep_attribute(self, key: str, value: AttributeValue) -> None:
        """Keep an attribute that the app set, up to the bound."""
        attributes = self.notes.attributes
        if key in attributes or len(attributes) < MAX_ATTRIBUTES:
            attributes[key] = value

    def keep_event(self, event: SpanEvent) -> None:
        """Keep an event that the app added, up to the bound."""
        events = self.notes.events
        if len(events) < MAX_EVENTS:
            events.append(event)

    def fail(self, error: BaseException) -> None:
        """Note the exception that left the app."""
        if self.notes.exception is None:
            self.notes.exception = describe_exception(error)


def describe_exception(error: BaseException) -> tuple[str, str, str]:
    """Return type, message and stack, bounded; an exception whose `str` fails is still described."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = str(error)
    except Exception as unprintable:
        message = f"<str() raised {type(unprintable).__name__}>"
    try:
        stack = "".join(traceback.format_exception(error))
    except Exception:
        stack = ""
    return name, message[:MAX_TEXT], stack[-4 * MAX_TEXT :]


#: The request that the running code belongs to; None between requests and while the server sends.
current: ContextVar[RequestRecorder | None] = ContextVar("reqpath_current", default=None)


def _context_functions() -> tuple[Callable[[], Context], Callable[[Context], Any], Callable[[Any], None]]:
    """Return the three functions that get the context in force, put one in force and put back what was.

    OpenTelemetry's default runtime context is one context variable; setting that takes a third of the time
    of `attach` and `detach`, which stay the way for any other runtime context. They would also log an error
    where the app has left a context of its own attached, which is then just put right.
    """
    variable = getattr(getattr(otel_context, "_RUNTIME_CONTEXT", None), "_current_context", None)
    if isinstance(variable, ContextVar):
        return variable.get, variable.set, variable.reset
    return otel_context.get_current, otel_context.attach, otel_context.detach


#: Of `current`, without a look-up of the method.
get_recorder, set_current, reset_current = current.get, current.set, current.reset

get_context, attach_context, detach_context = _context_functions()
