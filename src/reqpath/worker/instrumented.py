"""The app's own OpenTelemetry beside reqpath: its spans of request and database, propagators, sampler.

Where opentelemetry-instrumentation-flask makes a span of a request, reqpath makes none: the app is handed
reqpath's ids in the headers that its propagators read, as if a proxy had called it, and the record says which
span the SDK made::

    nginx ─► uWSGI ─► the app is called (`identity.span_id`) ─► the SDK's span (`notes.app_span`) ─► view, …

None of this runs for a request that brings no such header to an app without such an instrumentation, and
nothing here imports the SDK: what it is asked is what its objects have beside the API's.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    get_current_span,
    get_tracer_provider,
    set_span_in_context,
)

from reqpath.raw import read_path
from reqpath.record import AppSpan
from reqpath.worker.guard import note_fault

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from reqpath.worker.recorder import RequestRecorder

#: Set on a Flask app that opentelemetry-instrumentation-flask has instrumented, by whichever way.
_INSTRUMENTED: Final = "_is_instrumented_by_opentelemetry"
#: Where that instrumentation keeps its span in the WSGI environ.
_SPAN_KEY: Final = "opentelemetry-flask.span_key"
_DATABASE_INSTRUMENTATION: Final = "opentelemetry.instrumentation.dbapi"
#: Read with the stamps, in any case.
_TRACEPARENT: Final = "HTTP_TRACEPARENT"
#: In the environ of every request.
_ALWAYS: Final = "REQUEST_METHOD"


class _Headers:
    """Reads and writes headers in a WSGI environ; getter and setter of OpenTelemetry's propagators in one."""

    @staticmethod
    def get(carrier: WSGIEnvironment, key: str) -> list[str] | None:
        """Return a header's value; None where the request has none."""
        value = carrier.get(_environ_key(key))
        return None if value is None else [value]

    @staticmethod
    def keys(carrier: WSGIEnvironment) -> list[str]:
        """Return the names of all headers."""
        return [key[5:].replace("_", "-").lower() for key in carrier if key.startswith("HTTP_")]

    @staticmethod
    def set(carrier: WSGIEnvironment, key: str, value: str) -> None:
        """Put a header in the place of the client's."""
        carrier[_environ_key(key)] = value


_HEADERS: Final[Any] = _Headers()


def is_instrumented(app: object) -> bool:
    """Tell whether opentelemetry-instrumentation-flask makes a span of each request of this Flask app."""
    return getattr(app, _INSTRUMENTED, False) is True


def find_keys(app: object) -> frozenset[str]:
    """Return the keys by which an environ says that a request concerns this module.

    They are those of the headers that the configured propagators read; for an instrumented app one that every
    request has.
    """
    from opentelemetry import propagate  # it loads them, which can fail

    keys = {_environ_key(field) for field in propagate.get_global_textmap().fields} - {_TRACEPARENT}
    return frozenset({_ALWAYS} if is_instrumented(app) else keys)


#: Before `find_keys` was asked, which is when the app is complete: at a process's first request.
NOT_FOUND_YET: Final = frozenset({_ALWAYS})


def hand_over(environ: WSGIEnvironment, recorder: RequestRecorder) -> None:
    """Make the app's instrumentation the child of this request, by the headers that it will read.

    A trace that the headers continue stays as it is: the record becomes part of it, unless nginx has given
    the record another one already. Where nobody has begun a trace before nginx, the SDK's sampler decides
    now, as it would have without a caller.
    """
    from opentelemetry import propagate

    identity = recorder.identity
    recorder.more.app_environ = environ
    caller = get_current_span(propagate.extract(environ, Context(), _HEADERS)).get_span_context()
    is_ours = not caller.is_valid or f"{caller.trace_id:032x}" == identity.trace_id
    if not is_ours:
        if identity.parent_id:
            return
        identity.trace_id, identity.parent_id = f"{caller.trace_id:032x}", f"{caller.span_id:016x}"
        identity.sampled = caller.trace_flags.sampled
    decide_sampling(recorder)
    handed = SpanContext(
        int(identity.trace_id, 16),
        int(identity.span_id, 16),
        is_remote=True,
        trace_flags=_flags(identity.sampled),
        trace_state=caller.trace_state if caller.is_valid else None,
    )
    propagate.inject(environ, set_span_in_context(NonRecordingSpan(handed), Context()), _HEADERS)


def read_headers(
    environ: WSGIEnvironment, recorder: RequestRecorder, outer: Context, trusted: bool
) -> Context:
    """Return `outer` with what the configured propagators read: baggage, and a caller's span where believed.

    `trusted` says that a caller's ids can be believed that came otherwise than by nginx's stamp.
    """
    from opentelemetry import propagate

    context = propagate.extract(environ, outer, _HEADERS)
    caller = get_current_span(context).get_span_context()
    identity = recorder.identity
    if trusted and not identity.parent_id and caller.is_valid and caller.is_remote:
        identity.trace_id, identity.parent_id = f"{caller.trace_id:032x}", f"{caller.span_id:016x}"
        identity.sampled = caller.trace_flags.sampled
    return context


def decide_sampling(recorder: RequestRecorder) -> bool:
    """Let the SDK's sampler say whether the trace is sampled; return whether there is one that was asked.

    It is asked as it would be for the server's span: with the caller's word, where a caller has begun the
    trace, and without any where nginx or reqpath has.
    """
    try:
        sampler = getattr(get_tracer_provider(), "sampler", None)
        if sampler is None:
            return False
        identity, environ = recorder.identity, recorder.environ
        trace_id = int(identity.trace_id, 16)
        method = environ[3] or ""
        parent = Context()
        # nginx begins a trace with 32 hex digits of which its span has the first half.
        if identity.parent_id and not identity.trace_id.startswith(identity.parent_id):
            caller = SpanContext(trace_id, int(identity.parent_id, 16), True, _flags(identity.sampled))
            parent = set_span_in_context(NonRecordingSpan(caller), parent)
        result = sampler.should_sample(
            parent,
            trace_id,
            method,
            SpanKind.SERVER,
            {"http.request.method": method, "url.path": read_path(environ)},
        )
        identity.sampled = result.decision.is_sampled()
    except Exception:
        note_fault("asking OpenTelemetry's sampler")
        return False
    return True


def note_app_span(recorder: RequestRecorder) -> None:
    """Note in the record which span the app's instrumentation made of the request, at the request's end."""
    rare = recorder.more
    environ, span = rare.app_environ, rare.app_span
    # It leads back to the recorder.
    rare.app_environ = rare.app_span = None
    try:
        if environ is not None:
            span = environ.get(_SPAN_KEY) or span
        if span is None:
            return
        identity, app_start_ns = recorder.identity, recorder.app_start_ns
        context = span.get_span_context()
        start_ns = getattr(span, "start_time", None)
        if not context.is_valid:
            return
        trace_id, span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
        identity.sampled = context.trace_flags.sampled
        if identity.sampled and start_ns is not None:
            end_ns = getattr(span, "end_time", None)
            recorder.notes.app_span = AppSpan(
                trace_id,
                span_id,
                start_ns - app_start_ns,
                None if end_ns is None else end_ns - app_start_ns,
            )
        elif trace_id == identity.trace_id:
            # Nobody exports it, and the app's log lines have its id.
            identity.span_id = span_id
    except Exception:
        note_fault("reading the app's own span")


def traces_databases() -> bool:
    """Tell whether an instrumentation of database drivers is loaded."""
    return _DATABASE_INSTRUMENTATION in sys.modules


def find_database_span_id() -> str | None:
    """Return the id of the span that the app's instrumentation makes of the running statement, if it does."""
    try:
        span: Any = get_current_span()
        context = span.get_span_context()
        if (
            context.trace_flags.sampled
            and getattr(span, "kind", None) is SpanKind.CLIENT
            and not span.attributes.keys().isdisjoint(("db.system", "db.system.name"))
        ):
            return f"{context.span_id:016x}"
    except Exception:
        note_fault("reading the app's own database span")
    return None


def _environ_key(header: str) -> str:
    return f"HTTP_{header.upper().replace('-', '_')}"


def _flags(sampled: bool) -> TraceFlags:
    return TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
