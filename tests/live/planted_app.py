"""An app that spends a known time in one tier, so that a test can look for it there."""

from __future__ import annotations

import mmap
import os
import sys
import threading
import time
from collections.abc import Iterator

import pymysql
from flask import Flask, Response, render_template_string, request

from reqpath import ReqPath

app = Flask(__name__)
ReqPath(app)

_thread = threading.local()


def _get_connection() -> pymysql.connections.Connection[pymysql.cursors.Cursor]:
    if not hasattr(_thread, "connection"):
        get = os.environ.__getitem__
        _thread.connection = pymysql.connect(
            unix_socket=get("PLANTED_DATABASE_SOCKET") or None,
            host=get("PLANTED_DATABASE_HOST"),
            port=int(get("PLANTED_DATABASE_PORT")),
            user=get("PLANTED_DATABASE_USER"),
            ssl_disabled=True,
        )
    connection: pymysql.connections.Connection[pymysql.cursors.Cursor] = _thread.connection
    return connection


def _get_seconds() -> float:
    return float(request.args["ms"]) / 1_000


def _burn(seconds_s: float) -> str:
    """Compute for so long, without giving up the GIL by itself."""
    end = time.perf_counter() + seconds_s
    while time.perf_counter() < end:
        pass
    return ""


app.jinja_env.globals["burn"] = _burn


def _open_marker() -> mmap.mmap:
    """Open the test's file of one byte; setting it, unlike a system call, does not give up the GIL."""
    with open(request.args["marker"], "r+b") as file:
        return mmap.mmap(file.fileno(), 1)


@app.get("/plain")
def plain() -> str:
    """Do nothing."""
    return "plain"


@app.get("/sleep")
def sleep() -> str:
    """Wait in the view."""
    if "marker" in request.args:
        _open_marker()[0] = 1
    time.sleep(_get_seconds())
    return "slept"


@app.get("/hold-gil")
def hold_gil() -> str:
    """Keep the GIL from every other thread of the process."""
    marker = _open_marker()
    before_s = sys.getswitchinterval()
    # Nobody who waits for the GIL asks for it before this many seconds.
    sys.setswitchinterval(60.0)
    try:
        # Once without another thread's old request for the GIL, which this one may still have to serve.
        time.sleep(0.02)
        marker[0] = 1
        _burn(_get_seconds())
    finally:
        sys.setswitchinterval(before_s)
    return "held"


@app.get("/sql-sleep")
def sql_sleep() -> str:
    """Wait in the database."""
    with _get_connection().cursor() as cursor:
        cursor.execute("SELECT SLEEP(%s)", (_get_seconds(),))
    return "slept"


@app.get("/template")
def template() -> str:
    """Compute in a template."""
    return render_template_string("{{ burn(seconds) }}rendered", seconds=_get_seconds())


@app.get("/large")
def large() -> Response:
    """Answer with so many MiB, in one piece or streamed."""
    mebibytes = int(request.args["mib"])
    # nginx's own header: whether it takes the response from us as fast as it can.
    headers = {"X-Accel-Buffering": request.args["buffering"]}
    if "streamed" not in request.args:
        return Response(b"x" * (mebibytes << 20), headers=headers)

    def stream() -> Iterator[bytes]:
        for _ in range(mebibytes * 16):
            yield b"x" * (1 << 16)

    return Response(stream(), headers=headers)


@app.post("/upload")
def upload() -> str:
    """Read the body."""
    return str(len(request.get_data()))
