"""The request's span in OpenTelemetry's context, kept in the record instead of in an SDK.

What the app sets on the current span arrives in the request's record; spans that the app's own SDK starts
become its children.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from itertools import islice
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)

from reqpath.record import AttributeValue, SpanEvent
from reqpath.worker import instrumented
from reqpath.worker.guard import note_fault
from reqpath.worker.recorder import MAX_ATTRIBUTES, MAX_TEXT, RequestRecorder, get_context

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class RequestSpan(RequestRecorder):
    """The recorder as OpenTelemetry's span of the request. Raises nothing, whatever it is given.

    One object is both, because making two took longer than all that most requests do with the second.
    """

    own_context: SpanContext | None = None

    def get_span_context(self) -> SpanContext:
        """Return the ids under which this request is recorded."""
        context = self.own_context
        if context is None:
            identity = self.identity
            # Made when asked for: most requests of most apps never do.
            if not self.finished and instrumented.decide_sampling(self) and identity.sampled:
                self.notes.app_samples = True
            context = self.own_context = SpanContext(
                int(identity.trace_id, 16),
                int(identity.span_id, 16),
                is_remote=False,
                trace_flags=TraceFlags(TraceFlags.SAMPLED if identity.sampled else TraceFlags.DEFAULT),
                trace_state=self.more.trace_state,
            )
        return context

    def is_recording(self) -> bool:
        """Return True until the request is over."""
        return not self.finished

    def set_attribute(self, key: str, value: Any) -> None:
        """Keep an attribute."""
        try:
            clean = clean_attribute(value)
            if clean is not None and isinstance(key, str) and key and not self.finished:
                self.keep_attribute(_clean_text(key), clean)
        except Exception:
            note_fault("span.set_attribute")

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Keep several attributes."""
        try:
            for key, value in attributes.items():
                self.set_attribute(key, value)
        except Exception:
            note_fault("span.set_attributes")

    def add_event(
        self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None
    ) -> None:
        """Keep an event; `timestamp` is ns since the epoch."""
        try:
            if self.finished:
                return
            if timestamp is None:
                time_ns = monotonic_ns() - self.base_ns
            else:
                time_ns = int(timestamp) - self.app_start_ns
                time_ns = max(-_MAX_INT - 1, min(time_ns, _MAX_INT))
            clean = {
                _clean_text(key): value
                for key, raw in islice((attributes or {}).items(), MAX_ATTRIBUTES)
                if (value := clean_attribute(raw)) is not None
            }
            self.keep_event(SpanEvent(_clean_text(name), time_ns, clean))
        except Exception:
            note_fault("span.add_event")

    def update_name(self, name: str) -> None:
        """Keep the name that the app gives to the span."""
        try:
            if not self.finished:
                self.notes.span_name = _clean_text(name)
        except Exception:
            note_fault("span.update_name")

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Keep the status; OK is final, and unset changes nothing, as the SDK does it."""
        try:
            if self.finished:
                return
            if isinstance(status, Status):
                code, description = status.status_code, status.description
            else:
                code = status
            held = self.notes.span_status
            if code is not StatusCode.UNSET and (held is None or held[0] != "OK"):
                self.notes.span_status = (
                    code.name,
                    None if description is None else _clean_text(description),
                )
        except Exception:
            note_fault("span.set_status")

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Keep an exception as an event, in OpenTelemetry's form.

        Source: https://opentelemetry.io/docs/specs/semconv/exceptions/exceptions-spans/
        """
        try:
            kind = type(exception)
            facts: dict[str, Any] = {
                "exception.type": f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."),
                "exception.message": str(exception),
                "exception.stacktrace": "".join(traceback.format_exception(exception)),
                "exception.escaped": str(escaped),
            }
            self.add_event("exception", {**facts, **(attributes or {})}, timestamp)
        except Exception:
            note_fault("span.record_exception")

    def end(self, end_time: int | None = None) -> None:
        """Do nothing: the request ends when its body is closed, whoever calls this."""


for _name, _value in vars(Span).items():
    # As it would be inherited, were it not that each class has a metaclass of its own.
    if callable(_value) and not hasattr(RequestSpan, _name):
        setattr(RequestSpan, _name, _value)
Span.register(RequestSpan)


def build_span_context(recorder: RequestSpan) -> Context | None:
    """Return the current context with the request's span; None where an instrumentation around it has one."""
    outer = get_context()
    span = find_span_around(outer)
    if span is None:
        return _put_span(recorder, outer)
    recorder.more.app_span = span
    return None


def _put_span(recorder: RequestSpan, context: Context) -> Context:
    span: Any = recorder
    return set_span_in_context(span, context)


def find_span_around(outer: Context) -> Any:
    """Return the span of an instrumentation that runs around reqpath; None without one.

    One that has ended was left behind by an earlier request.
    """
    span = get_current_span(outer)
    if (
        isinstance(span, RequestSpan)
        or not span.get_span_context().is_valid
        or getattr(span, "end_time", None) is not None
    ):
        return None
    return span


def build_told_context(recorder: RequestSpan, environ: WSGIEnvironment, *, trusted: bool) -> Context | None:
    """Return what `build_span_context` does, with what the request's headers say to OpenTelemetry."""
    span = find_span_around(get_context())
    if span is not None:
        recorder.more.app_span = span
        return None
    context = instrumented.read_headers(environ, recorder, get_context(), trusted)
    caller = get_current_span(context).get_span_context()
    if f"{caller.trace_id:032x}" == recorder.identity.trace_id:
        recorder.more.trace_state = caller.trace_state
    return _put_span(recorder, context)


#: Under which OpenTelemetry keeps the span in a context: the one key of a context that holds only a span.
SPAN_KEY = next(iter(set_span_in_context(INVALID_SPAN, Context())))


_MAX_INT = (1 << 63) - 1


def _clean_text(value: Any) -> str:
    return str(value)[:MAX_TEXT].encode("utf-8", "replace").decode()


def clean_attribute(value: Any) -> AttributeValue | None:
    """Return what the record can hold of an attribute's value; None for what OpenTelemetry would refuse.

    Source: https://opentelemetry.io/docs/specs/otel/common/#attribute
    """
    # Subclasses, such as numpy's float or markupsafe's str, become plain: the encoder takes no others.
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        # msgpack ends at 64 bits, and so does OTLP.
        return int(value) if -_MAX_INT - 1 <= value <= _MAX_INT else _clean_text(value)
    if isinstance(value, str):
        return _clean_text(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")[:MAX_TEXT]
    if isinstance(value, Sequence):
        items = [clean_attribute(item) for item in value[:MAX_ATTRIBUTES]]
        kept = [item for item in items if isinstance(item, (str, bool, int, float))]
        if len(kept) == len(items) and len({type(item) for item in kept}) <= 1:
            return kept
    return None
