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
import inspect
import itertools
import socket
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, Literal, TypeGuard

from reqpath.record import Operation, Transport
from reqpath.settings import Settings, Sql
from reqpath.worker import instrumented
from reqpath.worker.guard import note_fault
from reqpath.worker.recorder import COMMIT, CONNECT, FETCH, QUERY, RequestRecorder, current
from reqpath.worker.sql import MAX_CACHED, bound, keep_statement

_Method = Callable[..., Any]
_Kind = Literal["connect", "query", "commit", "rollback", "ping"]

#: The attribute of a connection that holds its `_Link`, and that of the class which holds the `_Policy`.
_LINK: Final = "_reqpath_link"
_POLICY: Final = "_reqpath_policy"
#: `busy_with` of a link while the connection is opened: what runs on it is part of that.
_OPENING: Final = "opening"
#: `first_byte_ns` of a link: no reply yet; a reply that asked for a file, so that no fetching follows.
_NOT_YET: Final = 0
_ASKED_FOR_FILE: Final = -1
#: Making the dicts of fewer rows takes less than to time it (3 µs), so it stays where the call was made.
_MANY_ROWS: Final = 10
#: Of all operations but a connect, whose list is its own.
_NO_PHASES: Final[list[tuple[str, int]]] = []
#: What PyMySQL says for the rows of an unbuffered result.
_UNKNOWN_ROWS: Final = (1 << 64) - 1
#: SERVER_STATUS_NO_BACKSLASH_ESCAPES. Source: MySQL's include/mysql_com.h.
_NO_BACKSLASH_ESCAPES: Final = 512
#: How many statements' texts are at hand; with more of them, all are looked up anew.
_MAX_TEXTS: Final = 1024
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
            policy.verbatim = policy.sql == "verbatim"
            policy.texts = {}
    except Exception:
        note_fault("hooking PyMySQL")
        return False
    return True


def _install(connections: ModuleType, cursors: ModuleType, policy: _Policy) -> None:
    connection, cursor = connections.Connection, cursors.Cursor
    result = getattr(connections, "MySQLResult", None)
    unbuffered_cursor = getattr(cursors, "SSCursor", None)
    # Raises for a PyMySQL without these, before anything is hooked.
    query, connect, execute = connection.query, connection.connect, cursor.execute

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
    connection.query = _adapt(
        query, ("self", "sql", "unbuffered"), lambda method: _hook_query(method, policy)
    )
    _replace(connection, "next_result", functools.partial(_hook_reading, segment=QUERY))

    # Since 1.1 `set_charset` calls the other.
    set_charset = "set_character_set" if hasattr(connection, "set_character_set") else "set_charset"
    commands: tuple[tuple[str, _Kind, int, str | None], ...] = (
        ("commit", "commit", COMMIT, None),
        ("rollback", "rollback", COMMIT, None),
        ("ping", "ping", QUERY, None),
        ("begin", "query", QUERY, "BEGIN"),
        ("show_warnings", "query", QUERY, "SHOW WARNINGS"),
        ("_send_autocommit_mode", "query", QUERY, "SET AUTOCOMMIT = ?"),
        ("select_db", "query", QUERY, "USE ?"),
        (set_charset, "query", QUERY, "SET NAMES ?"),
    )
    for name, kind, segment, statement in commands:
        hook = functools.partial(
            _hook_command, policy=policy, kind=kind, segment=segment, statement=statement
        )
        _replace(connection, name, hook)

    cursor.execute = _adapt(execute, ("self", "query", "args"), _hook_execute)
    _replace(cursor, "executemany", _hook_executemany)
    _replace(getattr(cursors, "DictCursorMixin", None), "_do_get_result", _hook_dict_rows)
    _replace(unbuffered_cursor, "read_next", _hook_row)
    _replace(unbuffered_cursor, "fetchmany", functools.partial(_hook_reading, reads_rows=True))
    _replace(unbuffered_cursor, "fetchall", functools.partial(_hook_reading, reads_rows=True))
    # So that reading it from a connection without one raises nothing.
    setattr(connection, _LINK, None)
    setattr(connection, _POLICY, policy)


def _replace(owner: type | None, name: str, hook: Callable[[_Method], _Method]) -> bool:
    """Put `hook` around a method that the class itself has; return whether it has one."""
    original = owner.__dict__.get(name) if owner is not None else None
    if not callable(original):
        return False
    setattr(owner, name, hook(original))
    return True


def _adapt(original: _Method, parameters: tuple[str, ...], hook: Callable[[_Method], _Method]) -> _Method:
    """Put `hook`, written for these three parameters, around a method that may have others.

    A call with fixed parameters costs a quarter of one with `*args, **kwargs`, and these are the hot ones.
    """
    if tuple(inspect.signature(original).parameters) == parameters:
        return hook(original)

    def unpack(self: Any, first: Any, packed: Any = None) -> Any:
        args, kwargs = packed or ((), {})
        return original(self, first, *args, **kwargs)

    hooked = hook(unpack)

    @functools.wraps(original)
    def adapted(self: Any, first: Any, *args: Any, **kwargs: Any) -> Any:
        return hooked(self, first, (args, kwargs)) if args or kwargs else hooked(self, first)

    return adapted


class _Policy:
    """What the hooks keep, and what they can see in this release of PyMySQL."""

    __slots__ = ("sees_first_byte", "sees_phases", "sql", "texts", "verbatim")

    def __init__(self, sql: Sql) -> None:
        self.sql = sql
        self.verbatim = sql == "verbatim"
        self.sees_first_byte = False
        self.sees_phases = False
        #: What is kept of the statements seen, by what a hook was given; of one setting of `sql`.
        self.texts: dict[object, str | None] = {}


class _Link:
    """What the hooks know of one connection; it is kept on it. Instants are monotonic ns, 0 is not yet."""

    __slots__ = (
        "address",
        "batch_size",
        "batch_statement",
        "batch_total",
        "busy_with",
        "first_byte_ns",
        "greeted_ns",
        "handshaken_ns",
        "monotonic_ns",
        "namespace",
        "number",
        "operation",
        "port",
        "request_ns",
        "rows",
        "socket_ns",
        "start_ns",
        "statement",
        "tls_ns",
        "traced",
        "transport",
    )

    def __init__(self) -> None:
        self.number = _number_connection()
        #: The app's own instrumentation may make spans of what is executed.
        self.traced = instrumented.traces_databases()
        self.transport: Transport | None = None
        self.address: str | None = None
        self.port: int | None = None
        self.namespace: str | None = None
        #: The request whose operation is under way, and with it all that it calls; or `_OPENING`.
        self.busy_with: RequestRecorder | str | None = None
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


def _hook_query(original: _Method, policy: _Policy) -> _Method:
    """Time `Connection.query`, by which all statements go."""

    # The hook that runs many times in a request: what it needs is written out, since a call costs as much as
    # what is in it.
    @functools.wraps(original)
    def query(self: Any, sql: Any, unbuffered: Any = False) -> Any:
        recorder = current.get()
        if recorder is None:
            return original(self, sql, unbuffered)
        link: _Link | None = self._reqpath_link or _link_of(self)
        if link is None or link.busy_with is not None:
            return original(self, sql, unbuffered)
        template = link.statement
        if template is None or policy.verbatim:
            template = sql
        try:
            statement = None if self.server_status & _NO_BACKSLASH_ESCAPES else policy.texts.get(template)
        except Exception:
            statement = None
        if statement is None:
            statement = _keep_text(self, policy, template)
        if threading.get_ident() != recorder.owner:
            return _run_beside(original, self, (sql, unbuffered), {}, "query", statement)
        try:
            marks = recorder.marks
            previous = marks[-2]
            start_ns = recorder.monotonic_ns()
            marks += (QUERY, start_ns)
        except Exception:
            note_fault("the change of a segment")
            return original(self, sql, unbuffered)
        link.first_byte_ns = _NOT_YET
        link.busy_with = recorder
        try:
            result = original(self, sql, unbuffered)
        except BaseException as error:
            _end_operation(link, recorder, policy, previous, "query", start_ns, statement, error)
            raise
        link.busy_with = None
        try:
            end_ns = recorder.monotonic_ns()
            marks += (previous, end_ns)
            base_ns = recorder.base_ns
            first_byte_ns: int | None = link.first_byte_ns
            if first_byte_ns > _NOT_YET:  # type: ignore[operator]  # None from here on
                fetch_ns: int | None = end_ns - first_byte_ns  # type: ignore[operator]
                first_byte_ns -= base_ns  # type: ignore[operator]
            else:
                first_byte_ns, fetch_ns = _bytes_of_one_packet(link, policy, end_ns - base_ns)
            if result.__class__ is not int or result >= _UNKNOWN_ROWS:
                # An unbuffered result's, or not PyMySQL's.
                result_rows = None
                link.rows = 0
            else:
                result_rows = result
            link.request_ns = base_ns
            link.operation = operation = Operation(
                "query",
                start_ns - base_ns,
                end_ns - base_ns,
                first_byte_ns,
                statement,
                result_rows,
                None,
                link.transport,
                link.address,
                link.port,
                link.namespace,
                link.batch_size,
                False,
                _NO_PHASES,
                link.number,
                fetch_ns,
            )
            if link.traced:
                operation.app_span_id = instrumented.find_database_span_id()
            operations = recorder.record.operations
            if len(operations) < recorder.max_operations:
                operations.append(operation)
            else:
                recorder.drop_operation()
        except Exception:
            note_fault("recording a database operation")
        return result

    return query


def _hook_command(
    original: _Method, *, policy: _Policy, kind: _Kind, segment: int, statement: str | None
) -> _Method:
    """Time a method that sends a command of its own and reads the reply; it is shown as `statement`."""
    selects_database = original.__name__ == "select_db"

    @functools.wraps(original)
    def command(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = current.get()
        if recorder is None:
            return original(self, *args, **kwargs)
        link: _Link | None = self._reqpath_link or _link_of(self)
        if link is None or link.busy_with is not None:
            return original(self, *args, **kwargs)
        shown = None if policy.sql == "none" else statement
        if threading.get_ident() != recorder.owner:
            return _run_beside(original, self, args, kwargs, kind, shown)
        previous = recorder.switch(segment)
        start_ns = recorder.last_ns
        link.first_byte_ns = _NOT_YET
        link.busy_with = recorder
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            _end_operation(link, recorder, policy, previous, kind, start_ns, shown, error)
            raise
        if selects_database:
            link.namespace = _text_of(args[0] if args else kwargs.get("db"))
        _end_operation(link, recorder, policy, previous, kind, start_ns, shown)
        return result

    return command


def _end_operation(  # noqa: PLR0917 - keywords would double the price of the call
    link: _Link,
    recorder: RequestRecorder,
    policy: _Policy,
    previous: int,
    kind: _Kind,
    start_ns: int,
    statement: str | None,
    error: BaseException | None = None,
) -> None:
    """Go back to the segment `previous` and keep the operation: a command, or a query that failed."""
    recorder.switch(previous)
    link.busy_with = None
    try:
        end_ns = recorder.last_ns
        base_ns = recorder.base_ns
        first_byte_ns: int | None = link.first_byte_ns
        fetch_ns: int | None = None
        if first_byte_ns > _NOT_YET:  # type: ignore[operator]  # None from here on
            fetch_ns = end_ns - first_byte_ns  # type: ignore[operator]
            first_byte_ns -= base_ns  # type: ignore[operator]
        elif error is None or _is_from_server(error):
            # The server's error is one packet, too.
            first_byte_ns, fetch_ns = _bytes_of_one_packet(link, policy, end_ns - base_ns)
            if kind != "query":
                fetch_ns = None
        else:
            first_byte_ns = None
        link.request_ns = base_ns
        link.operation = Operation(
            kind,
            start_ns - base_ns,
            end_ns - base_ns,
            first_byte_ns,
            statement,
            error=None if error is None else _name_error(error),
            transport=link.transport,
            server_address=link.address,
            server_port=link.port,
            namespace=link.namespace,
            batch_size=link.batch_size,
            connection=link.number,
            fetch_ns=fetch_ns,
        )
        if link.traced:
            link.operation.app_span_id = instrumented.find_database_span_id()
        recorder.add_operation(link.operation)
    except Exception:
        note_fault("recording a database operation")


def _bytes_of_one_packet(link: _Link, policy: _Policy, end_ns: int) -> tuple[int | None, int | None]:
    """Return first byte and fetch of a reply without rows: it is one packet, and reading it is no fetching.

    None is not known: where it asked for a file, and where this PyMySQL does not show the first packet.
    """
    if link.first_byte_ns == _ASKED_FOR_FILE or not policy.sees_first_byte:
        return None, None
    return end_ns, 0


def _run_beside(  # noqa: PLR0917 - one call each from three hooks
    original: _Method,
    connection: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    kind: _Kind,
    statement: str | None,
) -> Any:
    """Run a method on another thread than the request's: an operation of it, in none of its segments."""
    recorder = current.get()
    if recorder is None or recorder.finished:
        return original(connection, *args, **kwargs)
    start_ns = recorder.offset_ns()
    try:
        result = original(connection, *args, **kwargs)
    except BaseException as error:
        _keep_beside(recorder, connection, kind, start_ns, statement, _name_error(error))
        raise
    _keep_beside(recorder, connection, kind, start_ns, statement, None)
    return result


def _keep_beside(  # noqa: PLR0917 - as above
    recorder: RequestRecorder,
    connection: Any,
    kind: _Kind,
    start_ns: int,
    statement: str | None,
    error: str | None,
) -> None:
    try:
        link = _link_of(connection)
        if link is None or recorder.finished:
            return
        recorder.add_operation(
            Operation(
                kind,
                start_ns,
                recorder.offset_ns(),
                statement=statement,
                error=error,
                transport=link.transport,
                server_address=link.address,
                server_port=link.port,
                namespace=link.namespace,
                concurrent=True,
                connection=link.number,
                app_span_id=instrumented.find_database_span_id() if link.traced else None,
            )
        )
    except Exception:
        note_fault("recording a database operation")


# --- the reply --------------------------------------------------------------------------------------------


def _hook_first_packet(original: _Method) -> _Method:
    """Enter `mysql.fetch` where a result set's first packet has been read and its columns come next."""

    @functools.wraps(original)
    def first_packet(self: Any) -> Any:
        try:
            link: _Link | None = self.connection._reqpath_link
            recorder: Any = None if link is None else link.busy_with
            if recorder is not None and recorder is not _OPENING:
                # A switch, as in `query`. Only the request's own thread is ever busy with a connection.
                link.first_byte_ns = now_ns = recorder.monotonic_ns()  # type: ignore[union-attr]  # as above
                recorder.marks += (FETCH, now_ns)
        except Exception:
            note_fault("the first packet of a reply")
        return original(self)

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


def _hook_row(original: _Method) -> _Method:
    """Time the reading of one row of an unbuffered result; its time belongs to the operation before."""

    @functools.wraps(original)
    def row(self: Any) -> Any:
        recorder = current.get()
        # Inside `fetchmany` and `fetchall` the time is counted there.
        if recorder is None or recorder.segment == FETCH:
            return original(self)
        link: _Link | None = getattr(self.connection, _LINK, None)
        if link is None or link.busy_with is not None or not recorder.is_own_thread():
            return original(self)
        previous = recorder.switch(FETCH)
        start_ns = recorder.last_ns
        try:
            values = original(self)
        except BaseException as error:
            recorder.switch(previous)
            _stretch(link, recorder, start_ns, error)
            raise
        recorder.switch(previous)
        if values is not None:
            link.rows += 1
        _stretch(link, recorder, start_ns)
        if values is None:
            _note_rows(link, recorder)
        return values

    return row


def _hook_reading(original: _Method, *, segment: int = FETCH, reads_rows: bool = False) -> _Method:
    """Time a method that reads or decodes more of a reply: its time belongs to the operation before.

    The method is a cursor's, a result's or the connection's own. `segment` QUERY is for one that first waits;
    `reads_rows` for one that returns rows of an unbuffered result.
    """

    @functools.wraps(original)
    def reading(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = current.get()
        if recorder is None:
            return original(self, *args, **kwargs)
        # A cursor and a result have the attribute, a connection has not; None is a closed or finished one.
        link: _Link | None = getattr(getattr(self, "connection", self), _LINK, None)
        if link is None or link.busy_with is _OPENING or not recorder.is_own_thread():
            return original(self, *args, **kwargs)
        previous = recorder.switch(segment)
        # Inside a command this is the rest of the one before; the command's own reply is still to come.
        outer = link.busy_with
        link.busy_with = recorder
        link.first_byte_ns = recorder.last_ns if segment == FETCH else _NOT_YET
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            recorder.switch(previous)
            link.busy_with = outer
            _stretch(link, recorder, link.first_byte_ns, error)
            link.first_byte_ns = _NOT_YET
            raise
        recorder.switch(previous)
        link.busy_with = outer
        _stretch(link, recorder, link.first_byte_ns)
        link.first_byte_ns = _NOT_YET
        if reads_rows:
            link.rows += len(result)
            if getattr(self._result, "unbuffered_active", None) is False:
                _note_rows(link, recorder)
        return result

    return reading


def _hook_dict_rows(original: _Method) -> _Method:
    """Count the making of dicts out of a buffered result's rows as part of its fetching."""
    timed = _hook_reading(original)

    @functools.wraps(original)
    def dict_rows(self: Any) -> Any:
        rows = getattr(getattr(self.connection, "_result", None), "rows", None)
        return original(self) if rows is None or len(rows) < _MANY_ROWS else timed(self)

    return dict_rows


def _stretch(
    link: _Link, recorder: RequestRecorder, fetch_start_ns: int, error: BaseException | None = None
) -> None:
    """Let the operation that was read from end at the recorder's latest switch.

    It was fetched since `fetch_start_ns`, unless that is `_NOT_YET` or `_ASKED_FOR_FILE`.
    """
    operation = link.operation
    if not _is_of(operation, link, recorder):
        return
    operation.end_ns = recorder.last_ns - recorder.base_ns
    if fetch_start_ns > _NOT_YET:
        operation.fetch_ns = (operation.fetch_ns or 0) + recorder.last_ns - fetch_start_ns
    if error is not None and operation.error is None:
        operation.error = _name_error(error)


def _note_rows(link: _Link, recorder: RequestRecorder) -> None:
    """Note the number of rows of an unbuffered result whose end was reached."""
    operation = link.operation
    if _is_of(operation, link, recorder) and operation.rows is None:
        operation.rows = link.rows


def _is_of(operation: Operation | None, link: _Link, recorder: RequestRecorder) -> TypeGuard[Operation]:
    """Tell whether a link's operation is of this request: a connection can outlive the one it was used in."""
    return operation is not None and link.request_ns == recorder.base_ns


# --- cursors ----------------------------------------------------------------------------------------------


def _hook_execute(original: _Method) -> _Method:
    """Hand the statement, before the values are put into it, to the `query` inside."""

    @functools.wraps(original)
    def execute(self: Any, query: Any, args: Any = None) -> Any:
        connection = self.connection
        if connection is None:
            return original(self, query, args)
        link: _Link | None = connection._reqpath_link
        if link is None and (current.get() is None or (link := _link_of(connection)) is None):
            return original(self, query, args)
        link.statement = query
        if link.batch_statement is not None and args is None:
            # `executemany` has put many sets of values into one INSERT.
            link.statement = link.batch_statement
            link.batch_size, link.batch_total = link.batch_total, None
        try:
            return original(self, query, args)
        finally:
            link.statement = None

    return execute


def _hook_executemany(original: _Method) -> _Method:
    """Hand statement and number of sets to the `execute` inside."""

    @functools.wraps(original)
    def executemany(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current.get() is None:
            return original(self, *args, **kwargs)
        link = _link_of(self.connection)
        if link is None:
            return original(self, *args, **kwargs)
        link.batch_statement = args[0] if args else kwargs.get("query")
        sets = args[1] if len(args) > 1 else kwargs.get("args")
        # A generator does not tell, and one set is no batch. Of several INSERTs the first has the number.
        size = len(sets) if isinstance(sets, (list, tuple)) else 0
        link.batch_total = size if size > 1 else None
        try:
            return original(self, *args, **kwargs)
        finally:
            link.batch_statement = link.batch_total = link.batch_size = None

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
            link.busy_with = None
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
        if link is None or link.busy_with is not _OPENING:
            # What was known is of the socket before.
            self.__dict__.pop(_LINK, None)
            link = None
        if recorder is None:
            return original(self, *args, **kwargs)
        if not recorder.is_own_thread():
            return _run_beside(original, self, args, kwargs, "connect", None)
        if link is None:
            previous, link = _begin_opening(self, recorder)
        else:
            previous = recorder.switch(CONNECT)
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
    previous = recorder.switch(CONNECT)
    link = _Link()
    link.busy_with = _OPENING
    link.monotonic_ns = recorder.monotonic_ns
    link.start_ns = recorder.last_ns
    setattr(connection, _LINK, link)
    return previous, link


def _keep_opening(
    connection: Any, link: _Link, recorder: RequestRecorder, policy: _Policy, error: BaseException | None
) -> None:
    link.busy_with = None
    try:
        _describe(connection, link)
        end_ns = recorder.last_ns
        operation = Operation(
            "connect",
            link.start_ns - recorder.base_ns,
            end_ns - recorder.base_ns,
            error=None if error is None else _name_error(error),
            transport=link.transport,
            server_address=link.address,
            server_port=link.port,
            namespace=link.namespace,
            connection=link.number,
        )
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
        recorder.add_operation(operation)
    except Exception:
        note_fault("recording a database connection")


def _hook_tls_context(original: _Method) -> _Method:
    @functools.wraps(original)
    def tls_context(self: Any, *args: Any, **kwargs: Any) -> Any:
        link: _Link | None = self.__dict__.get(_LINK)
        if link is None or link.busy_with is not _OPENING or link.monotonic_ns is None:
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


def _keep_text(connection: Any, policy: _Policy, sql: object) -> str | None:
    """Return what is kept of a statement, and remember it for the next time; never raises."""
    try:
        texts = policy.texts
        if policy.sql == "none":
            return None
        backslash_escapes = not getattr(connection, "server_status", 0) & _NO_BACKSLASH_ESCAPES
        text = keep_statement(
            sql,
            verbatim=policy.sql == "verbatim",
            encoding=connection.encoding,
            backslash_escapes=backslash_escapes,
        )
        if backslash_escapes and type(sql) is str and len(sql) <= MAX_CACHED:
            if len(texts) >= _MAX_TEXTS:
                texts.clear()
            texts[sql] = text
        return text
    except Exception:
        note_fault("reading a statement")
        return None


def _name_error(error: BaseException) -> str:
    """Return class and code, never the message: it may hold values."""
    code = error.args[0] if error.args else None
    name = type(error).__name__
    return f"{name}: {code}" if isinstance(code, int) else name


def _is_from_server(error: BaseException) -> bool:
    """Tell whether an error was the server's reply; the client's own have codes from 2000 to 2999."""
    code = error.args[0] if error.args else None
    return isinstance(code, int) and code >= 1000 and not 2000 <= code < 3000
