"""The WSGI middleware: begins a record when the application is called, appends it when the body is closed.

The layer below is the server's WSGI interface (PEP 3333); the layer above gets `RequestRecorder` as the
current one. The response, its iteration, `write` and all exceptions pass through unchanged.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import itemgetter
from time import monotonic_ns, thread_time_ns, time_ns
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

import msgspec
from opentelemetry.context import Context

import reqpath
from reqpath.forks import NO_PROCESS, Mark, mark_process
from reqpath.raw import (
    CLOSED,
    FLASK_START,
    NO_FIRST_PACKETS,
    NOT_CLOSED,
    NOT_SENT,
    RAW_TAG,
    STATEMENT_ITEMS,
    RawRecord,
)
from reqpath.record import FORMAT_VERSION, Transport, WriterInfo, encode
from reqpath.settings import Settings
from reqpath.spool import SpoolWriter
from reqpath.stamps import ALWAYS_COPIED, ENVIRON_KEYS, PROXY_HEADERS
from reqpath.tiers import WORKER_SEGMENTS
from reqpath.worker import instrumented, jinja, pymysql
from reqpath.worker import recorder as segments
from reqpath.worker.guard import note_fault, note_problem
from reqpath.worker.lens import LENS_BELOW, SLOW_NS, RunQueueClock
from reqpath.worker.recorder import (
    RESPONSE_BYTES,
    RESPONSE_START,
    SEND,
    STATUS,
    Rare,
    RequestRecorder,
    attach_context,
    current,
    detach_context,
    get_context,
    reset_current,
    set_current,
)
from reqpath.worker.span import (
    SPAN_KEY,
    RequestSpan,
    build_span_context,
    build_told_context,
    find_span_around,
)
from reqpath.worker.uwsgi import ServerFacts, on_postfork, read_facts, read_transport, uwsgi_module

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from flask import Flask

#: Where the request's recorder is in the WSGI environ.
ENVIRON_KEY: Final = "reqpath.recorder"
_END_KEY: Final = "reqpath.end"
_MAX_PATH: Final = 1024
#: How many random numbers are drawn at once.
_DRAWN: Final = 256
#: Readings of two clocks that take longer than this are of two instants. They take 0.2 µs.
_APART_NS: Final = 10_000
#: How many pairs of readings are tried for one that is closer.
_PAIRS: Final = 5
#: An app can put megabytes on its span; a record of more than this goes without.
_MAX_RECORD_BYTES: Final = 1 << 20
_MAX_TEXT: Final = 4 * _MAX_PATH


class RequestMiddleware:
    """Records each request of a WSGI application.

    Example::

        application = RequestMiddleware(application, service_name="shop")
    """

    def __init__(
        self,
        app: WSGIApplication,
        settings: Settings | None = None,
        *,
        flask: Flask | None = None,
        **arguments: Any,
    ) -> None:
        """`arguments` are those of `Settings`; in `flask` hooks will split the time further.

        Raises: ConfigurationError for a wrong argument.
        """
        self.app = app
        #: Nothing is between this and Flask.
        self.is_innermost = flask is not None and getattr(app, "__self__", None) is flask
        self._entry_segment = segments.MIDDLEWARE if flask else segments.APP
        #: What is marked when `app` is called.
        self._called = FLASK_START if self.is_innermost else self._entry_segment
        self._body_segment = segments.VIEW if flask else segments.APP
        # werkzeug ignores what `start_response` returns.
        self._note_start = _note_start if self.is_innermost else _note_start_and_writes
        #: The class of the bodies that werkzeug's responses return, where nothing can have been put around.
        self._closing_iterator: object = (
            getattr(sys.modules.get("werkzeug.wsgi"), "ClosingIterator", None) if self.is_innermost else None
        )
        #: A bit for each segment that no hook of this app measures: nothing in Flask is another kind of app.
        self._unmeasured = _bits(
            name
            for name in WORKER_SEGMENTS
            if name.startswith(("mysql.", "wsgi.") if flask else ("mysql.", "flask."))
        )
        self._facts = ServerFacts()
        self._transport: Transport | None = None
        self._asks_transport = False
        #: That of which the facts are.
        self._process: Mark = NO_PROCESS
        #: Random numbers of 64 bits, drawn before they are needed.
        self._drawn: list[int] = []
        #: None where a thread's times are not one request's.
        self._run_queue: RunQueueClock | None = None
        #: The latest request took so long that the lens costs next to nothing; at first, say so.
        self._is_slow = True
        #: The app that OpenTelemetry marks as instrumented: `app` itself, or whose method it is.
        self._marked: object = flask or getattr(app, "__self__", app)
        #: Keys in the environ of requests that concern the app's own OpenTelemetry.
        self._told_by = instrumented.NOT_FOUND_YET
        #: Put in by the instrumentor: what the app's own code says comes later, and holds.
        self.provisional = False
        self._uwsgi = uwsgi_module()
        if self._uwsgi is not None:
            on_postfork(self._learn_process)
        self.configure(settings or Settings.from_environment(**arguments))

    def configure(self, settings: Settings) -> None:
        """Have `settings` hold from the next request on; before the first one of a process."""
        self.settings = settings
        self.provisional = False
        # What each request asks for, without a second look-up.
        self._enabled = self.settings.enabled
        self._trusted_proxy = self.settings.trusted_proxy
        #: What is copied: the last ones only where asked for.
        self._keys: tuple[str, ...] = ENVIRON_KEYS[:ALWAYS_COPIED]
        if self._trusted_proxy or self.settings.query_string:
            # What is not to be copied is asked for by a name that no server gives it.
            self._keys = tuple(
                ""
                if (key in PROXY_HEADERS and not self._trusted_proxy)
                or (key == "QUERY_STRING" and not self.settings.query_string)
                else key
                for key in ENVIRON_KEYS
            )
        self._choose_copy()
        self.max_operations = self.settings.max_operations
        self._writer = SpoolWriter(
            self.settings.spool_directory,
            self._build_info,
            max_bytes=self.settings.spool_max_bytes,
            report=note_problem,
            encode_odd=_encode_odd,
        )
        if self._enabled and jinja.install():
            self._know_segments("flask.template")
        if self._enabled and pymysql.install(self.settings):
            self._know_segments("mysql.connect", "mysql.query", "mysql.fetch", "mysql.commit")
            if not pymysql.sees_first_packets():
                self._unmeasured |= NO_FIRST_PACKETS

    def disable(self) -> None:
        """Have the application run from the next request on as if this were not there."""
        self._enabled = False

    def _know_segments(self, *names: str) -> None:
        """Say that hooks measure these segments, so that a request without any of them has 0, not unknown."""
        self._unmeasured &= ~_bits(names)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the application as the server would, and record the request."""
        if ENVIRON_KEY in environ or not self._enabled:
            outside = environ.get(ENVIRON_KEY)
            if not self._enabled or (outside is not None and not outside.finished):
                return self._call_within(outside, environ, start_response)
        try:
            recorder = self._begin(environ)
        except Exception:
            note_fault("the start of a request")
            outside = environ.pop(ENVIRON_KEY, None)
            if outside is not None:
                outside.finished = True
            return self.app(environ, start_response)
        # What `enter` and `leave` do, written out: each request takes it. An attribute that is no method has
        # a name before it is called, since it is looked up faster so.
        app, marks = self.app, recorder.marks
        token = set_current(recorder)
        context = span_token = None
        recorder.start_response = start_response
        try:
            for key in self._told_by:
                if key in environ:
                    context = self._meet_opentelemetry(recorder, environ)
                    break
            else:
                # Nothing to inherit, in almost every request: spare the two copies of an empty dictionary.
                context = build_span_context(recorder) if get_context() else Context({SPAN_KEY: recorder})
            if context is not None:
                span_token = attach_context(context)
            called_ns = monotonic_ns()
            marks.append(self._called)
            marks.append(called_ns)
        except Exception:
            note_fault("OpenTelemetry's context")
        try:
            # A method of the recorder's, which is called without a step through C.
            result = app(environ, MethodType(self._note_start, recorder))
        except BaseException as error:
            recorder.fail(error)
            recorder.more.token, recorder.more.span_token = token, span_token
            recorder.leave()
            self.finish(recorder)
            raise
        try:
            reset_current(token)
            if span_token is not None:
                detach_context(span_token)
            returned_ns = monotonic_ns()
            marks.append(SEND)
            marks.append(returned_ns)
        except Exception:
            # The app has gone on in a context of its own making, which ends with it.
            recorder.more.token, recorder.more.span_token = token, span_token
            recorder.leave()
        try:
            if type(result) is self._closing_iterator and self._watch_response(recorder, result):
                return result
            recorder.more.span_context = context
            return self._watch_body(recorder, environ, result)
        except Exception:
            note_fault("the response")
            self.finish(recorder, NOT_CLOSED)
            return result

    def _call_within(
        self, recorder: RequestRecorder | None, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Call the application as part of a request that is recorded outside of it, or of none."""
        if (
            not self._enabled
            or recorder is None
            or self._called != FLASK_START
            or current.get() is not recorder
            or recorder.is_in_flask()
        ):
            return self.app(environ, start_response)
        # Flask inside of another kind of app, or of middleware.
        previous = recorder.switch(FLASK_START)
        try:
            return self.app(environ, start_response)
        finally:
            recorder.switch(previous)

    def finish(self, recorder: RequestRecorder, end: int = CLOSED) -> None:
        """Append the record, once; it ends now, and `end` says as what."""
        if recorder.finished:
            return
        recorder.finished = True
        try:
            marks = recorder.marks
            end_ns = monotonic_ns()
            marks.append(SEND)
            marks.append(end_ns)
            self._is_slow = end_ns - marks[1] > SLOW_NS
            if end:
                recorder.more.end = end
            else:
                # It may lead back to the environ, and so to the recorder.
                recorder.start_response = None
            if recorder.rare is not None:
                self._complete_rare(recorder, recorder.rare)
            self._writer.append_record(recorder.values, end_ns)
        except Exception:
            note_fault("the end of a request")

    def _complete_rare(self, recorder: RequestRecorder, rare: Rare) -> None:
        if rare.cpu_start_ns is not None and threading.get_ident() == recorder.owner:
            rare.cpu_end_ns = thread_time_ns()
            if rare.run_queue_start_ns is not None and self._run_queue is not None:
                run_queue_ns = self._run_queue.read_ns()
                if run_queue_ns is not None:
                    rare.run_queue_ns = run_queue_ns - rare.run_queue_start_ns
        if rare.operations:
            recorder.bound_operations()
        if rare.app_span is not None or rare.app_environ is not None:
            instrumented.note_app_span(recorder)
        # It leads back to the recorder.
        rare.span_context = None
        recorder.complete_values()

    def _begin(self, environ: WSGIEnvironment) -> RequestSpan:
        base_ns = monotonic_ns()
        wall_ns = time_ns()
        if monotonic_ns() - base_ns > _APART_NS:
            wall_ns = self._read_wall_ns(base_ns)
        if not self._process[0]:
            self._learn_process()
        try:
            bits = self._drawn.pop()
        except IndexError:
            bits = self._draw()
        try:
            copy = self._copy
            copied = copy(environ) + self._no_core
        except KeyError:
            # Without nginx's lines, or under another server.
            copied = self._copy_any(environ)
        recorder = RequestSpan()
        recorder.middleware = self
        # Looked up at each call: gevent replaces it, and then it tells greenlets apart.
        recorder.owner = threading.get_ident()
        recorder.marks = marks = [self._entry_segment, base_ns]
        statements: list[Any] = []
        recorder.statements = statements
        transport = read_transport(self._uwsgi) if self._asks_transport else self._transport
        # In the order of `RawRecord`. The number is given at the end; operations, status and so on may come.
        recorder.values = [
            RAW_TAG,
            wall_ns,
            copied,
            marks,
            bits,
            self._unmeasured,
            transport,
            0,
            statements,
            (),
            None,
            None,
            None,
            None,
            None,
        ]
        recorder.rare = None
        recorder.finished = False
        environ[ENVIRON_KEY] = recorder
        if (self._is_slow or bits < LENS_BELOW) and self._run_queue is not None:
            recorder.rare = Rare(run_queue_start_ns=self._run_queue.read_ns(), cpu_start_ns=thread_time_ns())
        return recorder

    def _draw(self) -> int:
        """Return a random number of 64 bits, and have some more at hand."""
        self._drawn += array("Q", os.urandom(8 * _DRAWN)).tolist()
        return self._drawn.pop()

    def _choose_copy(self) -> None:
        """Have what is there copied of each environ: uWSGI tells the core where there are several."""
        copy: Callable[[WSGIEnvironment], tuple[Any, ...]] = self._copy_any
        if len(self._keys) == ALWAYS_COPIED:
            copy = _copy_usual if self._facts.threads in {None, 1} else _copy_with_core
        self._copy = copy
        #: What is appended, in the place of the core's number.
        self._no_core: tuple[None, ...] = (None,) if copy is _copy_usual else ()

    def _copy_any(self, environ: WSGIEnvironment) -> tuple[Any, ...]:
        return tuple(map(environ.get, self._keys))

    def _meet_opentelemetry(self, recorder: RequestSpan, environ: WSGIEnvironment) -> Context | None:
        """Return the context of a request in which OpenTelemetry has a hand: by headers, app, or context.

        None where an instrumentation makes a span of the request.
        """
        if self._told_by is instrumented.NOT_FOUND_YET:
            # Again at the next request where it fails: propagators are plug-ins.
            self._told_by = instrumented.find_keys(self._marked)
        if instrumented.is_instrumented(self._marked):
            span = recorder.more.app_span = find_span_around(get_context())
            if span is None:
                instrumented.hand_over(environ, recorder)
            else:
                recorder.more.app_environ = environ
            return None
        return build_told_context(recorder, environ, trusted=self._trusted_proxy)

    def _read_wall_ns(self, at_ns: int) -> int:
        """Return the wall clock at a monotonic instant that has just been.

        Between two readings the thread can lose the CPU or the GIL for milliseconds, and all stamps of the
        request would be off by that: of a few pairs of readings the closest is taken.
        """
        closest_ns, wall_ns = 1 << 62, 0
        for _ in range(_PAIRS):
            before_ns = monotonic_ns()
            now_ns = time_ns()
            apart_ns = monotonic_ns() - before_ns
            if apart_ns < closest_ns:
                closest_ns, wall_ns = apart_ns, now_ns - (before_ns - at_ns)
            if apart_ns <= _APART_NS:
                break
        return wall_ns

    def _watch_response(self, recorder: RequestRecorder, result: Any) -> bool:
        """Have the request end with a response of werkzeug's in memory; False for any other.

        Sending it and closing it run no code of the app, and the list of what is called at its close has
        room for one more: so the server gets what the app has returned, and no step of it costs anything.
        """
        try:
            callbacks = result._callbacks
            response = callbacks[-1].__self__
            body = response.response
            if type(body) is not list or response._on_close:
                return False
            # The one chunk that there nearly always is, `join` gives back as it is.
            recorder.values[RESPONSE_BYTES] = len(b"".join(body))
        except (AttributeError, IndexError, TypeError):
            # Of another release of werkzeug, not its own, or text, which it encodes on the way out.
            return False
        callbacks.append(MethodType(_close, recorder))
        return True

    def _watch_body(
        self, recorder: RequestRecorder, environ: WSGIEnvironment, result: Iterable[bytes]
    ) -> Iterable[bytes]:
        wrapper = environ.get("wsgi.file_wrapper")
        is_file = hasattr(result, "read") or (isinstance(wrapper, type) and isinstance(result, wrapper))
        # uWSGI sends a file by sendfile only when it gets back the very object, and takes bytes as a whole.
        if is_file or isinstance(result, (bytes, bytearray, memoryview, str)):
            if self._uwsgi is None:
                self.finish(recorder, NOT_SENT)
            else:
                environ[_END_KEY] = _EnvironEnd(recorder)
            return result
        if isinstance(result, (list, tuple)):
            recorder.response_bytes = sum(map(len, result))
            return _SizedBody(recorder, result, self._body_segment)
        if hasattr(result, "__len__"):
            return _SizedStreamedBody(recorder, result, self._body_segment)
        return _StreamedBody(recorder, result, self._body_segment)

    def _learn_process(self) -> None:
        """Learn what this process is; called after the fork, and wherever that was missed."""
        try:
            self._facts = read_facts(self._uwsgi)
            self._transport = self._facts.transport
            self._asks_transport = self._uwsgi is not None and self._transport is None
            if self._facts.concurrency == "greenlets":
                # A thread's times are those of many requests.
                self._run_queue = None
            else:
                self._run_queue = RunQueueClock()
        except Exception:
            note_fault("reading uWSGI's facts")
        self._choose_copy()
        # Forked workers that shared what is drawn would give out the same ids.
        self._drawn = []
        self._process = mark_process()

    def _build_info(self, writer_id: str) -> WriterInfo:
        facts = self._facts
        return WriterInfo(
            FORMAT_VERSION,
            writer_id,
            "worker",
            self.settings.service_name or "app",
            socket.gethostname(),
            os.getpid(),
            time_ns(),
            reqpath.__version__,
            facts.worker,
            facts.processes,
            facts.threads,
            facts.concurrency,
            facts.server,
        )


class _Body(msgspec.Struct, eq=False):
    """The response's iterable; its `close` ends the record. The server iterates the app's own iterator.

    A struct because its construction then runs no bytecode.
    """

    _recorder: RequestRecorder
    _iterable: Iterable[bytes]
    #: Which the app's code in it is in.
    _segment: int

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._iterable)

    def __next__(self) -> bytes:
        # Flask's own response is an iterator, so code around the app may call `next` on it.
        return next(self._iterable)  # type: ignore[call-overload, no-any-return]  # as the app's own would

    def close(self) -> None:
        """Close the application's iterable, then end the record."""
        close = getattr(self._iterable, "close", None)
        recorder = self._recorder
        if close is None:
            _close(recorder)
            return
        recorder.enter(self._segment)
        recorder.more.closing_ns = recorder.last_ns
        try:
            close()
        except BaseException as error:
            recorder.fail(error)
            raise
        finally:
            recorder.leave()
            _close(recorder)


class _SizedBody(_Body):
    """A list or tuple, from whose length a server may derive `Content-Length`."""

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # made only for those that have one


class _StreamedBody(_Body):
    """A body that the app makes while it is sent: each step is the app's time, between them the server's."""

    _next: Callable[[], bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        recorder = self._recorder
        recorder.enter(self._segment)
        try:
            if self._next is None:
                self._next = iter(self._iterable).__next__
            chunk = self._next()
        except StopIteration:
            raise
        except BaseException as error:
            recorder.fail(error)
            raise
        finally:
            recorder.leave()
        recorder.count_bytes(chunk)
        return chunk


class _SizedStreamedBody(_StreamedBody):
    """A streamed body with a length."""

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # made only for those that have one


def _close(recorder: RequestRecorder) -> None:
    """End a request whose response has been closed."""
    recorder.middleware.finish(recorder)


def _note_start(
    recorder: RequestRecorder, status: str, headers: list[tuple[str, str]], exc_info: Any = None
) -> Callable[[bytes], object]:
    """Stand for `start_response`: note status and instant."""
    start_response: StartResponse = recorder.start_response
    values = recorder.values
    values[STATUS] = status
    try:
        values[RESPONSE_START] = monotonic_ns()
    except Exception:
        note_fault("the start of a response")
    if exc_info is None:
        return start_response(status, headers)
    return start_response(status, headers, exc_info)


def _note_start_and_writes(
    recorder: RequestRecorder, status: str, headers: list[tuple[str, str]], exc_info: Any = None
) -> Callable[[bytes], object]:
    """Stand for `start_response`, and have what it returns count as sending."""
    return partial(_write, recorder, _note_start(recorder, status, headers, exc_info))


def _write(recorder: RequestRecorder, write: Callable[[bytes], object], chunk: bytes, /) -> object:
    previous = recorder.switch(SEND)
    try:
        result = write(chunk)
    finally:
        recorder.switch(previous)
    recorder.count_bytes(chunk)
    return result


def _bits(names: Iterable[str]) -> int:
    """Return a bit for each of some of `WORKER_SEGMENTS`."""
    return sum(1 << WORKER_SEGMENTS.index(name) for name in names)


_copy_with_core: Final = itemgetter(*ENVIRON_KEYS[:ALWAYS_COPIED])
#: All but the core, which is there only where there are more than one.
_copy_usual: Final = itemgetter(*ENVIRON_KEYS[: ALWAYS_COPIED - 1])


class _EnvironEnd:
    """Tells when the server is done with a request: it then lets go of the environ, and of what is in it.

    That is uWSGI's only sign that it has sent a file, save a hook that would cost every request a call.
    Source: uWSGI plugins/python/wsgi_handlers.c, `uwsgi_request_wsgi`.
    """

    __slots__ = ("_recorder",)

    def __init__(self, recorder: RequestRecorder) -> None:
        self._recorder = recorder

    def __del__(self) -> None:
        _close(self._recorder)


def _encode_odd(values: list[Any]) -> bytes:
    record = RawRecord(*values[1:])
    # A long path or header, lone surrogates from undecodable bytes, or what a server or driver made up.
    record.environ = [
        _encodable(value)[:_MAX_TEXT] if isinstance(value, str) else value if type(value) is int else None
        for value in record.environ
    ]
    record.status = _encodable(record.status)[:_MAX_PATH] if isinstance(record.status, str) else None
    if record.route is not None:
        record.route = _encodable(record.route)[:_MAX_PATH]
    statements = record.statements
    for at in range(3, len(statements), STATEMENT_ITEMS):
        if type(statements[at]) is not int or not 0 <= statements[at] < 1 << 64:
            statements[at] = None
    try:
        payload = encode(record)
        if len(payload) <= _MAX_RECORD_BYTES:
            return payload
    except (UnicodeEncodeError, TypeError, OverflowError):
        pass
    # Too much, or of a foreign type: give up what may be it.
    record.dropped_operations += len(record.operations) + len(statements) // STATEMENT_ITEMS
    record.operations, record.statements = [], []
    notes = record.notes
    if notes is not None:
        notes.attributes, notes.events, notes.span_status = {}, [], None
        if notes.span_name is not None:
            notes.span_name = _encodable(notes.span_name)
        if notes.exception is not None:
            kind, message, stack = (_encodable(text) for text in notes.exception)
            notes.exception = kind, message, stack
    return encode(record)


def _encodable(text: str) -> str:
    return str(text).encode("utf-8", "replace").decode()
