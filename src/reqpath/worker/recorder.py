"""The recorder of one request: it is at each instant in exactly one segment.

A hook moves it with `switch`, which marks the instant, and moves it back when done. The time between two
marks is the first one's segment's, so a request's segments add up to its time in the worker by construction,
however hooks nest::

    previous = recorder.switch(QUERY)
    ...                                # the driver waits
    recorder.switch(previous)
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from operator import sub
from typing import Any, Final

import msgspec
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import TraceState

from reqpath.record import AttributeValue, Operation, SpanEvent, WorkerRecord
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
#: Twice the switches after which they are summed up: a body can have millions of steps.
_MAX_MARKS: Final = 1024


class RequestRecorder(msgspec.Struct, eq=False):
    """One request, from `app_start` to `closed`; a struct because its construction then runs no bytecode."""

    record: WorkerRecord
    #: Which segment was entered and when: (segment, monotonic ns) of each switch, flat. The last pair is
    #: where the recorder is. Hooks only add to it; it is summed up when it is long, or at the end.
    marks: list[int]
    #: The monotonic instant of `record.app_start_ns`.
    base_ns: int
    monotonic_ns: Callable[[], int]
    max_operations: int
    #: The request's thread or greenlet: `threading.get_ident()`.
    owner: int
    finished: bool = False
    #: The marks no longer begin at `base_ns`.
    folded: bool = False
    #: The middleware whose Flask app has the body in memory, so that sending it runs no code of the app.
    in_memory: object = None
    #: What the app wants called when such a body is closed.
    on_close: Sequence[object] = ()
    #: Flask's context of the request, from its making until the route is read from it.
    flask_context: Any = None
    #: OpenTelemetry's context with the request's span; None where that failed, and where the app's own
    #: instrumentation has a span of the request.
    span_context: Context | None = None
    #: Where the app's own OpenTelemetry instrumentation keeps its span, or that span: until the end.
    app_environ: Any = None
    app_span: Any = None
    #: W3C's `tracestate` of the trace that is continued.
    trace_state: TraceState | None = None
    #: What to put back at the end of the step.
    token: Token[RequestRecorder | None] | None = None
    span_token: Any = None
    #: The lens at `app_start`; None where it can't be had.
    cpu_start_ns: int | None = None
    run_queue_start_ns: int | None = None

    def switch(self, segment: int) -> int:
        """Enter `segment` and return the one that was current.

        `last_ns` is then the instant of the switch. Only the request's own thread may: see `is_own_thread`.
        """
        marks = self.marks
        previous = marks[-2]
        try:
            marks += (segment, self.monotonic_ns())
            if len(marks) > _MAX_MARKS:
                self._fold()
        except Exception:
            note_fault("the change of a segment")
        return previous

    @property
    def segment(self) -> int:
        """Which of `tiers.WORKER_SEGMENTS` the request is in."""
        return self.marks[-2]

    @property
    def last_ns(self) -> int:
        """The monotonic instant of the latest switch."""
        return self.marks[-1]

    @property
    def exclusive_ns(self) -> list[int]:
        """The record's exclusive times, as of the latest switch."""
        self._fold()
        return self.record.exclusive_ns  # type: ignore[return-value]  # unknown ones only after the end

    def sum_up(self) -> None:
        """Add the time between the marks to the record's segments; the marks stay, so it is for once."""
        marks = self.marks
        exclusive_ns: Any = self.record.exclusive_ns
        times_ns = marks[1::2]
        # The last mark's segment has no end, so the differences are one less.
        for segment, duration_ns in zip(marks[::2], map(sub, times_ns[1:], times_ns)):  # noqa: B905
            exclusive_ns[segment] += duration_ns

    def _fold(self) -> None:
        """Sum up what is marked so far, and go on from the last mark."""
        self.sum_up()
        self.folded = True
        del self.marks[:-2]

    def enter(self, segment: int) -> None:
        """Enter a step in which the app's code runs: the call, a step of the body, `close`.

        In it this recorder and the request's span are current; between steps nothing is: the server sends.
        """
        self.switch(segment)
        self.token = current.set(self)
        if self.span_context is not None:
            try:
                self.span_token = _attach(self.span_context)
            except Exception:
                self.span_context = None
                note_fault("OpenTelemetry's context")

    def leave(self) -> None:
        """Leave the step: what was current before is so again, and the time goes to sending."""
        # Each raises where the app has gone on in a context of its own making, which ends with it.
        try:
            if self.token is not None:
                current.reset(self.token)
        except Exception:
            note_fault("leaving the request")
        try:
            if self.span_context is not None:
                _detach(self.span_token)
        except Exception:
            note_fault("leaving OpenTelemetry's context")
        self.switch(SEND)

    def is_own_thread(self) -> bool:
        """Tell whether the caller's time is the request's: it runs on its thread (or greenlet)."""
        return threading.get_ident() == self.owner

    def offset_ns(self) -> int:
        """Return the time since `app_start`."""
        return self.monotonic_ns() - self.base_ns

    def count_bytes(self, chunk: bytes) -> None:
        """Count what the app hands out of the response's body."""
        try:
            self.record.response_bytes = (self.record.response_bytes or 0) + len(chunk)
        except Exception:
            note_fault("a chunk without a length")

    def add_operation(self, operation: Operation) -> None:
        """Keep a database operation, up to the bound."""
        operations = self.record.operations
        if len(operations) < self.max_operations:
            operations.append(operation)
        else:
            self.drop_operation()

    def drop_operation(self) -> None:
        """Count an operation that is too many."""
        self.record.dropped_operations += 1
        if len(self.marks) > _MAX_MARKS:
            self._fold()

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Keep an attribute that the app set, up to the bound."""
        attributes = self.record.attributes
        if key in attributes or len(attributes) < MAX_ATTRIBUTES:
            attributes[key] = value

    def add_event(self, event: SpanEvent) -> None:
        """Keep an event that the app added, up to the bound."""
        if len(self.record.events) < MAX_EVENTS:
            self.record.events.append(event)

    def fail(self, error: BaseException) -> None:
        """Note the exception that left the app."""
        if self.record.exception is None:
            self.record.exception = describe_exception(error)


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


get_context, _attach, _detach = _context_functions()
