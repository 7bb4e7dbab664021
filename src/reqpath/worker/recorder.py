"""The recorder of one request: it is at each instant in exactly one segment.

A hook moves it with `switch`, which gives the time since the last move to the segment that was current, and
moves it back when done. So a request's segments add up to its time in the worker by construction, however
hooks nest::

    previous = recorder.switch(QUERY)
    ...                                # the driver waits
    recorder.switch(previous)
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context

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


class RequestRecorder:
    """One request, from `app_start` to `closed`."""

    __slots__ = (
        "__weakref__",
        "base_ns",
        "cpu_start_ns",
        "exclusive_ns",
        "finished",
        "in_memory",
        "last_ns",
        "max_operations",
        "monotonic_ns",
        "outer",
        "outer_context",
        "owner",
        "record",
        "run_queue_start_ns",
        "segment",
        "span_context",
    )

    def __init__(
        self,
        record: WorkerRecord,
        segment: int,
        base_ns: int,
        monotonic_ns: Callable[[], int],
        max_operations: int,
    ) -> None:
        """`base_ns` is the monotonic instant of `record.app_start_ns`."""
        self.record = record
        self.exclusive_ns: list[int] = record.exclusive_ns  # type: ignore[assignment]  # hooks switch only to known ones
        self.segment = segment
        self.base_ns = base_ns
        self.last_ns = base_ns
        self.monotonic_ns = monotonic_ns
        self.max_operations = max_operations
        # Looked up at each call: gevent replaces it, and then it tells greenlets apart.
        self.owner = threading.get_ident()
        self.finished = False
        #: The middleware whose Flask app has the body in memory, so that sending it runs no code of the app.
        self.in_memory: object = None
        #: OpenTelemetry's context with the request's span; None where that failed.
        self.span_context: Context | None = None
        self.outer: RequestRecorder | None = None
        self.outer_context: Any = None
        #: The lens at `app_start`; None where it can't be had.
        self.cpu_start_ns: int | None = None
        self.run_queue_start_ns: int | None = None

    def switch(self, segment: int) -> int:
        """Close the current segment, enter `segment`, return the one that was current.

        `last_ns` is then the instant of the switch. Only the request's own thread may: see `is_own_thread`.
        """
        previous = self.segment
        try:
            now_ns = self.monotonic_ns()
            self.exclusive_ns[previous] += now_ns - self.last_ns
            self.last_ns = now_ns
        except Exception:
            note_fault("the change of a segment")
        self.segment = segment
        return previous

    def enter(self, segment: int) -> None:
        """Enter a step in which the app's code runs: the call, a step of the body, `close`.

        In it this recorder and the request's span are current; between steps nothing is: the server sends.
        """
        self.switch(segment)
        self.outer = current.get()
        current.set(self)
        if self.span_context is not None:
            try:
                self.outer_context = _attach(self.span_context)
            except Exception:
                self.span_context = None
                note_fault("OpenTelemetry's context")

    def leave(self) -> None:
        """Leave the step: what was current before is so again, and the time goes to sending."""
        if self.span_context is not None:
            try:
                _detach(self.outer_context)
            except Exception:
                note_fault("OpenTelemetry's context")
        current.set(self.outer)
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
        record = self.record
        if len(record.operations) < self.max_operations:
            record.operations.append(operation)
        else:
            record.dropped_operations += 1

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


def _context_switches() -> tuple[Callable[[Context], Any], Callable[[Any], None]]:
    """Return the two functions that put a context in force and put back what was.

    OpenTelemetry's default runtime context is one context variable; setting that takes a third of the time
    of `attach` and `detach`, which stay the way for any other runtime context. They would also log an error
    where the app has left a context of its own attached, which is then just put right.
    """
    variable = getattr(getattr(otel_context, "_RUNTIME_CONTEXT", None), "_current_context", None)
    if not isinstance(variable, ContextVar):
        return otel_context.attach, otel_context.detach
    read, write = variable.get, variable.set

    def attach(context: Context) -> Any:
        outer = read(None)
        write(context)
        return outer

    def detach(outer: Any) -> None:
        write(Context() if outer is None else outer)

    return attach, detach


_attach, _detach = _context_switches()
