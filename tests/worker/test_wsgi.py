"""The WSGI middleware: the response is what it was, and the request is recorded."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import Template
from opentelemetry import context as otel_context
from opentelemetry import trace

from reqpath.raw import NOT_SEEN, RawOperation, read_path
from reqpath.record import Record, WorkerRecord
from reqpath.tiers import WORKER_SEGMENTS
from reqpath.worker import recorder as segments
from reqpath.worker.recorder import current
from reqpath.worker.wsgi import ENVIRON_KEY, RequestMiddleware
from tests.conftest import FakeClock, worker_clocks

MS = 1_000_000
App = Callable[[dict[str, Any], Any], Any]
ReadRecords = Callable[[str], list[Record]]


class Server:
    """A WSGI server in a function: calls the app, iterates the body, closes it, keeps what it saw."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.status: str | None = None
        self.headers: list[tuple[str, str]] = []
        self.exc_info: Any = None
        self.written: list[bytes] = []
        self.result: Any = None

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], Any]:
        self.status, self.headers, self.exc_info = status, headers, exc_info
        return self.written.append

    def call(self, **environ: Any) -> Any:
        defaults: dict[str, Any] = {"QUERY_STRING": ""}
        setup_testing_defaults(defaults)
        self.environ = defaults | environ
        self.result = self.app(self.environ, self.start_response)
        return self.result

    def get(self, **environ: Any) -> bytes:
        result = self.call(**environ)
        try:
            for chunk in result:
                self.written.append(chunk)
            return b"".join(self.written)
        finally:
            if hasattr(result, "close"):
                result.close()


@pytest.fixture
def record_of(spool: str, read_records: ReadRecords) -> Callable[[], WorkerRecord]:
    """Return a function that gives the one record there is."""

    def read() -> WorkerRecord:
        (record,) = read_records(spool)
        assert isinstance(record, WorkerRecord)
        return record

    return read


Wrap = Callable[..., Server]


@pytest.fixture
def wrap(spool: str, fake_clock: FakeClock) -> Iterator[Wrap]:
    """Return a function that puts the middleware around an app, on the fake clock, behind a server."""
    made: list[RequestMiddleware] = []

    def make(app: App, **arguments: Any) -> Server:
        middleware = RequestMiddleware(app, spool=spool, **arguments)
        made.append(middleware)
        return Server(middleware)

    yield make
    for middleware in made:
        middleware._writer.close()


def exclusive(record: WorkerRecord) -> dict[str, int]:
    """Return the segments that took any time."""
    return {name: value for name, value in zip(WORKER_SEGMENTS, record.exclusive_ns, strict=True) if value}


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello, ", b"world"]


def test_a_plain_response_goes_through_and_is_recorded(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], fake_clock: FakeClock
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        fake_clock.advance(3 * MS)
        return hello(environ, start_response)

    server = wrap(app)
    began_ns = fake_clock.wall_ns
    assert server.get(PATH_INFO="/a", QUERY_STRING="secret=1", HTTP_HOST="shop") == b"hello, world"
    assert (server.status, server.headers) == ("200 OK", [("Content-Type", "text/plain")])
    record = record_of()
    assert (record.method, record.path, record.status, record.host) == ("GET", "/a", 200, "shop")
    assert (record.app_start_ns, record.closed_offset_ns) == (began_ns, 3 * MS)
    assert (record.response_bytes, record.response_start_offset_ns) == (12, 3 * MS)
    assert record.exception is None
    assert exclusive(record) == {"wsgi.app": 3 * MS}
    assert record.exclusive_ns[segments.VIEW] is None, "no Flask here, so its time is unknown, not zero"
    assert record.exclusive_ns[segments.QUERY] == 0, "PyMySQL is hooked, and there was no query"
    assert len(record.trace_id) == 32
    assert len(record.span_id) == 16


def test_the_query_string_is_kept_where_the_settings_say_so(
    wrap: Wrap, record_of: Callable[[], WorkerRecord]
) -> None:
    wrap(hello, query_string=True).get(SCRIPT_NAME="/shop", PATH_INFO="/a", QUERY_STRING="q=1")
    assert record_of().path == "/shop/a?q=1"


def test_a_path_beyond_ascii_is_decoded(wrap: Wrap, record_of: Callable[[], WorkerRecord]) -> None:
    wrap(hello).get(PATH_INFO="/käse/\u20ac".encode().decode("latin-1"))
    assert record_of().path == "/käse/\u20ac"


# bodies


def test_a_streamed_bodys_steps_are_the_apps_and_the_rest_is_sending(
    wrap: Wrap,
    record_of: Callable[[], WorkerRecord],
    fake_clock: FakeClock,
    read_records: ReadRecords,
    spool: str,
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        fake_clock.advance(1 * MS)
        yield b"a"
        fake_clock.advance(2 * MS)
        yield b"bc"
        fake_clock.advance(4 * MS)

    server = wrap(app)
    body = server.call()
    for _ in body:
        fake_clock.advance(100 * MS)  # a slow client
        assert read_records(spool) == [], "the record is closed with the body, not before"
    fake_clock.advance(1000 * MS)
    body.close()
    record = record_of()
    assert exclusive(record) == {"wsgi.app": 7 * MS, "uwsgi.send": 1200 * MS}
    assert (record.closed_offset_ns, record.closing_offset_ns) == (1207 * MS, 1207 * MS)
    assert record.response_bytes == 3


def test_work_in_close_is_the_apps(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], fake_clock: FakeClock
) -> None:
    class Closing(list[bytes]):
        def close(self) -> None:
            fake_clock.advance(5 * MS)

    def app(environ: dict[str, Any], start_response: Any) -> Closing:
        hello(environ, start_response)
        return Closing([b"x"])

    server = wrap(app)
    body = server.call()
    list(body)
    fake_clock.advance(2 * MS)
    body.close()
    record = record_of()
    assert exclusive(record) == {"wsgi.app": 5 * MS, "uwsgi.send": 2 * MS}
    assert (record.closing_offset_ns, record.closed_offset_ns) == (2 * MS, 7 * MS)


def test_a_body_closed_before_its_first_step_is_closed_and_recorded(
    wrap: Wrap, record_of: Callable[[], WorkerRecord]
) -> None:
    """A HEAD request: the server may never take a step."""
    closed = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            raise AssertionError

        def close(self) -> None:
            closed.append(current.get())

    def app(environ: dict[str, Any], start_response: Any) -> Body:
        start_response("204 No Content", [])
        return Body()

    server = wrap(app)
    server.call().close()
    assert [recorder.status for recorder in closed if recorder] == ["204 No Content"]
    assert record_of().status == 204


def test_a_body_is_recorded_once_however_often_it_is_closed(
    wrap: Wrap, record_of: Callable[[], WorkerRecord]
) -> None:
    server = wrap(lambda environ, start_response: iter(hello(environ, start_response)))
    body = server.call()
    list(body)
    body.close()
    body.close()
    assert record_of().closed_offset_ns is not None


def test_a_server_that_never_closes_still_leaves_a_record(
    wrap: Wrap, record_of: Callable[[], WorkerRecord]
) -> None:
    server = wrap(lambda environ, start_response: iter(hello(environ, start_response)))
    list(server.call())
    server.result = None
    server.environ.clear()
    gc.collect()
    assert record_of().closed_offset_ns is None, "when it ended was not seen"


def test_a_list_keeps_its_length_from_which_servers_make_a_content_length(wrap: Wrap) -> None:
    server = wrap(hello)
    assert len(server.call()) == 2
    server.result.close()


def test_any_body_with_a_length_keeps_it(wrap: Wrap) -> None:
    class Sized:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

    server = wrap(lambda environ, start_response: hello(environ, start_response) and Sized())
    assert len(server.call()) == 1
    assert list(server.result) == [b"x"]
    server.result.close()


def test_a_generator_keeps_having_no_length(wrap: Wrap) -> None:
    server = wrap(lambda environ, start_response: iter(hello(environ, start_response)))
    assert not hasattr(server.call(), "__len__")
    server.result.close()


class OtherFileWrapper:
    """As gunicorn's: a class of its own, without `read`."""

    def __init__(self, file: Any, _size: int = 8192) -> None:
        self.file = file

    def __getitem__(self, key: int) -> bytes:
        data: bytes = self.file.read(8192)
        if data:
            return data
        raise IndexError


@pytest.mark.parametrize("wrapper", [FileWrapper, OtherFileWrapper])
def test_a_file_wrapper_goes_through_untouched(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], wrapper: Any
) -> None:
    """A server sends it by sendfile only when it gets the very object back that it made."""
    made = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        made.append(environ["wsgi.file_wrapper"](BytesIO(b"x" * 10)))
        return made[0]

    server = wrap(app)
    assert server.call(**{"wsgi.file_wrapper": wrapper}) is made[0]
    record = record_of()
    assert record.status == 200
    assert record.closed_offset_ns is None
    assert record.exclusive_ns[segments.SEND] is None, "its sending was not seen, so it is unknown"


def test_uwsgis_raw_file_goes_through_untouched(wrap: Wrap, record_of: Callable[[], WorkerRecord]) -> None:
    """UWSGI's `wsgi.file_wrapper` is a function that gives back the file object itself."""
    file = BytesIO(b"x")
    server = wrap(lambda environ, start_response: hello(environ, start_response) and file)
    assert server.call(**{"wsgi.file_wrapper": lambda file, size=0: file}) is file
    assert record_of().closed_offset_ns is None


@pytest.mark.parametrize("body", [b"plain bytes", bytearray(b"x"), "text"])
def test_a_body_that_is_not_iterated_by_chunks_goes_through_untouched(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], body: Any
) -> None:
    server = wrap(lambda environ, start_response: hello(environ, start_response) and body)
    assert server.call() is body
    assert record_of().status == 200


def test_an_object_that_fails_to_tell_what_it_is_goes_through(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], faults: dict[str, int]
) -> None:
    class Odd:
        @property
        def read(self) -> Any:
            raise LookupError

        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

    odd = Odd()
    server = wrap(lambda environ, start_response: hello(environ, start_response) and odd)
    assert server.call() is odd
    assert record_of().status == 200
    assert faults == {"the response": 1}


def test_chunks_without_a_length_go_through(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], faults: Any
) -> None:
    chunk = object()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[Any]:
        start_response("200 OK", [])
        yield chunk

    server = wrap(app)
    assert list(server.call()) == [chunk]
    server.result.close()
    assert record_of().response_bytes is None


# exceptions


class Failure(Exception):  # noqa: N818 - it is no error of ours
    """What an app raises."""


class Stop(BaseException):
    """What is no `Exception`: a harakiri, an exit."""


@pytest.mark.parametrize("kind", [Failure, Stop, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_exception_of_the_app_comes_out_as_it_was(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], kind: type[BaseException]
) -> None:
    error = kind("no")

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise error

    with pytest.raises(kind) as caught:
        wrap(app).call()
    assert caught.value is error
    record = record_of()
    assert record.exception is not None
    assert record.exception[0].endswith(kind.__name__)
    assert record.exception[1] == "no"
    assert "raise error" in record.exception[2]
    assert record.closed_offset_ns is not None
    assert record.status is None


def test_an_exception_in_the_iteration_comes_out_as_it_was(
    wrap: Wrap, record_of: Callable[[], WorkerRecord]
) -> None:
    error = Failure("half way")

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"a"
        raise error

    server = wrap(app)
    with pytest.raises(Failure) as caught:
        server.get()
    assert caught.value is error
    record = record_of()
    assert record.exception is not None
    assert record.exception[1] == "half way"
    assert record.status == 200
    assert record.response_bytes == 1


def test_an_exception_in_close_comes_out_as_it_was(wrap: Wrap, record_of: Callable[[], WorkerRecord]) -> None:
    error = Failure("late")

    class Body(list[bytes]):
        def close(self) -> None:
            raise error

    server = wrap(lambda environ, start_response: Body(hello(environ, start_response)))
    with pytest.raises(Failure) as caught:
        server.get()
    assert caught.value is error
    record = record_of()
    assert record.exception is not None
    assert record.exception[1] == "late"


def test_an_exception_in_start_response_comes_out_as_it_was(
    wrap: Wrap, record_of: Callable[[], WorkerRecord]
) -> None:
    error = Failure("headers already sent")

    def refuse(*args: Any) -> Any:
        raise error

    server = wrap(hello)
    server.start_response = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(Failure) as caught:
        server.call()
    assert caught.value is error
    assert record_of().status == 200


def test_an_exception_that_can_not_be_printed_is_recorded_all_the_same(
    wrap: Wrap, record_of: Callable[[], WorkerRecord]
) -> None:
    class Unprintable(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise Failure

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise Unprintable

    with pytest.raises(Unprintable):
        wrap(app).call()
    record = record_of()
    assert record.exception is not None
    assert record.exception[1] == "<str() raised Failure>"


def test_an_app_that_returns_nothing_fails_in_the_server_as_without_reqpath(wrap: Wrap) -> None:
    server = wrap(lambda environ, start_response: None)
    with pytest.raises(TypeError, match="not iterable"):
        server.get()


# start_response


def test_write_is_passed_on_and_counts_as_sending(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], fake_clock: FakeClock
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        fake_clock.advance(1 * MS)
        assert write(b"abc") is None
        fake_clock.advance(2 * MS)
        return [b"d"]

    server = wrap(app)
    sent = server.written

    def slow_start(status: str, headers: Any, exc_info: Any = None) -> Any:
        def write(chunk: bytes) -> None:
            fake_clock.advance(50 * MS)
            sent.append(chunk)

        return write

    server.start_response = slow_start  # type: ignore[method-assign]
    assert server.get() == b"abcd"
    record = record_of()
    assert exclusive(record) == {"wsgi.app": 3 * MS, "uwsgi.send": 50 * MS}


def test_bytes_written_count(wrap: Wrap, record_of: Callable[[], WorkerRecord]) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])(b"abc")
        yield b"d"

    assert wrap(app).get() == b"abcd"
    assert record_of().response_bytes == 4


def test_start_response_may_come_with_the_first_step(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], fake_clock: FakeClock
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        fake_clock.advance(4 * MS)
        start_response("202 Accepted", [])
        yield b"x"

    assert wrap(app).get() == b"x"
    assert (record_of().status, record_of().response_start_offset_ns) == (202, 4 * MS)


@pytest.mark.parametrize("by_keyword", [False, True])
def test_exc_info_is_passed_on_and_the_last_status_counts(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], by_keyword: bool
) -> None:
    exc_info = (Failure, Failure("x"), None)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        if by_keyword:
            start_response("500 No", [], exc_info=exc_info)
        else:
            start_response("500 No", [], exc_info)
        return [b"x"]

    server = wrap(app)
    assert server.get() == b"x"
    assert server.exc_info is exc_info
    assert (server.status, record_of().status) == ("500 No", 500)


@pytest.mark.parametrize("status", ["", "abc", "-12 x", "2", None, 200, b"200 OK", "\u0662\u0660\u0660 x"])
def test_any_status_goes_to_the_server(
    wrap: Wrap, spool: str, read_records: ReadRecords, status: Any
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status, [])
        return [b"x"]

    server = wrap(app)
    assert server.get() == b"x"
    assert server.status is status
    assert len(read_records(spool)) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_the_standards_validator_is_content_on_both_sides(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], streamed: bool
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["wsgi.input"].read(3)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter([b"a", b"b"]) if streamed else [b"a", b"b"]

    server = wrap(validator(app))
    server.app = validator(server.app)
    assert server.get(CONTENT_LENGTH="3", REQUEST_METHOD="POST", **{"wsgi.input": BytesIO(b"xyz")}) == b"ab"
    assert (record_of().request_bytes, record_of().response_bytes) == (3, 2)


# nesting


def test_a_request_made_within_a_request_is_one_of_its_own(
    wrap: Wrap, spool: str, read_records: ReadRecords, fake_clock: FakeClock
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        outside = current.get()
        if environ["PATH_INFO"] == "/outer":
            fake_clock.advance(1 * MS)
            Server(server.app).get(PATH_INFO="/inner")
            fake_clock.advance(2 * MS)
        else:
            fake_clock.advance(10 * MS)
        assert current.get() is outside
        return hello(environ, start_response)

    server = wrap(app)
    server.get(PATH_INFO="/outer")
    inner, outer = read_records(spool)
    assert isinstance(inner, WorkerRecord)
    assert isinstance(outer, WorkerRecord)
    assert (inner.path, outer.path) == ("/inner", "/outer")
    assert exclusive(inner) == {"wsgi.app": 10 * MS}
    assert exclusive(outer) == {"wsgi.app": 13 * MS}
    assert inner.trace_id != outer.trace_id


def test_a_middleware_inside_another_makes_one_record(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], spool: str
) -> None:
    inner = RequestMiddleware(hello, spool=spool)
    assert wrap(inner).get() == b"hello, world"
    assert record_of().status == 200


def test_an_environ_used_again_is_another_request(wrap: Wrap, spool: str, read_records: ReadRecords) -> None:
    server = wrap(hello)
    server.get()
    server.get(**server.environ)
    assert len(read_records(spool)) == 2


# context


def test_the_request_is_current_in_the_apps_steps_only(wrap: Wrap) -> None:
    seen: list[tuple[bool, int]] = []

    def look() -> None:
        span = trace.get_current_span().get_span_context()
        seen.append((current.get() is not None, span.span_id))

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            look()
            yield b"a"
            look()

        def close(self) -> None:
            look()

    def app(environ: dict[str, Any], start_response: Any) -> Body:
        look()
        start_response("200 OK", [])
        return Body()

    server = wrap(app)
    outside = otel_context.get_current()
    body = server.call()
    identity = server.environ[ENVIRON_KEY].identity
    for _ in body:
        assert current.get() is None
        assert otel_context.get_current() == outside
    body.close()
    assert seen == [(True, int(identity.span_id, 16))] * 4
    assert otel_context.get_current() == outside


@pytest.mark.parametrize("fails", [False, True])
def test_a_context_that_the_app_leaves_attached_is_put_right(wrap: Wrap, fails: bool) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        otel_context.attach(otel_context.set_value("left", 1))
        if fails:
            raise Failure
        start_response("200 OK", [])

        def body() -> Iterator[bytes]:
            otel_context.attach(otel_context.set_value("left too", 1))
            yield b"x"
            assert otel_context.get_value("left too") is None

        return body()

    server = wrap(app)
    outside = otel_context.attach(otel_context.set_value("outside", 7))
    try:
        if fails:
            with pytest.raises(Failure):
                server.get()
        else:
            assert server.get() == b"x"
        assert otel_context.get_value("outside") == 7
        assert otel_context.get_value("left") is None
        assert otel_context.get_value("left too") is None
    finally:
        otel_context.detach(outside)


def test_two_bodies_sent_in_turns_keep_apart(wrap: Wrap, spool: str, read_records: ReadRecords) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for _ in range(3):
            recorder = current.get()
            assert recorder is not None
            yield read_path(recorder.environ).encode()

    server = wrap(app)
    first, second = server.call(PATH_INFO="/1"), server.call(PATH_INFO="/2")
    assert [*zip(first, second, strict=True)] == [(b"/1", b"/2")] * 3
    first.close()
    second.close()
    assert len(read_records(spool)) == 2


def test_threads_in_parallel_make_separate_records(wrap: Wrap, spool: str, read_records: ReadRecords) -> None:
    start = threading.Barrier(8)

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for _ in range(20):
            recorder = current.get()
            assert recorder is not None
            assert read_path(recorder.environ) == environ["PATH_INFO"]
            trace.get_current_span().set_attribute("path", environ["PATH_INFO"])
            yield b"x"

    server = wrap(app)

    def run(number: int) -> None:
        own = Server(server.app)
        start.wait()
        for i in range(20):
            own.get(PATH_INFO=f"/{number}/{i}")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = read_records(spool)
    assert len(records) == 160
    assert len({record.trace_id for record in records}) == 160
    assert sorted(record.sequence for record in records) == list(range(160))
    for record in records:
        assert isinstance(record, WorkerRecord)
        assert record.attributes == {"path": record.path}


# stamps

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_nginxs_and_uwsgis_stamps_are_taken(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], fake_clock: FakeClock
) -> None:
    fake_clock.wall_ns = 1_732_371_000_200_000_000
    wrap(hello).get(
        REQPATH_TRACEPARENT=TRACEPARENT,
        REQPATH_NGINX="1732371000.125-0.002,1732371000.125456",
        REQPATH_UWSGI="1732371000123601,1732371000123633",
        **{"uwsgi.core": 3},
    )
    record = record_of()
    assert record.nginx_start_ns == 1_732_371_000_123_000_000
    assert record.nginx_pass_ns == 1_732_371_000_125_456_000
    assert record.nginx_resolution_ns == MS, "the coarser of the two"
    assert (record.accept_ns, record.parsed_ns) == (1_732_371_000_123_601_000, 1_732_371_000_123_633_000)
    assert record.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert (record.parent_id, record.sampled, record.core) == ("b7ad6b7169203331", True, 3)
    assert record.rejected_stamps == []


def test_a_clients_headers_are_not_believed(wrap: Wrap, record_of: Callable[[], WorkerRecord]) -> None:
    wrap(hello).get(
        HTTP_X_REQUEST_START="t=1799999999.999",
        HTTP_TRACEPARENT=TRACEPARENT,
        HTTP_REQPATH_NGINX="1799999999.999,1799999999.999",
        HTTP_REQPATH_TRACEPARENT=TRACEPARENT,
    )
    record = record_of()
    assert record.nginx_pass_ns is None
    assert record.trace_id != "0af7651916cd43dd8448eb211c80319c"
    assert record.parent_id == ""
    assert record.rejected_stamps == []


@pytest.mark.parametrize("header", ["HTTP_X_REQUEST_START", "HTTP_X_QUEUE_START"])
def test_a_trusted_proxys_headers_are(wrap: Wrap, record_of: Callable[[], WorkerRecord], header: str) -> None:
    wrap(hello, trusted_proxy=True).get(
        **{header: "t=1799999999.999 D=0.050", "HTTP_TRACEPARENT": TRACEPARENT}
    )
    record = record_of()
    assert record.nginx_start_ns == 1_799_999_999_949_000_000
    assert record.nginx_pass_ns == 1_799_999_999_999_000_000
    assert record.trace_id == "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("environ", "rejected"),
    [
        ({"REQPATH_NGINX": "1800000006.0"}, ["nginx_start"]),
        ({"REQPATH_NGINX": "1799913599.0"}, ["nginx_start"]),
        ({"REQPATH_NGINX": "900000000.0"}, ["nginx_start"]),
        ({"REQPATH_NGINX": "1800000000.0-99999999.0"}, ["nginx_start"]),
        ({"REQPATH_NGINX": ",nan"}, ["nginx_pass"]),
        ({"REQPATH_UWSGI": "1800000006000000"}, ["accept"]),
        ({"REQPATH_UWSGI": ",5"}, ["parsed"]),
        ({"REQPATH_TRACEPARENT": "00-0-0-0"}, ["traceparent"]),
        ({"HTTP_X_REQUEST_START": "t=1800000000.0 D=1700000000.0"}, ["nginx_start"]),
        ({"HTTP_X_REQUEST_START": "t=946684799999999"}, ["nginx_pass"]),
        ({"HTTP_X_REQUEST_START": "t=1600000000000000 D=200000000000000"}, ["nginx_start"]),
    ],
)
def test_a_stamp_out_of_its_time_is_rejected_and_named(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], environ: dict[str, str], rejected: list[str]
) -> None:
    wrap(hello, trusted_proxy=True).get(**environ)
    record = record_of()
    assert record.rejected_stamps == rejected
    assert (record.nginx_start_ns, record.nginx_pass_ns) == (None, None)
    assert (record.accept_ns, record.parsed_ns) == (None, None)


NAMES = [
    *("REQPATH_NGINX", "REQPATH_TRACEPARENT", "REQPATH_UWSGI"),
    *("HTTP_X_REQUEST_START", "HTTP_X_QUEUE_START", "HTTP_TRACEPARENT", "HTTP_HOST", "HTTP_COOKIE"),
    *("CONTENT_LENGTH", "PATH_INFO", "SCRIPT_NAME", "QUERY_STRING", "REQUEST_METHOD", "uwsgi.core"),
]


@given(
    environ=st.dictionaries(
        st.sampled_from(NAMES),
        st.text(max_size=60)
        | st.text("0123456789.-t=D, \u0661\ud800\xff", max_size=40)
        | st.integers(0, 10**25).map(str),
    )
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_in_every_param_and_header_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, read_records: ReadRecords, environ: dict[str, str]
) -> None:
    spool = str(tmp_path_factory.mktemp("garbage") / "spool")
    middleware = RequestMiddleware(hello, spool=spool, trusted_proxy=True, query_string=True)
    server = Server(middleware)
    assert server.get(**environ) == b"hello, world"
    assert server.status == "200 OK"
    middleware._writer.close()
    (record,) = read_records(spool)
    assert isinstance(record, WorkerRecord)


def test_garbage_raises_no_fault_either(
    wrap: Wrap, faults: dict[str, int], spool: str, read_records: Any
) -> None:
    server = wrap(hello, trusted_proxy=True)
    for text in ("9" * 30, "9" * 5000, "\ud800", "\u0661", "x\0y", "-1", "1e5"):
        server.get(**dict.fromkeys(NAMES, text))
    assert faults == {}
    assert len(read_records(spool)) == 7


# the guard


class BrokenClock:
    """Raises from its n-th reading on."""

    def __init__(self, good: int) -> None:
        self.good = good

    def __call__(self) -> int:
        self.good -= 1
        if self.good < 0:
            raise Failure("no time")
        return 5


def respond(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [("X", "y")])(b"w")
    return iter([b"a", b"b"])


@pytest.mark.parametrize("good", range(16))
def test_a_clock_that_fails_at_any_point_changes_nothing(
    spool: str, faults: dict[str, int], good: int
) -> None:
    clock = BrokenClock(good)
    middleware = RequestMiddleware(respond, spool=spool)
    server = Server(middleware)
    with worker_clocks(time_ns=clock, monotonic_ns=clock, thread_time_ns=clock):
        assert server.get() == b"wab"
    assert (server.status, server.headers) == ("200 OK", [("X", "y")])
    middleware._writer.close()
    if clock.good < 0:
        assert sum(faults.values()) > 0


@pytest.mark.parametrize(
    "broken",
    [
        "reqpath.spool.writer.encode",
        "reqpath.worker.wsgi.get_context",
        "reqpath.worker.wsgi.RequestSpan",
        "reqpath.worker.wsgi.Rare",
        "reqpath.worker.wsgi.SpoolWriter.append_record",
        "reqpath.worker.wsgi.RequestMiddleware._watch_body",
        "reqpath.worker.wsgi._StreamedBody",
        "reqpath.worker.wsgi.read_facts",
        "reqpath.worker.wsgi.attach_context",
        "reqpath.worker.wsgi.detach_context",
        "reqpath.worker.recorder.attach_context",
        "reqpath.worker.recorder.detach_context",
        "reqpath.worker.lens.RunQueueClock.read_ns",
    ],
)
def test_whatever_breaks_inside_the_response_is_what_it_was(
    spool: str,
    monkeypatch: pytest.MonkeyPatch,
    faults: dict[str, int],
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise Failure("broken on purpose")

    middleware = RequestMiddleware(respond, spool=spool)
    monkeypatch.setattr("reqpath.worker.wsgi.LENS_BELOW", 1 << 64)
    monkeypatch.setattr(broken, fail)
    outside = otel_context.get_current()
    with caplog.at_level(logging.ERROR, "reqpath"):
        for _ in range(3):
            server = Server(middleware)
            assert server.get(REQPATH_TRACEPARENT=TRACEPARENT) == b"wab"
            assert (server.status, server.headers) == ("200 OK", [("X", "y")])
    monkeypatch.undo()
    middleware._writer.close()
    assert sum(faults.values()) >= 1
    messages = [entry.message for entry in caplog.records]
    assert len(messages) == len(set(messages)) == len(faults), "each is said once"
    if broken.endswith("detach_context"):
        otel_context.attach(outside)  # what could not be put back


def test_a_spool_that_can_not_be_written_is_said_once_and_changes_nothing(
    tmp_path: Any, faults: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    middleware = RequestMiddleware(hello, spool=str(tmp_path / "file"))
    with caplog.at_level(logging.ERROR, "reqpath"):
        for _ in range(5):
            assert Server(middleware).get() == b"hello, world"
    (entry,) = caplog.records
    assert "is not a directory; set REQPATH_SPOOL" in entry.message


# odd things in a record


def test_lone_surrogates_do_not_cost_the_record(wrap: Wrap, record_of: Callable[[], WorkerRecord]) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise Failure("\ud800")

    with pytest.raises(Failure):
        wrap(app).get(REQUEST_METHOD="G\udcff", HTTP_HOST="\udcfe", PATH_INFO="/\udcfd")
    record = record_of()
    assert (record.method, record.host) == ("G?", "?")
    assert record.exception is not None
    assert record.exception[:2] == (f"{__name__}.Failure", "?")


def test_megabytes_of_attributes_cost_themselves_and_not_the_record(
    wrap: Wrap, record_of: Callable[[], WorkerRecord]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        span = trace.get_current_span()
        for i in range(1000):
            span.set_attribute(f"k{i}", ["x" * 100_000] * 1000)
            span.add_event("e" * 100_000, {f"k{n}": "x" * 100_000 for n in range(200)})
        return hello(environ, start_response)

    assert wrap(app).get() == b"hello, world"
    assert record_of().attributes == {}


def test_thousands_of_operations_are_counted_beyond_the_bound(
    wrap: Wrap, record_of: Callable[[], WorkerRecord]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        recorder = current.get()
        assert recorder is not None
        for i in range(5000):
            recorder.add_operation(
                RawOperation(i, NOT_SEEN, i + 1, "SELECT ?", None, (None, None, None, None, 1))
            )
        return hello(environ, start_response)

    wrap(app).get()
    record = record_of()
    assert (len(record.operations), record.dropped_operations) == (500, 4500)


def test_a_hook_of_another_app_makes_its_segment_known(
    wrap: Wrap,
    record_of: Callable[[], WorkerRecord],
    fake_clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The drivers' hooks are the process's, so they may find a request of a middleware that knows none."""
    monkeypatch.setattr("reqpath.worker.pymysql.install", lambda settings: False)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        recorder = current.get()
        assert recorder is not None
        previous = recorder.switch(segments.QUERY)
        fake_clock.advance(6 * MS)
        recorder.switch(previous)
        return hello(environ, start_response)

    assert wrap(app).get() == b"hello, world"
    record = record_of()
    assert exclusive(record) == {"mysql.query": 6 * MS}
    assert record.exclusive_ns[segments.COMMIT] is None


def test_a_driver_that_is_not_there_leaves_its_segments_unknown(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reqpath.worker.pymysql.install", lambda settings: False)
    monkeypatch.setattr("reqpath.worker.jinja.install", lambda: False)
    wrap(hello).get()
    assert record_of().exclusive_ns[segments.QUERY] is None
    assert record_of().exclusive_ns[segments.TEMPLATE] is None


def test_disabled_the_app_is_called_as_it_is(wrap: Wrap, spool: str, read_records: ReadRecords) -> None:
    seen = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append((environ, start_response, current.get()))
        return body

    body = [b"x"]
    server = wrap(app, enabled=False)
    assert server.call() is body
    ((environ, start_response, recorder),) = seen
    assert environ is server.environ
    assert ENVIRON_KEY not in environ
    assert start_response == server.start_response
    assert recorder is None
    assert read_records(spool) == []


def test_the_lens_reads_the_threads_cpu(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], fake_clock: FakeClock
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        fake_clock.advance(8 * MS)
        return hello(environ, start_response)

    wrap(app).get()
    record = record_of()
    assert record.cpu_ns == 8 * MS
    assert record.run_queue_ns is None or record.run_queue_ns >= 0


def test_the_lens_is_read_for_a_share_of_fast_requests_and_after_each_slow_one(
    wrap: Wrap,
    spool: str,
    read_records: ReadRecords,
    monkeypatch: pytest.MonkeyPatch,
    fake_clock: FakeClock,
) -> None:
    durations_ms = [1, 6, 1, 1, 1]
    bounds = [1 << 64, 0, 0, 0, 1 << 64]
    expected = [True, False, True, False, True]

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        fake_clock.advance(durations_ms.pop(0) * MS)
        return hello(environ, start_response)

    monkeypatch.setattr("reqpath.worker.lens.RunQueueClock.read_ns", lambda clock: 5)
    server = wrap(app)
    for bound in bounds:
        monkeypatch.setattr("reqpath.worker.wsgi.LENS_BELOW", bound)
        server.get()
    records = [record for record in read_records(spool) if isinstance(record, WorkerRecord)]
    assert [record.cpu_ns is not None for record in records] == expected
    assert [record.run_queue_ns is not None for record in records] == expected


def test_a_body_sent_by_another_thread_has_no_cpu_time(
    wrap: Wrap, record_of: Callable[[], WorkerRecord]
) -> None:
    """Its clock is the other thread's, so a difference would be nonsense."""
    server = wrap(lambda environ, start_response: iter(hello(environ, start_response)))
    body = server.call()
    thread = threading.Thread(target=lambda: (list(body), body.close()))
    thread.start()
    thread.join()
    assert record_of().cpu_ns is None


def test_a_wall_clock_that_steps_does_not_bend_the_request(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], fake_clock: FakeClock
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        fake_clock.advance(3 * MS)
        fake_clock.wall_ns -= 3600 * 1000 * MS
        return hello(environ, start_response)

    wrap(app).get()
    assert record_of().closed_offset_ns == 3 * MS


def test_the_segments_add_up_to_the_time_in_the_worker(
    wrap: Wrap, record_of: Callable[[], WorkerRecord], fake_clock: FakeClock
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for i in range(50):
            fake_clock.advance(i * 7)
            yield b"x"

    server = wrap(app)
    for i, _ in enumerate(server.call()):
        fake_clock.advance(i * 13)
    server.result.close()
    record = record_of()
    assert sum(filter(None, record.exclusive_ns)) == record.closed_offset_ns


def test_a_template_leaves_the_instants_of_its_segments(
    spool: str, record_of: Callable[[], WorkerRecord]
) -> None:
    def render(environ: Any, start_response: Any) -> list[bytes]:
        text = Template("{{ 6 * 7 }}").render()
        start_response("200 OK", [])
        return [text.encode()]

    middleware = RequestMiddleware(render, spool=spool)
    assert Server(middleware).get() == b"42"
    record = record_of()
    entered, instants_ns = record.timeline[::2], record.timeline[1::2]
    assert entered.count(segments.TEMPLATE) >= 1
    assert instants_ns[0] == 0
    assert instants_ns[-1] == record.closed_offset_ns
    spent_ns = [0] * len(WORKER_SEGMENTS)
    for segment, start_ns, end_ns in zip(entered, instants_ns, instants_ns[1:], strict=False):
        spent_ns[segment] += end_ns - start_ns
    assert spent_ns == [value or 0 for value in record.exclusive_ns]


@pytest.mark.parametrize("interruptions", [0, 1, 3, 100])
def test_an_interruption_between_two_clocks_bends_no_stamp(
    spool: str, fake_clock: FakeClock, record_of: Callable[[], WorkerRecord], interruptions: int
) -> None:
    entered_ns = fake_clock.wall_ns
    left = [interruptions]

    def read_wall_ns() -> int:
        if left[0]:
            # The thread loses the CPU before the reading, for a shorter time at each try.
            left[0] -= 1
            fake_clock.advance(4_000_000 + left[0])
        return fake_clock.wall_ns

    middleware = RequestMiddleware(respond, spool=spool)
    with worker_clocks(time_ns=read_wall_ns):
        Server(middleware).get()
    record = record_of()
    # Where each try is interrupted, the best of them it is.
    tolerance_ns = 0 if interruptions < 5 else 4_000_095
    assert 0 <= record.app_start_ns - entered_ns <= tolerance_ns
    assert record.closed_offset_ns is not None
    assert record.closed_offset_ns <= interruptions * 4_000_100
