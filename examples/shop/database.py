"""One database connection per thread: opened when first needed, opened anew when it has gone stale."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any, TypedDict, cast

import pymysql
import pymysql.cursors
from flask import current_app

#: A connection that rested this long may have been closed by the server: ask before using it.
STALE_AFTER_S = 30.0

Row = dict[str, Any]


class Settings(TypedDict):
    """Where the database is: a socket, or a host and port."""

    unix_socket: str | None
    host: str
    port: int
    user: str
    password: str
    database: str


class _Thread(threading.local):
    connection: pymysql.connections.Connection[pymysql.cursors.DictCursor] | None = None
    pid = 0
    used_at = 0.0


_thread = _Thread()


def read_settings() -> Settings:
    """Read where the database is from the `SHOP_DATABASE_*` variables."""
    get = os.environ.get
    return Settings(
        unix_socket=get("SHOP_DATABASE_SOCKET") or None,
        host=get("SHOP_DATABASE_HOST", "127.0.0.1"),
        port=int(get("SHOP_DATABASE_PORT", "3306")),
        user=get("SHOP_DATABASE_USER", "root"),
        password=get("SHOP_DATABASE_PASSWORD", ""),
        database=get("SHOP_DATABASE_NAME", "shop"),
    )


def connect(
    settings: Settings, *, create: bool = False
) -> pymysql.connections.Connection[pymysql.cursors.DictCursor]:
    """Open a connection that commits by itself outside `begin()`; with `create`, to no database yet."""
    return pymysql.connect(
        unix_socket=settings["unix_socket"],
        host=settings["host"],
        port=settings["port"],
        user=settings["user"],
        password=settings["password"],
        database=None if create else settings["database"],
        autocommit=True,
        charset="utf8mb4",
        cursorclass=pymysql.cursors.DictCursor,
        # The database is on this machine; TLS would cost 20 ms for each connection.
        ssl_disabled=True,
    )


def get_connection() -> pymysql.connections.Connection[pymysql.cursors.DictCursor]:
    """Return this thread's connection."""
    now = time.monotonic()
    # What was opened before a fork is the parent's.
    if _thread.connection is None or _thread.pid != os.getpid():
        _thread.connection = connect(current_app.config["DATABASE"])
        _thread.pid = os.getpid()
    elif not _thread.connection.open or now - _thread.used_at > STALE_AFTER_S:
        _thread.connection.ping(reconnect=True)
    _thread.used_at = now
    return _thread.connection


def fetch_all(sql: str, parameters: Sequence[object] = ()) -> list[Row]:
    """Run a query and return all of its rows."""
    with get_connection().cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cast("Sequence[Row]", cursor.fetchall()))


def fetch_one(sql: str, parameters: Sequence[object] = ()) -> Row | None:
    """Run a query and return its first row, None when there is none."""
    with get_connection().cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchone()
