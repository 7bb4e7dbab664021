"""PyMySQL's time: connect, query, fetch, commit, by hooks on its classes.

On the classes, so that `pymysql.connect`, `pymysql.Connection`, subclasses and pools are all seen, whenever
they were imported. Outside a request the hooks call through. What the layer above gets of one `SELECT`::

    mysql.query   sent ──► first packet of the reply     Connection.query, then MySQLResult._get_descriptions
    mysql.fetch            first packet ──► decoded      … until Connection.query returns

and one `record.Operation`. Hooks on private names are optional: where a release of PyMySQL has none of that
name, the time stays in the segment of the public one, and first byte or phases are unknown.
"""

from __future__ import annotations

import functools
import itertools
import socket
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, Literal

from reqpath.record import Operation, Transport
from reqpath.settings import Settings, Sql
from reqpath.worker.guard import note_fault
from reqpath.worker.recorder import COMMIT, CONNECT, FETCH, QUERY, RequestRecorder, current
from reqpath.worker.sql import bound, keep_statement

_Method = Callable[..., Any]
_Kind = Literal["connect", "query", "commit", "rollback", "ping"]

#: The attribute of a connection that holds its `_Link`, and that of the class which holds the `_Policy`.
_LINK: Final = "_reqpath_link"
_POLICY: Final = "_reqpath_policy"
#: `first_byte_ns` of a link: no reply yet; a reply that asked for a file, so that no fetching follows.
_NOT_YET: Final = 0
_ASKED_FOR_FILE: Final = -1
#: What PyMySQL says for the rows of an unbuffered result.
_UNKNOWN_ROWS: Final = (1 << 64) - 1
#: SERVER_STATUS_NO_BACKSLASH_ESCAPES. Source: MySQL's include/mysql_com.h.
_NO_BACKSLASH_ESCAPES: Final = 512
#: Of the strictest first.
_STRICTNESS: Final[tuple[Sql, ...]] = ("none", "placeholders", "verbatim")

_number_connection = itertools.count(1).__next__


def install(settings: Settings) -> bool:
    """Hook PyMySQL; return whether it is hooked, which it is not where it is not installed.

    A second time does nothing, save that the stricter of two settings of `sql` holds.
    """
    try:
        from pymysql import connections, cursors  # loaded only in an app that has it
    except ImportError:
        return False
    try:
        policy: _Policy | None = connections.Connection.__dict__.get(_POLICY)
        if policy is None:
            _install(connections, cursors, _Policy(settings.sql))
        else:
            policy.sql = min(policy.sql, settings.sql, key=_STRICTNESS.index)
    except Exception:
        note_fault("hooking PyMySQL")
        return False
    return True


def _install(connections: ModuleType, cursors: ModuleType, policy: _Policy) -> None:
    connection, result = connections.Connection, getattr(connections, "MySQLResult", None)
    command = functools.partial(_hook_command, policy=policy)
    # Raises for a PyMySQL without these, before anything is hooked.
    query, connect = connection.query, connection.connect

    policy.sees_first_byte = _replace(result, "_get_descriptions", _hook_first_packet)
    _replace(result, "_read_load_local_packet", _hook_file_request)
    _replace(result, "_finish_unbuffered_query", _hook_reading)
    policy.sees_phases = all(
        [
            _replace(connection, "_get_server_information", _hook_handshake_start),
            _replace(connection, "_request_authentication", _hook_handshake_end),
        ]
    )
    _replace(connection, "_create_ssl_ctx", _hook_tls_context)
    _replace(connection, "__init__", _hook_init)
    connection.connect = _hook_connect(connect, policy)
    connection.query = command(query, kind="query", segment=QUERY)
    _replace(connection, "next_result", functools.partial(_hook_reading, segment=QUERY))

    # Since 1.1 `set_charset` calls the other.
    set_charset = "set_character_set" if hasattr(connection, "set_character_set") else "set_charset"
    for name, kind, segment, statement in (
        ("commit", "commit", COMMIT, ""),
        ("rollback", "rollback", COMMIT, ""),
        ("ping", "ping", QUERY, ""),
        ("begin", "query", QUERY, "BEGIN"),
        ("show_warnings", "query", QUERY, "SHOW WARNINGS"),
        ("_send_autocommit_mode", "query", QUERY, "SET AUTOCOMMIT = ?"),
        ("select_db", "query", QUERY, "USE ?"),
        (set_charset, "query", QUERY, "SET NAMES ?"),
    ):
        hook = functools.partial(command, kind=kind, segment=segment, fixed=statement)
        _replace(connection, name, hook)

    _replace(cursors.Cursor, "execute", _hook_execute)
    _replace(cursors.Cursor, "executemany", _hook_executemany)
    _replace(getattr(cursors, "DictCursorMixin", None), "_do_get_result", _hook_reading)
    _replace(
        getattr(cursors, "SSCursor", None), "read_next", functools.partial(_hook_reading, reads_row=True)
    )
    setattr(connection, _POLICY, policy)


def _replace(owner: type | None, name: str, hook: Callable[[_Method], _Method]) -> bool:
    """Put `hook` around a method that the class itself has; return whether it has one."""
    original = owner.__dict__.get(name) if owner is not None else None
    if not callable(original):
        return False
    setattr(owner, name, hook(original))
    return True


class _Policy:
    """What the hooks keep, and what they can see in this release of PyMySQL."""

    __slots__ = ("sees_first_byte", "sees_phases", "sql")

    def __init__(self, sql: Sql) -> None:
        self.sql = sql
        self.sees_first_byte = False
        self.sees_phases = False


class _Link:
    """What the hooks know of one connection; it is kept on it. Instants are monotonic ns, 0 is not yet."""

    __slots__ = (
        "address",
        "batch_size",
        "batch_statement",
        "batch_total",
        "first_byte_ns",
        "greeted_ns",
        "handshaken_ns",
        "monotonic_ns",
        "namespace",
        "number",
        "opening",
        "operation",
        "port",
        "request_ns",
        "rows",
        "socket_ns",
        "start_ns",
        "statement",
        "tls_ns",
        "transport",
        "waiting",
    )

    def __init__(self) -> None:
        self.number = _number_connection()
        self.transport: Transport | None = None
        self.address: str | None = None
        self.port: int | None = None
        self.namespace: str | None = None
        #: While it is opened, all that runs on it is part of that.
        self.opening = False
        #: A command of the request's own thread is under way.
        self.waiting = False
        self.first_byte_ns = _NOT_YET
        #: What `Cursor.execute` was given, for the `Connection.query` inside it, and how many sets it holds.
        self.statement: object = None
        self.batch_size: int | None = None
        #: What `Cursor.executemany` was given, for the `execute` inside it.
        self.batch_statement: object = None
        self.batch_total: int | None = None
        #: The latest operation and the request it is of, as its start, for what is read of the reply later.
        self.operation: Operation | None = None
        self.request_ns = 0
        self.rows = 0
        # Of the opening.
        self.monotonic_ns: Callable[[], int] | None = None
        self.start_ns = 0
        self.tls_ns = 0
        self.socket_ns = 0
        self.greeted_ns = 0
        self.handshaken_ns = 0


# --- commands ---------------------------------------------------------------------------------------------


def _hook_command(
    original: _Method, *, kind: _Kind, segment: int, policy: _Policy, fixed: str | None = None
) -> _Method:
    """Time a method that sends a command and reads its reply.

    `fixed` is the statement of a method that is not given one, empty where there is none to show.
    """
    selects_database = original.__name__ == "select_db"

    @functools.wraps(original)
    def command(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = current.get()
        if recorder is None:
            return original(self, *args, **kwargs)
        link = _link_of(self)
        if link is None or link.opening or link.waiting:
            return original(self, *args, **kwargs)
        sql: object = fixed
        if sql is None:
            sql = args[0] if args else kwargs.get("sql")
            if link.statement is not None and policy.sql != "verbatim":
                sql = link.statement
        link.statement = None
        if not recorder.is_own_thread():
            return _run_beside(original, self, args, kwargs, kind=kind, sql=sql, policy=policy)
        previous = _switch(recorder, segment)
        start_ns = recorder.last_ns
        link.first_byte_ns = _NOT_YET
        link.waiting = True
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            recorder.switch(previous)
            link.waiting = False
            _keep(
                self, link, recorder, policy, kind=kind, sql=sql, start_ns=start_ns, result=None, error=error
            )
            raise
        recorder.switch(previous)
        link.waiting = False
        if selects_database:
            link.namespace = _text_of(args[0] if args else kwargs.get("db"))
        _keep(self, link, recorder, policy, kind=kind, sql=sql, start_ns=start_ns, result=result, error=None)
        return result

    return command


def _run_beside(
    original: _Method,
    connection: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    kind: _Kind,
    sql: object,
    policy: _Policy,
) -> Any:
    """Run a method on another thread than the request's: an operation of it, in none of its segments."""
    recorder = current.get()
    if recorder is None or recorder.finished:
        return original(connection, *args, **kwargs)
    start_ns = recorder.monotonic_ns()
    error: str | None = None
    result: Any = None
    try:
        result = original(connection, *args, **kwargs)
        return result
    except BaseException as raised:
        error = _name_error(raised)
        raise
    finally:
        try:
            link = _link_of(connection)
            if link is not None and not recorder.finished:
                operation = _build_operation(recorder, link, kind, start_ns, recorder.monotonic_ns())
                operation.concurrent = True
                operation.error = error
                if kind == "query":
                    operation.statement = _keep_statement(connection, policy, sql)
                    operation.rows = _count_rows(result)
                recorder.add_operation(operation)
        except Exception:
            note_fault("recording a database operation")


def _keep(
    connection: Any,
    link: _Link,
    recorder: RequestRecorder,
    policy: _Policy,
    *,
    kind: _Kind,
    sql: object,
    start_ns: int,
    result: Any,
    error: BaseException | None,
) -> None:
    """Keep the operation that ended at the recorder's latest switch."""
    try:
        end_ns = recorder.last_ns
        operation = _build_operation(recorder, link, kind, start_ns, end_ns)
        if kind == "query":
            operation.statement = _keep_statement(connection, policy, sql)
            if link.batch_size is not None:
                operation.batch_size = link.batch_size
                link.batch_size = None
            operation.rows = _count_rows(result)
            link.rows = 0
        if error is not None:
            operation.error = _name_error(error)
        if policy.sees_first_byte and link.first_byte_ns != _ASKED_FOR_FILE:
            # A reply without rows is one packet, and reading it is no fetching; so is the server's error.
            first_byte_ns = link.first_byte_ns
            if first_byte_ns == _NOT_YET and (error is None or _is_from_server(error)):
                first_byte_ns = end_ns
            if first_byte_ns != _NOT_YET:
                operation.first_byte_ns = first_byte_ns - recorder.base_ns
                if kind == "query":
                    operation.fetch_ns = end_ns - first_byte_ns
        recorder.add_operation(operation)
        link.operation = operation
        link.request_ns = recorder.base_ns
    except Exception:
        note_fault("recording a database operation")


def _build_operation(
    recorder: RequestRecorder, link: _Link, kind: _Kind, start_ns: int, end_ns: int
) -> Operation:
    base_ns = recorder.base_ns
    return Operation(
        kind,
        start_ns - base_ns,
        end_ns - base_ns,
        transport=link.transport,
        server_address=link.address,
        server_port=link.port,
        namespace=link.namespace,
        connection=link.number,
    )


# --- the reply --------------------------------------------------------------------------------------------


def _hook_first_packet(original: _Method) -> _Method:
    """Enter `mysql.fetch` where a result set's first packet has been read and its columns come next."""

    @functools.wraps(original)
    def first_packet(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = current.get()
        if recorder is not None:
            link: _Link | None = getattr(self.connection, _LINK, None)
            if link is not None and link.waiting and recorder.is_own_thread():
                _switch(recorder, FETCH)
                link.first_byte_ns = recorder.last_ns
        return original(self, *args, **kwargs)

    return first_packet


def _hook_file_request(original: _Method) -> _Method:
    """Note that the reply asks for a file (LOAD DATA LOCAL)."""

    @functools.wraps(original)
    def file_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        link: _Link | None = getattr(self.connection, _LINK, None)
        if link is not None:
            link.first_byte_ns = _ASKED_FOR_FILE
        return original(self, *args, **kwargs)

    return file_request


def _hook_reading(original: _Method, *, segment: int = FETCH, reads_row: bool = False) -> _Method:
    """Time a method that reads or decodes more of a reply: its time belongs to the operation before.

    The method is a cursor's, a result's or the connection's own. `segment` QUERY is for one that first waits.
    """

    @functools.wraps(original)
    def reading(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = current.get()
        if recorder is None:
            return original(self, *args, **kwargs)
        # A cursor and a result have the attribute, a connection has not; None is a closed or finished one.
        link: _Link | None = getattr(getattr(self, "connection", self), _LINK, None)
        if link is None or link.opening or not recorder.is_own_thread():
            return original(self, *args, **kwargs)
        previous = _switch(recorder, segment)
        nested = link.waiting
        link.waiting = True
        link.first_byte_ns = recorder.last_ns if segment == FETCH else _NOT_YET
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            recorder.switch(previous)
            _end_reading(recorder, link, nested, error)
            raise
        recorder.switch(previous)
        if reads_row:
            _count_row(recorder, link, result)
        _end_reading(recorder, link, nested, None)
        return result

    return reading


def _count_row(recorder: RequestRecorder, link: _Link, row: object) -> None:
    operation = link.operation
    if operation is None or link.request_ns != recorder.base_ns:
        return
    if row is not None:
        link.rows += 1
    elif operation.rows is None:
        operation.rows = link.rows


def _end_reading(recorder: RequestRecorder, link: _Link, nested: bool, error: BaseException | None) -> None:
    """Stretch the operation that was read from until the recorder's latest switch."""
    first_byte_ns = link.first_byte_ns
    link.waiting = nested
    # Inside a command this was the rest of the one before; the command's own reply is still to come.
    link.first_byte_ns = _NOT_YET
    operation = link.operation
    if operation is None or link.request_ns != recorder.base_ns:
        return
    operation.end_ns = recorder.last_ns - recorder.base_ns
    if first_byte_ns > _NOT_YET:
        operation.fetch_ns = (operation.fetch_ns or 0) + recorder.last_ns - first_byte_ns
    if error is not None and operation.error is None:
        operation.error = _name_error(error)


# --- cursors ----------------------------------------------------------------------------------------------


def _hook_execute(original: _Method) -> _Method:
    """Hand the statement, before the values are put into it, to the `query` inside."""

    @functools.wraps(original)
    def execute(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        if current.get() is None:
            return original(self, query, *args, **kwargs)
        link = _link_of(self.connection)
        if link is None:
            return original(self, query, *args, **kwargs)
        link.statement = query
        if link.batch_statement is not None and not args and not kwargs:
            # `executemany` has put many sets of values into one INSERT.
            link.statement = link.batch_statement
            link.batch_size, link.batch_total = link.batch_total, None
        try:
            return original(self, query, *args, **kwargs)
        finally:
            link.statement = link.batch_size = None

    return execute


def _hook_executemany(original: _Method) -> _Method:
    """Hand statement and number of sets to the `execute` inside."""

    @functools.wraps(original)
    def executemany(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        if current.get() is None:
            return original(self, query, *args, **kwargs)
        link = _link_of(self.connection)
        if link is None:
            return original(self, query, *args, **kwargs)
        link.batch_statement = query
        sets = args[0] if args else kwargs.get("args")
        # A generator does not tell, and one set is no batch. Of several INSERTs the first has the number.
        size = len(sets) if isinstance(sets, (list, tuple)) else 0
        link.batch_total = size if size > 1 else None
        try:
            return original(self, query, *args, **kwargs)
        finally:
            link.batch_statement = link.batch_total = None

    return executemany


# --- opening ----------------------------------------------------------------------------------------------


def _hook_init(original: _Method) -> _Method:
    """Begin the opening where the connection is made: its TLS context is made before `connect`."""

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        recorder = current.get()
        if recorder is None or not recorder.is_own_thread():
            return original(self, *args, **kwargs)  # type: ignore[no-any-return]  # whatever the driver returns
        previous, link = _begin_opening(self, recorder)
        try:
            return original(self, *args, **kwargs)  # type: ignore[no-any-return]
        finally:
            recorder.switch(previous)
            link.opening = False
            if link.socket_ns == 0:
                # To be connected later, by an opening of its own.
                self.__dict__.pop(_LINK, None)

    return init


def _hook_connect(original: _Method, policy: _Policy) -> _Method:
    """Record the opening of a connection, be it the first or a further one of the same object."""

    @functools.wraps(original)
    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = current.get()
        link: _Link | None = self.__dict__.get(_LINK)
        if link is None or not link.opening:
            # What was known is of the socket before.
            self.__dict__.pop(_LINK, None)
            link = None
        if recorder is None:
            return original(self, *args, **kwargs)
        if not recorder.is_own_thread():
            return _run_beside(original, self, args, kwargs, kind="connect", sql=None, policy=policy)
        if link is None:
            previous, link = _begin_opening(self, recorder)
        else:
            previous = _switch(recorder, CONNECT)
        link.socket_ns = recorder.last_ns
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            recorder.switch(previous)
            _keep_opening(self, link, recorder, policy, error)
            raise
        recorder.switch(previous)
        _keep_opening(self, link, recorder, policy, None)
        return result

    return connect


def _begin_opening(connection: Any, recorder: RequestRecorder) -> tuple[int, _Link]:
    """Return the segment that was current, and the connection's new link."""
    previous = _switch(recorder, CONNECT)
    link = _Link()
    link.opening = True
    link.monotonic_ns = recorder.monotonic_ns
    link.start_ns = recorder.last_ns
    setattr(connection, _LINK, link)
    return previous, link


def _keep_opening(
    connection: Any, link: _Link, recorder: RequestRecorder, policy: _Policy, error: BaseException | None
) -> None:
    link.opening = False
    try:
        _describe(connection, link)
        end_ns = recorder.last_ns
        operation = _build_operation(recorder, link, "connect", link.start_ns, end_ns)
        if link.tls_ns:
            operation.phases.append(("tls_context", link.tls_ns))
        if policy.sees_phases:
            begin_ns = link.socket_ns
            for name, phase_end_ns in (
                ("socket", link.greeted_ns),
                ("handshake", link.handshaken_ns),
                ("setup", end_ns),
            ):
                # The phase that failed is the last.
                operation.phases.append((name, (phase_end_ns or end_ns) - begin_ns))
                begin_ns = phase_end_ns
                if not phase_end_ns:
                    break
        if error is not None:
            operation.error = _name_error(error)
        recorder.add_operation(operation)
    except Exception:
        note_fault("recording a database connection")


def _hook_tls_context(original: _Method) -> _Method:
    @functools.wraps(original)
    def tls_context(self: Any, *args: Any, **kwargs: Any) -> Any:
        link: _Link | None = self.__dict__.get(_LINK)
        if link is None or not link.opening or link.monotonic_ns is None:
            return original(self, *args, **kwargs)
        start_ns = link.monotonic_ns()
        try:
            return original(self, *args, **kwargs)
        finally:
            link.tls_ns += link.monotonic_ns() - start_ns

    return tls_context


def _hook_handshake_start(original: _Method) -> _Method:
    @functools.wraps(original)
    def handshake_start(self: Any, *args: Any, **kwargs: Any) -> Any:
        link: _Link | None = self.__dict__.get(_LINK)
        if link is not None and link.monotonic_ns is not None:
            link.greeted_ns = link.monotonic_ns()
        return original(self, *args, **kwargs)

    return handshake_start


def _hook_handshake_end(original: _Method) -> _Method:
    @functools.wraps(original)
    def handshake_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        link: _Link | None = self.__dict__.get(_LINK)
        if link is not None and link.monotonic_ns is not None:
            link.handshaken_ns = link.monotonic_ns()
        return result

    return handshake_end


# --- helpers ----------------------------------------------------------------------------------------------


def _switch(recorder: RequestRecorder, segment: int) -> int:
    """Enter `segment`, which a plain WSGI app's record may not know yet; return the one before."""
    exclusive_ns: list[int | None] = recorder.record.exclusive_ns
    if exclusive_ns[segment] is None:
        for known in (CONNECT, QUERY, FETCH, COMMIT):
            exclusive_ns[known] = exclusive_ns[known] or 0
    return recorder.switch(segment)


def _link_of(connection: Any) -> _Link | None:
    """Return a connection's link; None without a connection, or where none can be kept."""
    link: _Link | None = getattr(connection, _LINK, None)
    if link is not None or connection is None:
        return link
    try:
        # Opened before the hooks were there, or outside a request.
        link = _Link()
        _describe(connection, link)
        setattr(connection, _LINK, link)
    except Exception:
        note_fault("reading a database connection's address")
        return None
    return link


def _describe(connection: Any, link: _Link) -> None:
    """Note where the connection goes: by its socket, and as configured while it has none."""
    family = getattr(connection._sock, "family", None)
    if family is None:
        family = socket.AF_UNIX if connection.unix_socket else socket.AF_INET
    if family == socket.AF_UNIX:
        link.transport = "unix"
        link.address = _text_of(connection.unix_socket)
    elif family in (socket.AF_INET, socket.AF_INET6):
        link.transport = "tcp"
        link.address = _text_of(connection.host)
        link.port = connection.port
    link.namespace = _text_of(connection.db)


def _text_of(value: object) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return bound(value) if isinstance(value, str) and value else None


def _keep_statement(connection: Any, policy: _Policy, sql: object) -> str | None:
    if policy.sql == "none" or not sql:
        return None
    return keep_statement(
        sql,
        verbatim=policy.sql == "verbatim",
        encoding=connection.encoding,
        backslash_escapes=not getattr(connection, "server_status", 0) & _NO_BACKSLASH_ESCAPES,
    )


def _count_rows(result: object) -> int | None:
    """Return what `Connection.query` says of the rows, when it says it."""
    return result if isinstance(result, int) and 0 <= result < _UNKNOWN_ROWS else None


def _name_error(error: BaseException) -> str:
    """Return class and code, never the message: it may hold values."""
    code = error.args[0] if error.args else None
    name = type(error).__name__
    return f"{name}: {code}" if isinstance(code, int) else name


def _is_from_server(error: BaseException) -> bool:
    """Tell whether an error was the server's reply; the client's own have codes from 2000 to 2999."""
    code = error.args[0] if error.args else None
    return isinstance(code, int) and code >= 1000 and not 2000 <= code < 3000
