"""The WSGI middleware: begins a record when the application is called, appends it when the body is closed.

The layer below is the server's WSGI interface (PEP 3333); the layer above gets `RequestRecorder` as the
current one. The response, its iteration, `write` and all exceptions pass through unchanged.
"""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from os import getpid
from typing import TYPE_CHECKING, Any, Final

import msgspec

import reqpath
from reqpath.clock import SYSTEM, Clock
from reqpath.record import FORMAT_VERSION, Transport, WorkerRecord, WriterInfo, encode
from reqpath.settings import Settings
from reqpath.spool import SpoolWriter
from reqpath.tiers import WORKER_SEGMENTS
from reqpath.worker import instrumented, jinja, pymysql
from reqpath.worker import recorder as segments
from reqpath.worker.guard import note_fault, note_problem
from reqpath.worker.lens import RUN_QUEUE_EVERY, RunQueueClock
from reqpath.worker.recorder import RequestRecorder, get_context
from reqpath.worker.span import build_span_context, build_told_context, find_span_around
from reqpath.worker.stamps import is_digits, read_stamps
from reqpath.worker.uwsgi import ServerFacts, on_postfork, read_facts, read_transport, uwsgi_module

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from flask import Flask
    from opentelemetry.context import Context

#: Where the request's recorder is in the WSGI environ.
ENVIRON_KEY: Final = "reqpath.recorder"
_MAX_PATH: Final = 1024
#: Readings of two clocks that take longer than this are of two instants. They take 0.2 µs.
_APART_NS: Final = 10_000
#: How many pairs of readings are tried for one that is closer.
_PAIRS: Final = 5
#: An app can put megabytes on its span; a record of more than this goes without.
_MAX_RECORD_BYTES: Final = 1 << 20
_FLASK_SEGMENTS: Final = (segments.MIDDLEWARE, segments.FRAMEWORK, segments.VIEW, segments.TEMPLATE)


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
        clock: Clock = SYSTEM,
        flask: Flask | None = None,
        **arguments: Any,
    ) -> None:
        """`arguments` are those of `Settings`; in `flask` hooks will split the time further.

        Raises: ConfigurationError for a wrong argument.
        """
        self.app = app
        self._clock = clock
        self._monotonic_ns = clock.monotonic_ns
        self._wall_ns = clock.wall_ns
        self._thread_cpu_ns = clock.thread_cpu_ns
        self._entry_segment = segments.MIDDLEWARE if flask else segments.APP
        self._body_segment = segments.VIEW if flask else segments.APP
        #: `exclusive_ns` of a request that begins.
        self._nothing_yet: list[int | None] = [0] * len(WORKER_SEGMENTS)
        #: Segments that no hook of this app measures. Nothing inside Flask is another kind of app.
        self._unmeasured = [
            i
            for i, name in enumerate(WORKER_SEGMENTS)
            if name.startswith(("mysql.", "wsgi.") if flask else ("mysql.", "flask."))
        ]
        self._facts = ServerFacts()
        self._transport: Transport | None = None
        self._asks_transport = False
        self._facts_pid = 0
        self._random_bits: Callable[[int], int] = random.getrandbits
        self._run_queue: RunQueueClock | None = None
        #: The app that OpenTelemetry marks as instrumented: `app` itself, or whose method it is.
        self._marked: object = flask or getattr(app, "__self__", app)
        #: Keys in the environ of requests that concern the app's own OpenTelemetry.
        self._told_by = instrumented.NOT_FOUND_YET
        #: Put in by the instrumentor: what the app's own code says comes later, and holds.
        self.provisional = False
        self._uwsgi = uwsgi_module()
        self._sendfile = _SendfileEnd(self._uwsgi)
        if self._uwsgi is not None:
            on_postfork(self._learn_process)
        self.configure(settings or Settings.from_environment(**arguments))

    def configure(self, settings: Settings) -> None:
        """Have `settings` hold from the next request on; before the first one of a process."""
        self.settings = settings
        self.provisional = False
        # What each request asks for, without a second look-up.
        self._enabled = self.settings.enabled
        self._query_string = self.settings.query_string
        self._trusted_proxy = self.settings.trusted_proxy
        self._max_operations = self.settings.max_operations
        self._writer = SpoolWriter(
            self.settings.spool_directory,
            self._build_info,
            max_bytes=self.settings.spool_max_bytes,
            report=note_problem,
        )
        if self._enabled and jinja.install():
            self._know_segments("flask.template")
        if self._enabled and pymysql.install(self.settings):
            self._know_segments("mysql.connect", "mysql.query", "mysql.fetch", "mysql.commit")

    def disable(self) -> None:
        """Have the application run from the next request on as if this were not there."""
        self._enabled = False

    def _know_segments(self, *names: str) -> None:
        """Say that hooks measure these segments, so that a request without any of them has 0, not unknown."""
        known = [WORKER_SEGMENTS.index(name) for name in names]
        self._unmeasured = [i for i in self._unmeasured if i not in known]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the application as the server would, and record the request."""
        outside = environ.get(ENVIRON_KEY)
        if (outside is not None and not outside.finished) or not self._enabled:
            return self.app(environ, start_response)
        try:
            recorder = self._begin(environ)
        except Exception:
            note_fault("the start of a request")
            return self.app(environ, start_response)
        recorder.enter(self._entry_segment)
        try:
            result = self.app(environ, _watch_start(recorder, start_response))
        except BaseException as error:
            recorder.fail(error)
            recorder.leave()
            self.finish(recorder, closed=True)
            raise
        recorder.leave()
        try:
            return self._watch_body(recorder, environ, result)
        except Exception:
            note_fault("the response")
            self.finish(recorder, closed=False)
            return result

    def finish(self, recorder: RequestRecorder, *, closed: bool, sent: bool = True) -> None:
        """Append the record, once, to end at the latest switch; `closed` says that this is the body's end.

        `sent` is False where the time of sending is not known.
        """
        if recorder.finished:
            return
        recorder.finished = True
        recorder.flask_context = None
        try:
            record = recorder.record
            recorder.sum_up()
            exclusive_ns = record.exclusive_ns
            for segment in self._unmeasured:
                # Another app's hook may have measured it, or Flask inside a plain middleware.
                if not exclusive_ns[segment] and (
                    segment not in _FLASK_SEGMENTS or record.flask_start_offset_ns is None
                ):
                    exclusive_ns[segment] = None
            if exclusive_ns[segments.TEMPLATE] and not recorder.folded:
                record.timeline = _build_timeline(recorder)
            if not sent:
                exclusive_ns[segments.SEND] = None
            if closed:
                record.closed_offset_ns = recorder.marks[-1] - recorder.base_ns
            cpu_start_ns = recorder.cpu_start_ns
            if cpu_start_ns is not None and threading.get_ident() == recorder.owner:
                record.cpu_ns = self._thread_cpu_ns() - cpu_start_ns
                if recorder.run_queue_start_ns is not None and self._run_queue is not None:
                    run_queue_ns = self._run_queue.read_ns()
                    if run_queue_ns is not None:
                        record.run_queue_ns = run_queue_ns - recorder.run_queue_start_ns
            if recorder.span_context is None:
                instrumented.note_app_span(recorder)
            record.sequence = self._writer.next_sequence()
            self._writer.append(_encode_safely(record))
        except Exception:
            note_fault("the end of a request")

    def _begin(self, environ: WSGIEnvironment) -> RequestRecorder:
        base_ns = self._monotonic_ns()
        wall_ns = self._wall_ns()
        if self._monotonic_ns() - base_ns > _APART_NS:
            wall_ns = self._read_wall_ns(base_ns)
        if self._facts_pid != getpid():
            self._learn_process()
        read = environ.get
        path = read("PATH_INFO", "")
        if script := read("SCRIPT_NAME"):
            path = script + path
        if self._query_string and read("QUERY_STRING"):
            path = f"{path}?{environ['QUERY_STRING']}"
        if not path.isascii():
            # PEP 3333: bytes travel as latin-1.
            path = path.encode("latin-1", "replace").decode("utf-8", "replace")
        (trace_id, parent_id, sampled, start_ns, pass_ns, resolution_ns, accept_ns, parsed_ns, rejected) = (
            read_stamps(environ, wall_ns, self._trusted_proxy)
        )
        bits = self._random_bits(64)
        record = WorkerRecord(
            trace_id or f"{self._random_bits(128):032x}",
            "%016x" % bits,  # noqa: UP031 - a quarter faster than an f-string here
            parent_id,
            sampled,
            0,
            read("REQUEST_METHOD", ""),
            path[:_MAX_PATH],
            None,
            None,
            wall_ns,
            None,
            self._nothing_yet.copy(),
            start_ns,
            pass_ns,
            resolution_ns,
            accept_ns,
            parsed_ns,
            transport=self._transport,
            host=read("HTTP_HOST"),
        )
        if rejected:
            record.rejected_stamps = rejected
        core = read("uwsgi.core")
        if core.__class__ is int:
            record.core = core
        length = read("CONTENT_LENGTH")
        if length and len(length) < 19 and is_digits(length):
            record.request_bytes = int(length)
        if self._asks_transport:
            record.transport = read_transport(self._uwsgi)
        recorder = RequestRecorder(
            record,
            [self._entry_segment, base_ns],
            base_ns,
            self._monotonic_ns,
            self._max_operations,
            # Looked up at each call: gevent replaces it, and then it tells greenlets apart.
            threading.get_ident(),
        )
        environ[ENVIRON_KEY] = recorder
        try:
            if environ.keys().isdisjoint(self._told_by):
                recorder.span_context = build_span_context(recorder)
            else:
                recorder.span_context = self._meet_opentelemetry(recorder, environ)
        except Exception:
            note_fault("OpenTelemetry's context")
        if self._run_queue is not None:
            if not bits % RUN_QUEUE_EVERY:
                recorder.run_queue_start_ns = self._run_queue.read_ns()
            recorder.cpu_start_ns = self._thread_cpu_ns()
        return recorder

    def _meet_opentelemetry(self, recorder: RequestRecorder, environ: WSGIEnvironment) -> Context | None:
        """Return the context for a request to an instrumented app, or with headers for propagators."""
        if self._told_by is instrumented.NOT_FOUND_YET:
            # Again at the next request where it fails: propagators are plug-ins.
            self._told_by = instrumented.find_keys(self._marked)
        if instrumented.is_instrumented(self._marked):
            recorder.app_span = find_span_around(get_context())
            if recorder.app_span is None:
                instrumented.hand_over(environ, recorder)
            else:
                recorder.app_environ = environ
            return None
        return build_told_context(recorder, environ, trusted=self._trusted_proxy)

    def _read_wall_ns(self, at_ns: int) -> int:
        """Return the wall clock at a monotonic instant that has just been.

        Between two readings the thread can lose the CPU or the GIL for milliseconds, and all stamps of the
        request would be off by that: of a few pairs of readings the closest is taken.
        """
        closest_ns, wall_ns = 1 << 62, 0
        for _ in range(_PAIRS):
            before_ns = self._monotonic_ns()
            now_ns = self._wall_ns()
            apart_ns = self._monotonic_ns() - before_ns
            if apart_ns < closest_ns:
                closest_ns, wall_ns = apart_ns, now_ns - (before_ns - at_ns)
            if apart_ns <= _APART_NS:
                break
        return wall_ns

    def _watch_body(
        self, recorder: RequestRecorder, environ: WSGIEnvironment, result: Iterable[bytes]
    ) -> Iterable[bytes]:
        if recorder.in_memory is self and not isinstance(result, (list, tuple)):
            return _MemoryBody(self, recorder, result, self._body_segment)
        wrapper = environ.get("wsgi.file_wrapper")
        is_file = hasattr(result, "read") or (isinstance(wrapper, type) and isinstance(result, wrapper))
        # uWSGI sends a file by sendfile only when it gets back the very object, and takes bytes as a whole.
        if is_file or isinstance(result, (bytes, bytearray, memoryview, str)):
            if not self._sendfile.wait_for_end(lambda: self._finish_sendfile(recorder)):
                self.finish(recorder, closed=False, sent=False)
            return result
        if isinstance(result, (list, tuple)):
            recorder.record.response_bytes = sum(map(len, result))
            return _SizedBody(self, recorder, result, self._body_segment)
        if hasattr(result, "__len__"):
            return _SizedStreamedBody(self, recorder, result, self._body_segment)
        return _StreamedBody(self, recorder, result, self._body_segment)

    def _finish_sendfile(self, recorder: RequestRecorder) -> None:
        recorder.switch(segments.SEND)
        self.finish(recorder, closed=True)

    def _learn_process(self) -> None:
        """Learn what this process is; called after the fork, and wherever that was missed."""
        try:
            self._facts = read_facts(self._uwsgi)
            self._transport = self._facts.transport
            self._asks_transport = self._uwsgi is not None and self._transport is None
            self._run_queue = None if self._facts.concurrency == "greenlets" else RunQueueClock()
        except Exception:
            note_fault("reading uWSGI's facts")
        # Seeded anew: forked workers that shared a state would give out the same ids.
        self._random_bits = random.Random(os.urandom(16)).getrandbits  # noqa: S311 - ids are no secrets
        self._facts_pid = os.getpid()

    def _build_info(self, writer_id: str) -> WriterInfo:
        facts = self._facts
        return WriterInfo(
            FORMAT_VERSION,
            writer_id,
            "worker",
            self.settings.service_name or "app",
            socket.gethostname(),
            os.getpid(),
            self._clock.wall_ns(),
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

    _middleware: RequestMiddleware
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
        if close is None:
            self._recorder.switch(segments.SEND)
            self._middleware.finish(self._recorder, closed=True)
            return
        self._recorder.enter(self._segment)
        self._recorder.record.closing_offset_ns = self._recorder.last_ns - self._recorder.base_ns
        try:
            close()
        except BaseException as error:
            self._recorder.fail(error)
            raise
        finally:
            self._recorder.leave()
            self._middleware.finish(self._recorder, closed=True)

    def __del__(self) -> None:
        # A server that never closes the body is at fault, but its request did happen.
        if not self._recorder.finished:
            self._recorder.switch(segments.SEND)
            self._middleware.finish(self._recorder, closed=False)


class _MemoryBody(_Body):
    """A Flask response in memory: when nothing is to be called at its close, no code of the app is."""

    def close(self) -> None:
        """Close the application's iterable, then end the record."""
        recorder = self._recorder
        close = getattr(self._iterable, "close", None)
        if recorder.on_close or close is None:
            super().close()
            return
        recorder.switch(segments.SEND)
        try:
            close()
        finally:
            self._middleware.finish(recorder, closed=True)


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


def _build_timeline(recorder: RequestRecorder) -> list[int]:
    """Return the marks as `WorkerRecord.timeline` has them."""
    base_ns = recorder.base_ns
    return [mark - base_ns if i % 2 else mark for i, mark in enumerate(recorder.marks)]


def _watch_start(recorder: RequestRecorder, start_response: StartResponse) -> StartResponse:
    """Return a `start_response` that notes status and instant, and whose `write` counts as sending."""

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        try:
            recorder.record.response_start_offset_ns = recorder.offset_ns()
            recorder.record.status = int(status[:3])
        except Exception:
            note_fault("a status line")
        if exc_info is None:
            write = start_response(status, headers)
        else:
            write = start_response(status, headers, exc_info)

        def timed_write(chunk: bytes, /) -> object:
            previous = recorder.switch(segments.SEND)
            try:
                result = write(chunk)
            finally:
                recorder.switch(previous)
            recorder.count_bytes(chunk)
            return result

        return timed_write

    return start


class _SendfileEnd:
    """Tells when uWSGI has sent a file by itself: by its hook after each request.

    uWSGI reads `uwsgi.after_req_hook` once, after it has loaded the apps; so the hook is believed only when
    it was seen to run. Source: uWSGI plugins/python/python_plugin.c, `uwsgi_python_init_apps`.
    """

    def __init__(self, uwsgi: Any) -> None:
        self._runs = False
        self._waiting: dict[int, Callable[[], None]] = {}
        if uwsgi is None:
            return
        previous = getattr(uwsgi, "after_req_hook", None)

        def after_request() -> None:
            self._runs = True
            if self._waiting:
                waiting = self._waiting.pop(threading.get_ident(), None)
                if waiting is not None:
                    waiting()
            if previous is not None:
                previous()

        uwsgi.after_req_hook = after_request

    def wait_for_end(self, finish: Callable[[], None]) -> bool:
        """Have `finish` called when the current request is over; False when that can't be told."""
        if not self._runs:
            return False
        self._waiting[threading.get_ident()] = finish
        return True


def _encode_safely(record: WorkerRecord) -> bytes:
    try:
        payload = encode(record)
        if len(payload) <= _MAX_RECORD_BYTES:
            return payload
    except (UnicodeEncodeError, TypeError, OverflowError):
        pass
    # Too much, lone surrogates from undecodable bytes, or a foreign type: give up what may hold it.
    record.attributes, record.events, record.span_status = {}, [], None
    record.operations, record.dropped_operations = [], record.dropped_operations + len(record.operations)
    if record.exception is not None:
        kind, message, stack = (_encodable(text) for text in record.exception)
        record.exception = kind, message, stack
    for name in ("method", "path", "route", "host", "span_name"):
        value = getattr(record, name)
        if value is not None:
            setattr(record, name, _encodable(str(value))[:_MAX_PATH])
    return encode(record)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
