"""The database: one table, and a connection that is the thread's or the request's."""

from __future__ import annotations

import itertools
import os
import threading
from typing import Any

import pymysql
from flask import current_app, g
from pymysql.connections import Connection
from pymysql.cursors import Cursor

ROWS = 10_000


#: Each thread's connection. uWSGI forks before the first request, and threads live as long as their worker.
_threads = threading.local()
_ids = itertools.count(1)


def read_settings() -> dict[str, Any]:
    """Return the arguments for `pymysql.connect`."""
    get = os.environ.get
    return {
        "unix_socket": get("WORKLOADS_DATABASE_SOCKET") or None,
        "host": get("WORKLOADS_DATABASE_HOST") or "127.0.0.1",
        "port": int(get("WORKLOADS_DATABASE_PORT") or 3306),
        "user": get("WORKLOADS_DATABASE_USER", "root"),
        "password": get("WORKLOADS_DATABASE_PASSWORD", ""),
        "database": get("WORKLOADS_DATABASE_NAME", "workloads"),
        "autocommit": True,
        # The database is on this machine; TLS would cost 20 ms for each connection.
        "ssl_disabled": True,
    }


def get_connection() -> Connection[Cursor]:
    """Return the connection of this thread, or of this request; opened when it is first needed."""
    holder: Any = _threads if current_app.config["CONNECTION"] == "pooled" else g
    connection: Connection[Cursor] | None = getattr(holder, "connection", None)
    if connection is None:
        connection = holder.connection = pymysql.connect(**current_app.config["DATABASE"])
    return connection


def close_connection(_error: BaseException | None) -> None:
    """Close the request's connection, if it has one of its own."""
    connection: Connection[Cursor] | None = g.pop("connection", None)
    if connection is not None:
        connection.close()


def query_point() -> Any:
    """Read one row by its key, the next one each time."""
    with get_connection().cursor() as cursor:
        cursor.execute("SELECT name, price FROM workload_item WHERE id = %s", (next(_ids) % ROWS,))
        return cursor.fetchone()
