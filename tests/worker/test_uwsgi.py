"""uWSGI's facts, from an object in its module's place; outside uWSGI everything is unknown."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from reqpath.record import Record, WorkerRecord
from reqpath.worker import recorder as segments
from reqpath.worker.uwsgi import ServerFacts, on_postfork, read_facts, read_transport, uwsgi_module
from reqpath.worker.wsgi import RequestMiddleware
from tests.worker.test_wsgi import Server


def make_uwsgi(**changes: Any) -> Any:
    values = {
        "cores": 1,
        "numproc": 4,
        "opt": {},
        "version": b"2.0.30",
        "worker_id": lambda: 3,
        "sockets": [],
        "connection_fd": lambda: -1,
    }
    return SimpleNamespace(**(values | changes))


@contextlib.contextmanager
def sockets(*families: int) -> Iterator[list[int]]:
    made = [socket.socket(family) for family in families]
    try:
        yield [each.fileno() for each in made]
    finally:
        for each in made:
            each.close()


def test_outside_uwsgi_everything_is_unknown() -> None:
    assert uwsgi_module() is None
    assert read_facts(None) == ServerFacts()
    assert ServerFacts().concurrency == "unknown"
    assert not on_postfork(lambda: None)


def test_processes() -> None:
    assert read_facts(make_uwsgi()) == ServerFacts("uWSGI 2.0.30", 3, 4, 1, "processes", None)


def test_threads() -> None:
    facts = read_facts(make_uwsgi(cores=8))
    assert (facts.threads, facts.concurrency) == (8, "threads")


@pytest.mark.parametrize("option", ["gevent", b"gevent", "async", b"async"])
def test_greenlets(option: str | bytes) -> None:
    assert read_facts(make_uwsgi(cores=100, opt={option: b"100"})).concurrency == "greenlets"


def test_a_uwsgi_that_tells_little_is_no_trouble() -> None:
    facts = read_facts(SimpleNamespace(worker_id=lambda: 0))
    assert (facts.worker, facts.processes, facts.concurrency) == (0, 1, "processes")


@pytest.mark.parametrize(
    ("families", "transport"),
    [
        ([socket.AF_UNIX], "unix"),
        ([socket.AF_INET], "tcp"),
        ([socket.AF_INET6], "tcp"),
        ([socket.AF_INET, socket.AF_INET6], "tcp"),
        ([socket.AF_UNIX, socket.AF_INET], None),
        ([], None),
    ],
)
def test_the_transport_that_all_sockets_have_in_common(families: list[int], transport: str | None) -> None:
    with sockets(*families) as descriptors:
        assert read_facts(make_uwsgi(sockets=descriptors)).transport == transport
        for descriptor in descriptors:
            os.fstat(descriptor)  # still open: it is uWSGI's


@pytest.mark.parametrize(("family", "transport"), [(socket.AF_UNIX, "unix"), (socket.AF_INET, "tcp")])
def test_the_transport_of_a_request(family: int, transport: str) -> None:
    with sockets(family) as (descriptor,):
        assert read_transport(make_uwsgi(connection_fd=lambda: descriptor)) == transport
        os.fstat(descriptor)


def test_a_descriptor_that_is_no_socket_has_no_transport(tmp_path: Any) -> None:
    with open(tmp_path / "file", "wb") as file:
        assert read_transport(make_uwsgi(connection_fd=file.fileno)) is None
        os.fstat(file.fileno())
    assert read_transport(make_uwsgi(connection_fd=lambda: -1)) is None
    assert read_transport(make_uwsgi(connection_fd=lambda: 9999)) is None


def test_after_the_fork_the_worker_learns_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Callable[[], None]] = []
    decorators = ModuleType("uwsgidecorators")
    decorators.postfork = called.append  # type: ignore[attr-defined]  # uWSGI's own has it
    monkeypatch.setitem(sys.modules, "uwsgidecorators", decorators)
    learn = lambda: None  # noqa: E731
    assert on_postfork(learn)
    assert called == [learn]


def test_decorators_that_fail_to_load_are_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a master they raise an exception of their own."""
    decorators = ModuleType("uwsgidecorators")
    monkeypatch.setitem(sys.modules, "uwsgidecorators", decorators)  # it has no `postfork`
    monkeypatch.setitem(sys.modules, "uwsgi", make_uwsgi())
    monkeypatch.setitem(sys.modules, "uwsgidecorators", None)
    assert not on_postfork(lambda: None)


@pytest.fixture
def under_uwsgi(monkeypatch: pytest.MonkeyPatch, spool: str) -> Iterator[tuple[Any, Callable[[Any], Server]]]:
    """Return an object in uWSGI's place, and a function that puts an app behind the middleware there."""
    uwsgi = make_uwsgi(cores=2, version="2.0.31")
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    monkeypatch.setitem(sys.modules, "uwsgidecorators", None)
    made: list[RequestMiddleware] = []

    def serve(app: Any) -> Server:
        made.append(RequestMiddleware(app, spool=spool))
        return Server(made[-1])

    yield uwsgi, serve
    for middleware in made:
        middleware._writer.close()


def hello(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"x"]


def test_a_record_under_uwsgi_tells_core_and_transport(
    under_uwsgi: tuple[Any, Callable[[Any], Server]], spool: str, read_records: Callable[[str], list[Record]]
) -> None:
    uwsgi, serve = under_uwsgi
    with sockets(socket.AF_UNIX) as (descriptor,):
        uwsgi.connection_fd = lambda: descriptor
        serve(hello).get(**{"uwsgi.core": 1})
    (record,) = read_records(spool)
    assert isinstance(record, WorkerRecord)
    assert (record.core, record.transport) == (1, "unix")


def test_the_writer_tells_worker_processes_and_threads(
    under_uwsgi: tuple[Any, Callable[[Any], Server]], spool: str
) -> None:
    from reqpath.spool import SpoolReader

    _, serve = under_uwsgi
    serve(hello).get()
    ((info, _),) = SpoolReader(spool).read()
    assert (info.worker, info.processes, info.threads) == (3, 4, 2)
    assert (info.concurrency, info.server) == ("threads", "uWSGI 2.0.31")


def test_a_request_survives_a_uwsgi_that_fails(
    under_uwsgi: tuple[Any, Callable[[Any], Server]], faults: dict[str, int]
) -> None:
    uwsgi, serve = under_uwsgi

    def fail() -> int:
        raise SystemError

    uwsgi.worker_id = uwsgi.connection_fd = fail
    assert serve(hello).get() == b"x"
    assert faults


def test_a_file_sent_by_uwsgi_ends_with_the_request(
    under_uwsgi: tuple[Any, Callable[[Any], Server]], spool: str, read_records: Callable[[str], list[Record]]
) -> None:
    """UWSGI lets go of the environ when it has sent a file; the app's own hook is as it was."""
    uwsgi, serve = under_uwsgi
    uwsgi.after_req_hook = hook = object()

    class File:
        def read(self, size: int = -1) -> bytes:
            return b""

    file = File()
    server = serve(lambda environ, start_response: hello(environ, start_response) and file)
    assert server.call() is file
    assert read_records(spool) == []
    server.environ.clear()
    (record,) = read_records(spool)
    assert isinstance(record, WorkerRecord)
    assert record.closed_offset_ns is not None
    assert (record.exclusive_ns[segments.SEND] or 0) > 0
    assert uwsgi.after_req_hook is hook
