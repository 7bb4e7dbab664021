"""Plants a known time in each query, so that a benchmark can be checked against what it has to find.

`WORKLOADS_PLANTED_NS` passes between the arrival of the database's reply and its reading. It is passed awake:
a processor that slept is slower for some 100 µs, in all that the request does next. So it takes a processor
from all other requests, and they would be slower by more than what was planted. Therefore each set-up takes
as much of it, `WORKLOADS_PLANTED_MOST_NS` a query: what is not in the query follows after the response, for
which no client waits. Two set-ups then differ by the time in the query alone.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pymysql.connections import Connection

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def plant() -> Callable[[WSGIApplication], WSGIApplication] | None:
    """Plant what the environment says, if anything; reqpath's hooks have to come after it, around it.

    Return what then has to be put around the application, outside of reqpath.
    """
    planted = os.environ.get("WORKLOADS_PLANTED_NS")
    if planted is None:
        return None
    planted_ns = int(planted)
    rest_ns = int(os.environ["WORKLOADS_PLANTED_MOST_NS"]) - planted_ns
    request = _Request()
    read_query_result = Connection._read_query_result  # type: ignore[attr-defined]  # not in its stubs

    def read_late(connection: Any, unbuffered: bool = False) -> Any:
        # What passes while the reply is on its way would take no time more.
        select.select([connection._sock], [], [])
        _stay_awake(planted_ns)
        request.rest_ns += rest_ns
        return read_query_result(connection, unbuffered)

    Connection._read_query_result = read_late  # type: ignore[attr-defined]

    def put_around(application: WSGIApplication) -> WSGIApplication:
        def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            request.rest_ns = 0
            return _Body(application(environ, start_response), request)

        return call

    return put_around


class _Request(threading.local):
    """The request that a thread is at."""

    #: What is left to be spent after its response.
    rest_ns = 0


class _Body:
    """A response's body, after which the rest is spent."""

    def __init__(self, body: Iterable[bytes], request: _Request) -> None:
        self._body = body
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        if hasattr(self._body, "close"):
            self._body.close()
        _stay_awake(self._request.rest_ns)


def _stay_awake(duration_ns: int) -> None:
    end_ns = time.perf_counter_ns() + duration_ns
    while time.perf_counter_ns() < end_ns:
        pass
