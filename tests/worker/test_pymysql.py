"""PyMySQL's hooks: what they record, and that the driver behaves as without them."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.instrumentation.pymysql import PyMySQLInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import SpanKind

from reqpath.raw import NO_FIRST_PACKETS
from reqpath.record import Operation, Transport
from reqpath.servers.database import Database, find_database_server, start_database
from reqpath.servers.process import find_free_port
from reqpath.settings import Settings
from reqpath.worker import pymysql as hooks
from reqpath.worker.recorder import (
    COMMIT,
    CONNECT,
    FETCH,
    QUERY,
    VIEW,
    RequestRecorder,
    current,
)
from tests.conftest import worker_clocks
from tests.worker.recorders import make_recorder, read

# --- what the tests stand on ------------------------------------------------------------------------------


def _import_driver() -> ModuleType:
    """Import a copy of PyMySQL of its own, so that no test hooks another's."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "pymysql"]:
        del sys.modules[name]
    driver = importlib.import_module("pymysql")
    importlib.import_module("pymysql.cursors")
    return driver


@pytest.fixture
def plain() -> Iterator[ModuleType]:
    """Return PyMySQL without hooks."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "pymysql"}
    yield _import_driver()
    for name in [name for name in sys.modules if name.partition(".")[0] == "pymysql"]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def driver(plain: ModuleType, faults: dict[str, int]) -> Iterator[ModuleType]:
    """Return PyMySQL with hooks, beside the plain one; no hook may fail."""
    driver = _import_driver()
    assert hooks.install(Settings())
    yield driver
    assert faults == {}


@contextlib.contextmanager
def _request(monotonic_ns: Callable[[], int] = time.monotonic_ns) -> Iterator[RequestRecorder]:
    """Make a request current; its segments must add up to its time."""
    with worker_clocks(monotonic_ns=monotonic_ns):
        unmeasured = 0 if hooks.sees_first_packets() else NO_FIRST_PACKETS
        recorder = make_recorder(segment=VIEW, unmeasured=unmeasured)
        token = current.set(recorder)
        try:
            yield recorder
        finally:
            current.reset(token)
        assert recorder.segment == VIEW
        recorder.switch(VIEW)
    assert sum(filter(None, read(recorder).exclusive_ns)) == recorder.last_ns - recorder.base_ns
    recorder.finished = True


def _shown(recorder: RequestRecorder) -> list[tuple[str, str | None]]:
    return [(operation.kind, operation.statement) for operation in read(recorder).operations]


def _only(recorder: RequestRecorder) -> Operation:
    (operation,) = read(recorder).operations
    return operation


# --- without a server -------------------------------------------------------------------------------------


def _packets(*payloads: bytes) -> bytes:
    return b"".join(
        struct.pack("<I", len(payload))[:3] + bytes([number]) + payload
        for number, payload in enumerate(payloads, 1)
    )


_OK = _packets(b"\x00\x02\x00\x02\x00\x00\x00")
_EOF = b"\xfe\x00\x00\x02\x00"
_COLUMN = b"\x03def\x00\x00\x00\x01a\x00" + b"\x0c" + struct.pack("<HIBHBxx", 63, 11, 3, 0, 0)
_TWO_ROWS = _packets(b"\x01", _COLUMN, _EOF, b"\x0217", b"\x0218", _EOF)
_ERROR = _packets(b"\xff" + struct.pack("<H", 1062) + b"#23000Duplicate entry 'secret'")


class _Replay:
    """A socket that answers each command with the same reply; sending takes 7 ns, each read 100 ns."""

    family = 1

    def __init__(self, reply: bytes) -> None:
        self._reply = io.BytesIO(reply)
        self.now_ns = 1_000

    def monotonic_ns(self) -> int:
        return self.now_ns

    def sendall(self, data: bytes) -> None:
        self._reply.seek(0)
        self.now_ns += 7

    def read(self, size: int) -> bytes:
        self.now_ns += 100
        return self._reply.read(size)

    def settimeout(self, timeout: float | None) -> None: ...

    def close(self) -> None: ...

    def connected(self, driver: ModuleType, **arguments: Any) -> Any:
        connection = driver.Connection(
            defer_connect=True, ssl_disabled=True, unix_socket="/x", database="shop", **arguments
        )
        connection._sock = connection._rfile = self
        connection._current_timeout = None
        connection.server_status = 2
        return connection


def test_sent_to_first_packet_is_query_and_the_rest_is_fetch(driver: ModuleType) -> None:
    replay = _Replay(_TWO_ROWS)
    cursor = replay.connected(driver).cursor()

    with _request(replay.monotonic_ns) as recorder:
        cursor.execute("SELECT a FROM t WHERE b = %s", ("secret",))

    operation = _only(recorder)
    # A packet is two reads: its header and its payload. There are six.
    assert read(recorder).exclusive_ns[QUERY] == 7 + 200
    assert read(recorder).exclusive_ns[FETCH] == 1_000
    assert read(recorder).exclusive_ns[VIEW] == 0
    assert (operation.start_ns, operation.first_byte_ns, operation.end_ns) == (0, 207, 1207)
    assert operation.fetch_ns == 1_000
    assert operation.statement == "SELECT a FROM t WHERE b = %s"
    assert operation.rows == 2
    assert (operation.transport, operation.server_address) == ("unix", "/x")
    assert operation.namespace == "shop"
    assert cursor.fetchall() == ((17,), (18,))


def test_an_unbuffered_read_is_fetch_and_ends_with_its_last_row(driver: ModuleType) -> None:
    replay = _Replay(_TWO_ROWS)
    cursor = replay.connected(driver).cursor(driver.cursors.SSCursor)

    with _request(replay.monotonic_ns) as recorder:
        cursor.execute("SELECT a FROM t")
        first = cursor.fetchone()
        replay.now_ns += 50_000  # the app works
        rest = cursor.fetchall()
        cursor.fetchall()
        replay.now_ns += 50_000
        cursor.close()

    operation = _only(recorder)
    assert [first, *rest] == [(17,), (18,)]
    assert read(recorder).exclusive_ns[VIEW] == 100_000
    assert read(recorder).exclusive_ns[QUERY] == 207
    assert read(recorder).exclusive_ns[FETCH] == 1_000 == operation.fetch_ns
    assert operation.rows == 2
    assert operation.end_ns == 51_207


def _sdk(sampler: Sampler = ALWAYS_ON) -> tuple[TracerProvider, InMemorySpanExporter]:
    memory = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return provider, memory


def _ids(memory: InMemorySpanExporter) -> list[str]:
    contexts = [span.context for span in memory.get_finished_spans()]
    return [f"{context.span_id:016x}" for context in contexts if context is not None]


def test_a_statement_with_a_span_of_the_apps_own_sdk_has_its_id(driver: ModuleType) -> None:
    provider, memory = _sdk()
    connection = PyMySQLInstrumentor.instrument_connection(  # type: ignore[no-untyped-call]
        _Replay(_TWO_ROWS).connected(driver), tracer_provider=provider
    )
    with _request() as recorder:
        connection.cursor().execute("SELECT a FROM t")
        connection.cursor().executemany("UPDATE t SET a = %s", [(1,), (2,)])

    first, second = _ids(memory)
    assert [operation.app_span_id for operation in read(recorder).operations] == [first, second, second]


def test_a_failed_statement_with_a_span_of_the_apps_own_sdk_has_its_id(driver: ModuleType) -> None:
    provider, memory = _sdk()
    connection = PyMySQLInstrumentor.instrument_connection(  # type: ignore[no-untyped-call]
        _Replay(_ERROR).connected(driver), tracer_provider=provider
    )
    with _request() as recorder, pytest.raises(driver.err.IntegrityError):
        connection.cursor().execute("SELECT a FROM t")

    assert [_only(recorder).app_span_id] == _ids(memory)
    assert _only(recorder).error == "IntegrityError: 1062"


def test_a_span_that_is_not_exported_leaves_the_statement_to_reqpath(driver: ModuleType) -> None:
    provider, _memory = _sdk(ALWAYS_OFF)
    connection = PyMySQLInstrumentor.instrument_connection(  # type: ignore[no-untyped-call]
        _Replay(_TWO_ROWS).connected(driver), tracer_provider=provider
    )
    with _request() as recorder:
        connection.cursor().execute("SELECT a FROM t")

    assert _only(recorder).app_span_id is None


@pytest.mark.parametrize("kind", [SpanKind.INTERNAL, SpanKind.CLIENT])
def test_a_span_of_the_apps_own_around_a_statement_is_not_the_statements(
    driver: ModuleType, kind: SpanKind
) -> None:
    provider, _memory = _sdk()
    cursor = _Replay(_TWO_ROWS).connected(driver).cursor()
    with _request() as recorder, provider.get_tracer("shop").start_as_current_span("load", kind=kind):
        cursor.execute("SELECT a FROM t")

    assert _only(recorder).app_span_id is None


def test_making_many_dicts_is_fetching(driver: ModuleType) -> None:
    replay = _Replay(_packets(b"\x01", _COLUMN, _EOF, *[b"\x0217"] * 20, _EOF))
    cursor = replay.connected(driver).cursor(driver.cursors.DictCursor)

    def make_dict(items: Any) -> dict[str, int]:
        replay.now_ns += 10_000
        return dict(items)

    cursor.dict_type = make_dict
    with _request(replay.monotonic_ns) as recorder:
        assert cursor.execute("SELECT a FROM t") == 20

    assert cursor.fetchall() == [{"a": 17}] * 20
    assert read(recorder).exclusive_ns[QUERY] == 207
    assert read(recorder).exclusive_ns[FETCH] == 23 * 200 + 20 * 10_000 == _only(recorder).fetch_ns
    assert read(recorder).exclusive_ns[VIEW] == 0


def test_an_unbuffered_read_that_is_left_has_no_rows(driver: ModuleType) -> None:
    replay = _Replay(_TWO_ROWS)
    cursor = replay.connected(driver).cursor(driver.cursors.SSCursor)

    with _request(replay.monotonic_ns) as recorder:
        cursor.execute("SELECT a FROM t")
        cursor.fetchmany(1)
        cursor.close()

    assert _only(recorder).rows is None
    # Closing reads what is left.
    assert read(recorder).exclusive_ns[FETCH] == 1_000


def test_the_servers_error_is_named_without_its_message(driver: ModuleType) -> None:
    replay = _Replay(_ERROR)
    cursor = replay.connected(driver).cursor()

    with _request(replay.monotonic_ns) as recorder, pytest.raises(driver.err.IntegrityError, match="secret"):
        cursor.execute("INSERT INTO t VALUES ('secret')")

    operation = _only(recorder)
    assert operation.error == "IntegrityError: 1062"
    assert operation.statement == "INSERT INTO t VALUES (?)"
    assert operation.first_byte_ns == operation.end_ns == 207
    assert "secret" not in repr(operation)


def test_a_lost_connection_has_no_first_byte(driver: ModuleType) -> None:
    replay = _Replay(b"")
    connection = replay.connected(driver)

    with _request(replay.monotonic_ns) as recorder, pytest.raises(driver.err.OperationalError):
        connection.query("SELECT 1")
    with _request(replay.monotonic_ns) as second, pytest.raises(driver.err.InterfaceError):
        connection.query("SELECT 1")

    assert _only(recorder).error == "OperationalError: 2013"
    assert _only(recorder).first_byte_ns is None
    assert _only(second).error == "InterfaceError: 0"


def test_an_exception_leaves_as_the_object_it_was(driver: ModuleType) -> None:
    error = KeyboardInterrupt()

    class Interrupted(_Replay):
        def read(self, size: int) -> bytes:
            raise error

    with _request() as recorder, pytest.raises(KeyboardInterrupt) as caught:
        Interrupted(b"").connected(driver).query("SELECT 1")

    assert caught.value is error
    assert error.__context__ is None
    assert _only(recorder).error == "KeyboardInterrupt"


def test_commit_and_rollback_have_their_segment_and_a_ping_is_no_query(driver: ModuleType) -> None:
    replay = _Replay(_OK)
    connection = replay.connected(driver)

    with _request(replay.monotonic_ns) as recorder:
        connection.begin()
        connection.commit()
        connection.rollback()
        connection.ping()
        connection.autocommit(False)

    assert _shown(recorder) == [
        ("query", "BEGIN"),
        ("commit", None),
        ("rollback", None),
        ("ping", None),
        ("query", "SET AUTOCOMMIT = ?"),
    ]
    assert read(recorder).exclusive_ns[COMMIT] == 2 * 207
    assert read(recorder).exclusive_ns[QUERY] == 3 * 207
    assert read(recorder).exclusive_ns[FETCH] == 0


def test_executemany_stays_one_statement_with_its_number_of_sets(driver: ModuleType) -> None:
    replay = _Replay(_OK)
    cursor = replay.connected(driver).cursor()

    with _request(replay.monotonic_ns) as recorder:
        cursor.executemany("INSERT INTO t (a, b) VALUES (%s, %s)", [("secret", 1), ("secret", 2)])
        cursor.executemany("UPDATE t SET a = %s", [(1,), (2,)])
        cursor.executemany("INSERT INTO t (a) VALUES (%s)", [(1,)])
        cursor.execute("DELETE FROM t")

    assert [(operation.statement, operation.batch_size) for operation in read(recorder).operations] == [
        ("INSERT INTO t (a, b) VALUES (%s, %s)", 2),
        ("UPDATE t SET a = %s", None),
        ("UPDATE t SET a = %s", None),
        ("INSERT INTO t (a) VALUES (%s)", None),
        ("DELETE FROM t", None),
    ]


def test_a_statement_that_failed_to_be_built_is_not_shown_with_the_next(driver: ModuleType) -> None:
    connection = _Replay(_OK).connected(driver)

    with _request() as recorder:
        with pytest.raises(driver.err.ProgrammingError):
            connection.cursor().execute("SELECT %s, %s", (1,))
        connection.query("SELECT 'secret'")

    assert _shown(recorder) == [("query", "SELECT ?")]


@pytest.mark.parametrize(("sql", "expected"), [("none", None), ("verbatim", "SELECT 'x'")])
def test_the_setting_says_what_is_kept_of_a_statement(
    plain: ModuleType, sql: Any, expected: str | None
) -> None:
    driver = _import_driver()
    assert hooks.install(Settings(sql=sql))
    cursor = _Replay(_OK).connected(driver).cursor()

    with _request() as recorder:
        cursor.execute("SELECT %s", ("x",))

    assert _only(recorder).statement == expected


def test_of_two_installs_the_stricter_holds(driver: ModuleType) -> None:
    query = driver.connections.Connection.query

    assert hooks.install(Settings(sql="none"))
    assert hooks.install(Settings(sql="verbatim"))

    assert driver.connections.Connection.query is query
    with _request() as recorder:
        _Replay(_OK).connected(driver).query("SELECT 1")
    assert _shown(recorder) == [("query", None)]


def test_outside_a_request_nothing_is_recorded_or_kept_on_the_connection(driver: ModuleType) -> None:
    connection = _Replay(_OK).connected(driver)

    connection.cursor().execute("SELECT %s", (1,))
    connection.commit()

    assert not [name for name in vars(connection) if "reqpath" in name]


def test_another_threads_operation_is_in_no_segment(driver: ModuleType) -> None:
    replay = _Replay(_TWO_ROWS)
    connection = replay.connected(driver)

    with _request(replay.monotonic_ns) as recorder:
        context = copy_context()
        thread = threading.Thread(target=context.run, args=(connection.cursor().execute, "SELECT 1"))
        thread.start()
        thread.join()

    operation = _only(recorder)
    assert operation.concurrent
    assert operation.statement == "SELECT ?"
    assert operation.end_ns - operation.start_ns == 1207
    assert read(recorder).exclusive_ns[QUERY] == read(recorder).exclusive_ns[FETCH] == 0


def test_a_release_without_the_private_names_is_measured_by_the_public_ones(plain: ModuleType) -> None:
    driver = _import_driver()
    connections, cursors = driver.connections, driver.cursors
    originals = {}
    for owner, name in (
        (connections.MySQLResult, "_get_descriptions"),
        (connections.Connection, "_request_authentication"),
        (cursors.SSCursor, "read_next"),
    ):
        # As if they had other names in that release.
        originals[owner, name] = getattr(owner, name)
        delattr(owner, name)
    assert hooks.install(Settings())
    for (owner, name), original in originals.items():
        setattr(owner, name, original)
    replay = _Replay(_TWO_ROWS)

    with _request(replay.monotonic_ns) as recorder:
        replay.connected(driver).query("SELECT 1")

    operation = _only(recorder)
    assert (operation.first_byte_ns, operation.fetch_ns) == (None, None)
    assert read(recorder).exclusive_ns[QUERY] == 1207
    assert read(recorder).exclusive_ns[FETCH] == 0


def test_a_release_with_further_parameters_gets_them(plain: ModuleType) -> None:
    driver = _import_driver()
    query = driver.connections.Connection.query
    seen = []

    def newer(self: Any, sql: Any, unbuffered: bool = False, *, attributes: Any = None) -> Any:
        seen.append((unbuffered, attributes))
        return query(self, sql, unbuffered)

    driver.connections.Connection.query = newer
    assert hooks.install(Settings())
    connection = _Replay(_OK).connected(driver)

    with _request() as recorder:
        connection.query("SELECT 1")
        connection.query("SELECT 2", True, attributes={"a": 1})
        with pytest.raises(TypeError, match="colour"):
            connection.query("SELECT 3", colour="red")
    connection.query("SELECT 4", unbuffered=True)

    assert seen == [(False, None), (True, {"a": 1}), (True, None)]
    assert len(read(recorder).operations) == 3


def test_without_pymysql_nothing_is_hooked(plain: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymysql", None)

    assert not hooks.install(Settings())


def test_a_pymysql_that_can_not_be_hooked_is_left_alone(
    plain: ModuleType, faults: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    connection = plain.connections.Connection
    query = connection.__dict__["query"]
    del connection.query

    assert not hooks.install(Settings())

    connection.query = query
    assert list(faults) == ["hooking PyMySQL"]


def test_a_fault_of_ours_does_not_reach_the_app(
    driver: ModuleType, faults: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("ours")

    cursor = _Replay(_TWO_ROWS).connected(driver).cursor()
    monkeypatch.setattr(hooks, "RawOperation", fail)
    monkeypatch.setattr(hooks, "keep_statement", fail)

    with _request() as recorder:
        assert cursor.execute("SELECT 1") == 2

    assert read(recorder).operations == []
    assert faults == {"recording a database operation": 1, "reading a statement": 1}
    faults.clear()


# --- on a server ------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("mariadb", marks=pytest.mark.live),
        pytest.param("mysql", marks=[pytest.mark.live, pytest.mark.mysql]),
    ],
)
def server(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database server with one table of two rows."""
    if find_database_server(request.param) is None:
        pytest.skip(f"no {request.param} server on this machine; name one in $REQPATH_MYSQLD")
    with (
        tempfile.TemporaryDirectory(prefix="reqpath-test-", dir="/tmp") as directory,
        start_database(directory, kind=request.param, options=["--local-infile=ON"]) as database,
    ):
        yield database


Connect = Callable[..., Any]


@pytest.fixture
def connect(driver: ModuleType, server: Database) -> Iterator[Connect]:
    """Return a function that connects with the hooked driver, over a Unix socket unless told otherwise."""
    with contextlib.ExitStack() as opened:

        def connect(transport: Transport = "unix", **arguments: Any) -> Any:
            connection = driver.connect(
                **server.connect_arguments(transport) | {"ssl_disabled": True} | arguments
            )
            opened.callback(connection._force_close)
            return connection

        with connect() as connection, connection.cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS item")
            cursor.execute("CREATE TABLE item (id INT PRIMARY KEY, name VARCHAR(30))")
            cursor.execute("INSERT INTO item VALUES (1, 'nut'), (2, 'bolt')")
            connection.commit()
        yield connect


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_a_connection_is_recorded_with_its_phases_and_its_true_transport(
    connect: Connect, server: Database, transport: Transport
) -> None:
    with _request() as recorder:
        connect(transport, ssl_disabled=None)

    operation = _only(recorder)
    assert operation.kind == "connect"
    assert operation.transport == transport
    if transport == "unix":
        assert (operation.server_address, operation.server_port) == (server.socket, None)
    else:
        assert (operation.server_address, operation.server_port) == ("127.0.0.1", server.port)
    assert operation.namespace == server.database
    assert [name for name, _ns in operation.phases] == ["tls_context", "socket", "handshake", "setup"]
    duration_ns = operation.end_ns - operation.start_ns
    assert 0 < sum(ns for _name, ns in operation.phases) <= duration_ns
    assert duration_ns <= (read(recorder).exclusive_ns[CONNECT] or 0)
    assert read(recorder).exclusive_ns[QUERY] == 0


def test_localhost_over_tcp_is_told_as_tcp(connect: Connect) -> None:
    with _request() as recorder:
        connect("tcp", host="localhost")

    assert (_only(recorder).transport, _only(recorder).server_address) == ("tcp", "localhost")


def test_no_way_of_connecting_is_missed(driver: ModuleType, server: Database) -> None:
    class Own(driver.Connection):  # type: ignore[name-defined,misc]  # a module that is not known to mypy
        pass

    arguments = server.connect_arguments("unix") | {"init_command": "SET @a = 1", "ssl_disabled": True}
    with _request() as recorder:
        for way in (driver.connect, driver.Connect, driver.connections.Connection, Own):
            way(**arguments).close()
        later = driver.Connection(**arguments, defer_connect=True)
        later.connect()
        later.close()

    assert _shown(recorder) == [("connect", None)] * 5
    numbers = [operation.connection for operation in read(recorder).operations]
    assert len(set(numbers)) == 5


def test_a_refused_connection_is_recorded(driver: ModuleType, server: Database) -> None:
    arguments = server.connect_arguments("tcp") | {"ssl_disabled": True}
    with _request() as recorder:
        with pytest.raises(driver.err.OperationalError):
            driver.connect(**arguments | {"user": "nobody", "password": "secret"})
        with pytest.raises(driver.err.OperationalError):
            driver.connect(**arguments | {"port": find_free_port()})
        with pytest.raises(TypeError):
            driver.connect(colour="red")

    refused, absent = read(recorder).operations
    assert refused.error is not None
    assert refused.error.startswith("OperationalError: ")
    assert [name for name, _ns in refused.phases] == ["socket", "handshake"]
    assert absent.error == "OperationalError: 2003"
    assert [name for name, _ns in absent.phases] == ["socket"]
    assert absent.transport == "tcp"


def test_queries_of_all_cursors_are_recorded(connect: Connect, driver: ModuleType) -> None:
    connection = connect()
    rows = {}
    with _request() as recorder:
        for name in ("Cursor", "DictCursor", "SSCursor", "SSDictCursor"):
            with connection.cursor(getattr(driver.cursors, name)) as cursor:
                cursor.execute("SELECT name FROM item WHERE id < %(id)s ORDER BY id", {"id": 3})
                rows[name] = list(cursor.fetchall())

    assert rows["Cursor"] == rows["SSCursor"] == [("nut",), ("bolt",)]
    assert rows["DictCursor"] == rows["SSDictCursor"] == [{"name": "nut"}, {"name": "bolt"}]
    operations = read(recorder).operations
    assert [operation.rows for operation in operations] == [2] * 4
    assert {operation.statement for operation in operations} == {
        "SELECT name FROM item WHERE id < %(id)s ORDER BY id"
    }
    assert len({operation.connection for operation in operations}) == 1
    for operation in operations:
        assert operation.first_byte_ns is not None
        assert operation.fetch_ns is not None
        assert operation.start_ns < operation.first_byte_ns < operation.end_ns
    assert sum(operation.fetch_ns or 0 for operation in operations) == read(recorder).exclusive_ns[FETCH]
    waited_ns = sum((operation.first_byte_ns or 0) - operation.start_ns for operation in operations)
    assert waited_ns == read(recorder).exclusive_ns[QUERY]


def test_executemany_sends_as_many_statements_as_without_hooks(connect: Connect) -> None:
    connection = connect()
    cursor = connection.cursor()
    cursor.execute("SHOW SESSION STATUS LIKE 'Com_insert'")
    before = int(cursor.fetchone()[1])

    with _request() as recorder:
        sets = [(i, "x") for i in range(10, 110)]
        assert cursor.executemany("INSERT INTO item (id, name) VALUES (%s, %s)", sets) == 100

    cursor.execute("SHOW SESSION STATUS LIKE 'Com_insert'")
    assert int(cursor.fetchone()[1]) == before + 1
    assert (_only(recorder).batch_size, _only(recorder).rows) == (100, 100)


def test_a_batch_too_large_for_one_statement_gives_its_number_once(connect: Connect) -> None:
    cursor = connect().cursor()
    cursor.max_stmt_length = 1_000

    with _request() as recorder:
        sets = [(i, "x" * 30) for i in range(100, 200)]
        assert cursor.executemany("INSERT INTO item (id, name) VALUES (%s, %s)", sets) == 100

    operations = read(recorder).operations
    assert len(operations) > 1
    assert [operation.batch_size for operation in operations] == [100] + [None] * (len(operations) - 1)
    assert sum(operation.rows or 0 for operation in operations) == 100


def test_further_results_belong_to_their_statement(connect: Connect, driver: ModuleType) -> None:
    cursor = connect(client_flag=driver.constants.CLIENT.MULTI_STATEMENTS).cursor()

    with _request() as recorder:
        cursor.execute("SELECT 1; SELECT 2 UNION SELECT 3; SELECT nothing")
        assert cursor.fetchall() == ((1,),)
        assert cursor.nextset()
        assert cursor.fetchall() == ((2,), (3,))
        with pytest.raises(driver.err.OperationalError):
            cursor.nextset()

    operation = _only(recorder)
    assert operation.statement == "SELECT ?; SELECT ? UNION SELECT ?; SELECT nothing"
    assert operation.error == "OperationalError: 1054"
    assert operation.fetch_ns == read(recorder).exclusive_ns[FETCH]


def test_results_that_were_left_are_read_by_the_next_statement(connect: Connect, driver: ModuleType) -> None:
    connection = connect(client_flag=driver.constants.CLIENT.MULTI_STATEMENTS)
    with _request() as recorder:
        connection.cursor().execute("SELECT 1; SELECT 2; SELECT 3")
        connection.cursor().execute("DO 4")

    left, following = read(recorder).operations
    assert following.statement == "DO ?"
    assert following.first_byte_ns == following.end_ns
    assert following.fetch_ns == 0
    assert left.end_ns <= following.end_ns
    assert left.fetch_ns == read(recorder).exclusive_ns[FETCH]


def test_a_procedure_is_called_without_showing_its_arguments(connect: Connect) -> None:
    cursor = connect().cursor()
    cursor.execute("DROP PROCEDURE IF EXISTS twice")
    cursor.execute("CREATE PROCEDURE twice (a INT, b VARCHAR(9)) SELECT a + a, b")

    with _request() as recorder:
        assert cursor.callproc("twice", (21, "secret")) == (21, "secret")
        assert cursor.fetchall() == ((42, "secret"),)
        cursor.nextset()

    assert _shown(recorder) == [
        ("query", "SET @`_twice_0`=?,@`_twice_1`=?"),
        ("query", "CALL `twice`(@`_twice_0`,@`_twice_1`)"),
    ]


def test_a_local_file_is_loaded(connect: Connect, tmp_path: Path) -> None:
    file = tmp_path / "items"
    file.write_text("7\tseven\n8\teight\n")
    cursor = connect(local_infile=True).cursor()

    with _request() as recorder:
        assert cursor.execute(f"LOAD DATA LOCAL INFILE '{file}' INTO TABLE item") == 2

    operation = _only(recorder)
    assert operation.statement == "LOAD DATA LOCAL INFILE ? INTO TABLE item"
    assert (operation.rows, operation.first_byte_ns, operation.fetch_ns) == (2, None, None)


def test_a_ping_that_connects_anew_is_a_connection_and_pings(connect: Connect) -> None:
    connection, other = connect(), connect()
    with _request() as recorder:
        connection.query("SELECT 1")
        other.kill(connection.thread_id())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            connection.ping(reconnect=True)
        connection.query("SELECT 2")

    assert [kind for kind, _statement in _shown(recorder)] == [
        "query",
        "query",
        "ping",
        "connect",
        "ping",
        "query",
    ], "in the order in which they began"
    operations = read(recorder).operations
    assert operations[0].connection != operations[3].connection == operations[-1].connection


def test_the_database_that_is_used_is_named(connect: Connect) -> None:
    connection = connect()
    with _request() as recorder:
        connection.select_db("mysql")
        connection.query("SELECT 1")

    assert [operation.namespace for operation in read(recorder).operations] == ["mysql", "mysql"]


def test_a_connection_from_before_the_request_is_told_from_its_socket(connect: Connect) -> None:
    for transport in ("unix", "tcp"):
        connection = connect(transport)
        with _request() as recorder:
            connection.cursor().execute("SELECT 1")
        assert _only(recorder).transport == transport


@pytest.mark.parametrize(
    "statement",
    ["", "  ", ";", "/* ping */", "-- nothing", b"SELECT 1", bytearray(b"SELECT 1"), "SELECT 'é'", None, 7],
)
@pytest.mark.parametrize("arguments", [(), (None,), ((),), ([1],), ({"a": 1},)])
def test_odd_statements_behave_as_without_hooks(
    connect: Connect, plain: ModuleType, server: Database, statement: Any, arguments: tuple[Any, ...]
) -> None:
    def outcome(connection: Any) -> tuple[Any, ...]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                cursor = connection.cursor()
                return cursor.execute(statement, *arguments), cursor.fetchall(), cursor.rowcount
            except Exception as error:
                return type(error).__name__, error.args

    with plain.connect(**server.connect_arguments("unix"), ssl_disabled=True) as bare:
        expected = outcome(bare)
    with _request(), connect() as connection:
        assert outcome(connection) == expected


@pytest.mark.parametrize("call", ["execute", "executemany", "callproc", "fetchmany"])
def test_wrong_calls_fail_as_without_hooks(
    connect: Connect, plain: ModuleType, server: Database, call: str
) -> None:
    def outcomes(connection: Any) -> list[str]:
        found = []
        for arguments, keywords in (((), {}), (("SELECT 1", None, 3), {}), (("SELECT 1",), {"colour": 1})):
            try:
                getattr(connection.cursor(), call)(*arguments, **keywords)
                found.append("returned")
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")
        return found

    with plain.connect(**server.connect_arguments("unix"), ssl_disabled=True) as bare:
        expected = outcomes(bare)
    with _request(), connect() as connection:
        assert outcomes(connection) == expected


def test_greenlets_keep_their_requests_apart(server: Database) -> None:
    """In a process of its own: gevent replaces sockets and threads for good."""
    pytest.importorskip("gevent")
    script = """
import warnings
warnings.simplefilter("ignore")
from gevent import monkey
monkey.patch_all()
import sys, gevent, pymysql
from tests.worker.recorders import read
from tests.worker.test_pymysql import _request, _shown
from reqpath.settings import Settings
from reqpath.worker.pymysql import install
from reqpath.worker.recorder import QUERY, VIEW
assert install(Settings())
def serve(seconds):
    with _request() as recorder:
        connection = pymysql.connect(unix_socket=sys.argv[1], user="root", ssl_disabled=True)
        cursor = connection.cursor()
        for _ in range(3):
            cursor.execute("SELECT SLEEP(%s)", (seconds,))
        connection.close()
    assert _shown(recorder) == [("connect", None)] + [("query", "SELECT SLEEP(%s)")] * 3, _shown(recorder)
    assert not any(operation.concurrent for operation in read(recorder).operations)
    assert read(recorder).exclusive_ns[QUERY] > 3e9 * seconds
    return True
jobs = [gevent.spawn(serve, seconds) for seconds in (0.01, 0.02, 0.03)]
gevent.joinall(jobs)
assert all(job.value for job in jobs)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script, server.socket],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
