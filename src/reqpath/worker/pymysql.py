"""PyMySQL's time: connect, query, fetch, commit, by hooks on its classes.

On the classes, so that `pymysql.connect`, `pymysql.Connection`, subclasses and pools are all seen, whenever
they were imported. Outside a request the hooks call through. What the layer above gets of one `SELECT`::

    mysql.query   sent ──► first packet of the reply     Connection.query, then MySQLResult._get_descriptions
    mysql.fetch            first packet ──► decoded      … until Connection.query returns

and one `raw.RawOperation`. Hooks on private names are optional: where a release of PyMySQL has none of that
name, the time stays in the segment of the public one, and first byte or phases are unknown.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import socket
import threading
from collections.abc import Callable
from time import monotonic_ns
from types import ModuleType
from typing import Any, Final, Literal

from reqpath.raw import (
    ASKED_FOR_FILE,
    NOT_SEEN,
    ONE_PACKET,
    READ,
    STATEMENT_ITEMS,
    Link,
    RawOperation,
    find_first_byte,
)
from reqpath.record import Transport
from reqpath.settings import Settings, Sql
from reqpath.worker import instrumented
from reqpath.worker.guard import note_fault
from reqpath.worker.recorder import COMMIT, CONNECT, FETCH, QUERY, RequestRecorder, get_recorder
from reqpath.worker.sql import MAX_CACHED, bound, keep_statement

_Method = Callable[..., Any]
_Kind = Literal["connect", "query", "commit", "rollback", "ping"]

#: The attribute of a connection that holds its `_Link`, and that of the class which holds the `_Policy`.
_LINK: Final = "_reqpath_link"
_POLICY: Final = "_reqpath_policy"
#: Making the dicts of fewer rows takes less than to time it (3 µs), so it stays where the call was made.
_MANY_ROWS: Final = 10
#: SERVER_STATUS_NO_BACKSLASH_ESCAPES. Source: MySQL's include/mysql_com.h.
_NO_BACKSLASH_ESCAPES: Final = 512
#: How many statements' texts are at hand; with more of them, all are looked up anew.
_MAX_TEXTS: Final = 1024
#: Of the statements of a request, after which they are looked at: see `RequestRecorder.fold`.
MAX_STATEMENTS: Final = 128 * STATEMENT_ITEMS
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
            policy.texts.clear()
    except Exception:
        note_fault("hooking PyMySQL")
        return False
    return True


def sees_first_packets() -> bool:
    """Tell whether this release of PyMySQL shows when the first packet of a reply has been read."""
    from pymysql.connections import Connection

    policy: _Policy = getattr(Connection, _POLICY)
    return policy.sees_first_packets


def _install(connections: ModuleType, cursors: ModuleType, policy: _Policy) -> None:
    connection, cursor = connections.Connection, cursors.Cursor
    result = getattr(connections, "MySQLResult", None)
    unbuffered_cursor = getattr(cursors, "SSCursor", None)
    # Raises for a PyMySQL without these, before anything is hooked.
    query, connect, execute = connection.query, connection.connect, cursor.execute

    policy.sees_first_packets = _replace(result, "_get_descriptions", _hook_first_packet)
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

    __slots__ = ("sees_first_packets", "sees_phases", "sql", "texts")

    def __init__(self, sql: Sql) -> None:
        self.sql = sql
        self.sees_first_packets = False
        self.sees_phases = False
        #: What is kept of the statements seen, by what `execute` was given; of one setting of `sql`.
        self.texts: dict[object, str | None] = {}


class _Link:
    """What the hooks know of one connection; it is kept on it. Instants are monotonic ns, 0 is not yet."""

    __slots__ = (
        "batch_size",
        "batch_statement",
        "batch_total",
        "counted",
        "described",
        "greeted_ns",
        "handshaken_ns",
        "marks",
        "number",
        "rows",
        "socket_ns",
        "start_ns",
        "statement",
        "tls_ns",
        "traced",
        "unusual",
    )

    def __init__(self) -> None:
        self.number = _number_connection()
        #: The app's own instrumentation may make spans of what is executed.
        self.traced = instrumented.traces_databases()
        self.described: Link = (None, None, None, None, self.number)
        #: Those of the request whose operation is under way, and with it all that it calls.
        self.marks: list[int] | _Sink | None = None
        #: What `Cursor.execute` was given, for the `Connection.query` inside it, and how many sets it holds.
        self.statement: Any = None
        self.batch_size: int | None = None
        #: What `Cursor.executemany` was given, for the `execute` inside it.
        self.batch_statement: Any = None
        self.batch_total: int | None = None
        #: Whose rows are counted, and how many there were.
        self.counted: RawOperation | None = None
        self.rows = 0
        #: More is to be noted of what is executed than of most.
        self.unusual = self.traced
        # Of the opening.
        self.start_ns = 0
        self.tls_ns = 0
        self.socket_ns = 0
        self.greeted_ns = 0
        self.handshaken_ns = 0


class _Sink:
    """Stands for the marks while a connection is opened: what runs on it is part of that."""

    def append(self, more: int) -> None:
        pass


_SINK: Final = _Sink()


# --- commands ---------------------------------------------------------------------------------------------


def _hook_query(original: _Method, policy: _Policy) -> _Method:
    """Time `Connection.query`, by which all statements go."""
    texts = policy.texts

    # The hook that runs many times in a request: what it needs is written out, since a call costs as much as
    # what is in it.
    @functools.wraps(original)
    def query(self: Any, sql: Any, unbuffered: Any = False) -> Any:
        recorder = get_recorder()
        try:
            # Nothing of this name is on the class, or the interpreter could not look it up as fast as it can.
            link = self._reqpath_link
        except AttributeError:
            link = None
        if recorder is None or link is None or link.marks is not None:
            link = _claim_link(self, recorder)
            if recorder is None or link is None:
                return original(self, sql, unbuffered)
        try:
            statement = texts.get(link.statement)
            if statement is None or self.server_status & _NO_BACKSLASH_ESCAPES:
                statement = _keep_text(self, link, policy, sql)
        except Exception:
            # A statement that is no text, say.
            statement = _keep_text(self, link, policy, sql)
        link.statement = None
        if threading.get_ident() != recorder.owner:
            return _run_beside(original, self, (sql, unbuffered), {}, "query", statement)
        try:
            link.marks = marks = recorder.marks
            previous = marks[-2]
            start_ns = monotonic_ns()
            marks.append(QUERY)
            marks.append(start_ns)
        except Exception:
            note_fault("the start of a statement")
            link.marks = None
            return original(self, sql, unbuffered)
        try:
            result = original(self, sql, unbuffered)
        except BaseException as error:
            _end_operation(link, recorder, previous, "query", start_ns, statement, error)
            raise
        link.marks = None
        try:
            end_ns = monotonic_ns()
            marks.append(previous)
            marks.append(end_ns)
            if link.unusual:
                _keep_unusual(link, recorder, start_ns, end_ns, statement, result)
            else:
                statements = recorder.statements
                statements += (start_ns, end_ns, statement, result, link.described)
                if len(statements) > MAX_STATEMENTS:
                    recorder.fold()
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
        recorder = get_recorder()
        if recorder is None:
            return original(self, *args, **kwargs)
        link = _claim_link(self, recorder)
        if link is None:
            return original(self, *args, **kwargs)
        shown = None if policy.sql == "none" else statement
        if threading.get_ident() != recorder.owner:
            return _run_beside(original, self, args, kwargs, kind, shown)
        previous = recorder.switch(segment)
        start_ns = recorder.last_ns
        link.marks = recorder.marks
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            _end_operation(link, recorder, previous, kind, start_ns, shown, error)
            raise
        if selects_database:
            transport, address, port, _, number = link.described
            link.described = transport, address, port, _text_of(args[0] if args else kwargs.get("db")), number
        _end_operation(link, recorder, previous, kind, start_ns, shown)
        return result

    return command


def _end_operation(  # noqa: PLR0917 - keywords would double the price of the call
    link: _Link,
    recorder: RequestRecorder,
    previous: int,
    kind: _Kind,
    start_ns: int,
    statement: str | None,
    error: BaseException | None = None,
) -> None:
    """Go back to the segment `previous` and keep the operation: a command, or a query that failed."""
    recorder.switch(previous)
    link.marks = None
    try:
        recorder.add_operation(
            _build_operation(link, recorder, kind, start_ns, recorder.last_ns, statement, error)
        )
    except Exception:
        note_fault("recording a database operation")


def _keep_unusual(  # noqa: PLR0917 - keywords would double the price of the call
    link: _Link, recorder: RequestRecorder, start_ns: int, end_ns: int, statement: str | None, result: Any
) -> None:
    """Keep a query of which there is more to note than of most."""
    operation = _build_operation(link, recorder, "query", start_ns, end_ns, statement, None)
    operation.rows = result if type(result) is int and result >= 0 else None
    recorder.add_operation(operation)


def _build_operation(  # noqa: PLR0917 - as above
    link: _Link,
    recorder: RequestRecorder,
    kind: _Kind,
    start_ns: int,
    end_ns: int,
    statement: str | None,
    error: BaseException | None,
) -> RawOperation:
    marks = recorder.marks
    first_byte_ns = find_first_byte(marks[::2], marks[1::2], start_ns, recorder.unmeasured)
    if error is not None and first_byte_ns == ONE_PACKET and not _is_from_server(error):
        first_byte_ns = NOT_SEEN
    return RawOperation(
        start_ns,
        first_byte_ns,
        end_ns,
        statement,
        None,
        link.described,
        kind,
        link.batch_size,
        None if error is None else _name_error(error),
        app_span_id=instrumented.find_database_span_id() if link.traced else None,
    )


def _run_beside(  # noqa: PLR0917 - one call each from three hooks
    original: _Method,
    connection: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    kind: _Kind,
    statement: str | None,
) -> Any:
    """Run a method on another thread than the request's: an operation of it, in none of its segments."""
    recorder = get_recorder()
    if recorder is None or recorder.finished:
        return original(connection, *args, **kwargs)
    start_ns = monotonic_ns()
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
            RawOperation(
                start_ns,
                NOT_SEEN,
                monotonic_ns(),
                statement,
                None,
                link.described,
                kind,
                error=error,
                concurrent=True,
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
            marks = self.connection._reqpath_link.marks
            if marks is not None:
                # A switch, as in `query`. Only the request's own thread is ever busy with a connection.
                now_ns = monotonic_ns()
                marks.append(FETCH)
                marks.append(now_ns)
        except AttributeError:
            # A connection that was made before the hooks, or is closed.
            pass
        except Exception:
            note_fault("the first packet of a reply")
        return original(self)

    return first_packet


def _hook_file_request(original: _Method) -> _Method:
    """Note that the reply asks for a file (LOAD DATA LOCAL)."""

    @functools.wraps(original)
    def file_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            marks = self.connection._reqpath_link.marks
            if marks is not None:
                now_ns = monotonic_ns()
                marks.append(ASKED_FOR_FILE)
                marks.append(now_ns)
        except AttributeError:
            # A connection that was made before the hooks, or is closed.
            pass
        except Exception:
            note_fault("a reply that asks for a file")
        return original(self, *args, **kwargs)

    return file_request


def _hook_row(original: _Method) -> _Method:
    """Time the reading of one row of an unbuffered result; its time belongs to the operation before."""

    @functools.wraps(original)
    def row(self: Any) -> Any:
        recorder = get_recorder()
        # Inside `fetchmany` and `fetchall` the time is counted there.
        if recorder is None or recorder.segment == FETCH:
            return original(self)
        link = getattr(self.connection, _LINK, None)
        if not isinstance(link, _Link) or link.marks is not None or not recorder.is_own_thread():
            return original(self)
        previous = recorder.switch(READ)
        start_ns = recorder.last_ns
        try:
            values = original(self)
        except BaseException as error:
            recorder.switch(previous)
            _stretch(link, recorder, start_ns, error)
            raise
        recorder.switch(previous)
        operation = _stretch(link, recorder, start_ns)
        if operation is not None:
            _count_rows(link, operation, 0 if values is None else 1, are_all=values is None)
        return values

    return row


def _hook_reading(original: _Method, *, segment: int = FETCH, reads_rows: bool = False) -> _Method:
    """Time a method that reads or decodes more of a reply: its time belongs to the operation before.

    The method is a cursor's, a result's or the connection's own. `segment` QUERY is for one that first waits;
    `reads_rows` for one that returns rows of an unbuffered result.
    """

    @functools.wraps(original)
    def reading(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = get_recorder()
        if recorder is None:
            return original(self, *args, **kwargs)
        # A cursor and a result have the attribute, a connection has not; None is a closed or finished one.
        link = getattr(getattr(self, "connection", self), _LINK, None)
        if not isinstance(link, _Link) or link.marks is _SINK or not recorder.is_own_thread():
            return original(self, *args, **kwargs)
        marks = recorder.marks
        previous = recorder.switch(READ if segment == FETCH else segment)
        start_ns = recorder.last_ns if segment == FETCH else None
        at = len(marks)
        # Inside a command this is the rest of the one before; the command's own reply is still to come.
        outer, link.marks = link.marks, marks
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            link.marks = outer
            start_ns = start_ns or _first_fetch_ns(marks, at)
            recorder.switch(previous)
            _stretch(link, recorder, start_ns, error)
            raise
        link.marks = outer
        start_ns = start_ns or _first_fetch_ns(marks, at)
        recorder.switch(previous)
        operation = _stretch(link, recorder, start_ns)
        if reads_rows and operation is not None:
            are_all = getattr(self._result, "unbuffered_active", None) is False
            _count_rows(link, operation, len(result), are_all=are_all)
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


def _first_fetch_ns(marks: list[int], at: int) -> int | None:
    """Return when the first packet of a further result was there; None where there was none."""
    codes = marks[at::2]
    return marks[at + 1 + 2 * codes.index(FETCH)] if FETCH in codes else None


def _stretch(
    link: _Link, recorder: RequestRecorder, fetch_start_ns: int | None, error: BaseException | None = None
) -> RawOperation | None:
    """Let the operation that was read from end at the recorder's latest switch, and return it.

    It was fetched since `fetch_start_ns`. None: it is not of this request, which a connection can outlive.
    """
    operation = recorder.take_latest(link.described)
    if operation is None:
        return None
    if operation.fetch_ns is None:
        # Until here the end told it.
        if operation.first_byte_ns > 0:
            operation.fetch_ns = operation.end_ns - operation.first_byte_ns
        elif operation.first_byte_ns == ONE_PACKET:
            operation.first_byte_ns, operation.fetch_ns = operation.end_ns, 0
    operation.end_ns = recorder.last_ns
    if fetch_start_ns is not None:
        operation.fetch_ns = (operation.fetch_ns or 0) + recorder.last_ns - fetch_start_ns
    if error is not None and operation.error is None:
        operation.error = _name_error(error)
    return operation


def _count_rows(link: _Link, operation: RawOperation, rows: int, *, are_all: bool) -> None:
    """Count rows that were read of an unbuffered result, and note their number when its end was reached."""
    if link.counted is not operation:
        link.counted, link.rows = operation, 0
    link.rows += rows
    if are_all:
        operation.rows = link.rows


# --- cursors ----------------------------------------------------------------------------------------------


def _hook_execute(original: _Method) -> _Method:
    """Hand the statement, before the values are put into it, to the `query` inside."""

    @functools.wraps(original)
    def execute(self: Any, query: Any, args: Any = None) -> Any:
        try:
            link = self.connection._reqpath_link
            link.statement = query
        except AttributeError:
            # A closed cursor's connection, or one without a link yet.
            link = None if get_recorder() is None else _link_of(self.connection)
            if link is None:
                return original(self, query, args)
            link.statement = query
        if link.batch_statement is not None and args is None:
            # `executemany` has put many sets of values into one INSERT.
            link.statement = link.batch_statement
            link.batch_size, link.batch_total = link.batch_total, None
            link.unusual = True
        try:
            return original(self, query, args)
        except BaseException:
            # Perhaps not even sent, and so not taken by `query`.
            link.statement = None
            raise

    return execute


def _hook_executemany(original: _Method) -> _Method:
    """Hand statement and number of sets to the `execute` inside."""

    @functools.wraps(original)
    def executemany(self: Any, *args: Any, **kwargs: Any) -> Any:
        if get_recorder() is None:
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
            link.unusual = link.traced

    return executemany


# --- opening ----------------------------------------------------------------------------------------------


def _hook_init(original: _Method) -> _Method:
    """Begin the opening where the connection is made: its TLS context is made before `connect`."""

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        recorder = get_recorder()
        if recorder is None or not recorder.is_own_thread():
            return original(self, *args, **kwargs)  # type: ignore[no-any-return]  # whatever the driver returns
        previous, link = _begin_opening(self, recorder)
        try:
            return original(self, *args, **kwargs)  # type: ignore[no-any-return]
        finally:
            recorder.switch(previous)
            link.marks = None
            if link.socket_ns == 0:
                # To be connected later, by an opening of its own.
                self.__dict__.pop(_LINK, None)

    return init


def _hook_connect(original: _Method, policy: _Policy) -> _Method:
    """Record the opening of a connection, be it the first or a further one of the same object."""

    @functools.wraps(original)
    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = get_recorder()
        link: _Link | None = self.__dict__.get(_LINK)
        if link is None or link.marks is not _SINK:
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
    link.marks = _SINK
    link.start_ns = recorder.last_ns
    setattr(connection, _LINK, link)
    return previous, link


def _keep_opening(
    connection: Any, link: _Link, recorder: RequestRecorder, policy: _Policy, error: BaseException | None
) -> None:
    link.marks = None
    try:
        _describe(connection, link)
        end_ns = recorder.last_ns
        operation = RawOperation(
            link.start_ns,
            NOT_SEEN,
            end_ns,
            None,
            None,
            link.described,
            "connect",
            error=None if error is None else _name_error(error),
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
        if link is None or link.marks is not _SINK:
            return original(self, *args, **kwargs)
        start_ns = monotonic_ns()
        try:
            return original(self, *args, **kwargs)
        finally:
            link.tls_ns += monotonic_ns() - start_ns

    return tls_context


def _hook_handshake_start(original: _Method) -> _Method:
    @functools.wraps(original)
    def handshake_start(self: Any, *args: Any, **kwargs: Any) -> Any:
        link: _Link | None = self.__dict__.get(_LINK)
        if link is not None:
            link.greeted_ns = monotonic_ns()
        return original(self, *args, **kwargs)

    return handshake_start


def _hook_handshake_end(original: _Method) -> _Method:
    @functools.wraps(original)
    def handshake_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        link: _Link | None = self.__dict__.get(_LINK)
        if link is not None:
            link.handshaken_ns = monotonic_ns()
        return result

    return handshake_end


# --- helpers ----------------------------------------------------------------------------------------------


def _claim_link(connection: Any, recorder: RequestRecorder | None) -> _Link | None:
    """Return a connection's link for a command; None outside of a request, and within another command."""
    link = getattr(connection, _LINK, None)
    if isinstance(link, _Link):
        # It is of no use to a later command.
        if recorder is None or link.marks is not None:
            link.statement = None
            return None
        return link
    return None if recorder is None else _link_of(connection)


def _link_of(connection: Any) -> _Link | None:
    """Return a connection's link; None without a connection, or where none can be kept."""
    link = getattr(connection, _LINK, None)
    if isinstance(link, _Link) or connection is None:
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
    transport: Transport | None = None
    address = port = None
    if family == socket.AF_UNIX:
        transport, address = "unix", _text_of(connection.unix_socket)
    elif family in (socket.AF_INET, socket.AF_INET6):
        transport, address, port = "tcp", _text_of(connection.host), connection.port
    link.described = transport, address, port, _text_of(connection.db), link.number


def _text_of(value: object) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return bound(value) if isinstance(value, str) and value else None


def _keep_text(connection: Any, link: _Link, policy: _Policy, sql: object) -> str | None:
    """Return what is kept of a statement, and remember it for the next time; never raises."""
    try:
        texts = policy.texts
        if policy.sql == "none":
            return None
        if link.statement is not None and policy.sql != "verbatim":
            sql = link.statement
        backslash_escapes = not getattr(connection, "server_status", 0) & _NO_BACKSLASH_ESCAPES
        text = keep_statement(
            sql,
            verbatim=policy.sql == "verbatim",
            encoding=connection.encoding,
            backslash_escapes=backslash_escapes,
        )
        if backslash_escapes and policy.sql == "placeholders" and type(sql) is str and len(sql) <= MAX_CACHED:
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
