"""A small app for tests of uWSGI's life cycle: its answers say which process, worker and core gave them.

`app` is a Flask app; `raw` and the others are plain WSGI, for what Flask never does. uWSGI loads them with
`module = lifecycle_app:NAME`.
"""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import uwsgi
from flask import Flask, Response, request, send_file

from reqpath import ReqPath
from reqpath.wsgi import RequestMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

app = Flask("lifecycle")


def own_hook() -> None:
    """Append a byte to a file for each finished request, as an app's own hook might."""
    with open(os.environ["HOOK_FILE"], "ab") as file:
        file.write(b".")


def own_postfork() -> None:
    """Append a byte to a file in each forked worker, as an app's own hook might."""
    with open(os.environ["FORK_FILE"], "ab") as file:
        file.write(b".")


_hooks = os.environ.get("HOOKS", "")
if _hooks == "before":
    uwsgi.after_req_hook = own_hook
    uwsgi.post_fork_hook = own_postfork
if _hooks == "decorated":
    import uwsgidecorators

    uwsgidecorators.postfork(own_postfork)

ReqPath(app)

if _hooks == "after":
    uwsgi.after_req_hook = own_hook
    uwsgi.post_fork_hook = own_postfork
if _hooks == "decorated after":
    import uwsgidecorators

    uwsgidecorators.postfork(own_postfork)


def _who() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "worker": uwsgi.worker_id(),
        "core": request.environ.get("uwsgi.core"),
    }


@app.get("/r/<int:number>")
def answer(number: int) -> dict[str, Any]:
    return _who()


@app.get("/hold/<int:number>")
def hold(number: int) -> dict[str, Any]:
    """Answer once the test has opened and closed the FIFO's writing end."""
    with open(os.environ["HOLD_FIFO"], "rb") as fifo:
        fifo.read()
    return _who()


@app.get("/forever/<int:number>")
def forever(number: int) -> str:
    threading.Event().wait()
    raise AssertionError


@app.get("/meet/<int:number>")
def meet(number: int) -> dict[str, Any]:
    """Answer once so many requests are here at the same time."""
    _barrier().wait(timeout=20)
    return _who()


@app.get("/meet-also/<int:number>")
def meet_also(number: int) -> dict[str, Any]:
    return meet(number)


@app.get("/stream/<int:number>")
def stream(number: int) -> Response:
    def chunks() -> Iterator[bytes]:
        for _ in range(4):
            _barrier().wait(timeout=20)
            yield b"chunk\n"

    return Response(chunks(), mimetype="text/plain")


@app.get("/file/<int:number>")
def file(number: int) -> Response:
    return send_file(os.environ["LARGE_FILE"], mimetype="application/octet-stream")


@app.get("/fork/<int:number>")
def fork(number: int) -> dict[str, Any]:
    """Have a forked child handle a request of its own, then answer."""
    child = os.fork()
    if child == 0:
        try:
            app.test_client().get(f"/r/{number + 1}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return _who()


@functools.cache
def _barrier() -> threading.Barrier:
    # Made when it is first needed: gevent's patches come between the app's loading and its first request.
    return threading.Barrier(int(os.environ["PARTIES"]))


def _start(start_response: StartResponse) -> Callable[[bytes], object]:
    return start_response("200 OK", [("Content-Type", "text/plain")])


def _raw(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    kind = environ["PATH_INFO"].split("/")[1]
    write = _start(start_response)
    if kind == "bytes":
        return cast("Iterable[bytes]", b"plain bytes")  # as uWSGI takes it, unless it is told to be strict
    if kind == "generator":
        return (chunk for chunk in (b"made ", b"later"))
    if kind == "write":
        write(b"written ")
        return [b"and returned"]
    if kind == "memory-file":
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](io.BytesIO(b"in memory"), 4)
        return wrapped
    return [b"a list"]


raw = RequestMiddleware(_raw, service_name="raw")
