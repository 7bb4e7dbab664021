"""The requests and statements by which reqpath's spans are compared with OpenTelemetry's.

Run as a program it prints, as JSON, the spans that OpenTelemetry's instrumentations of Flask and of PyMySQL
make of them, with the stable conventions; in a process of its own, since they decide on them once for all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pymysql
from flask import Flask, Response, abort
from opentelemetry import trace
from werkzeug.test import EnvironBuilder, run_wsgi_app

from tests.worker.test_pymysql import _ERROR, _TWO_ROWS, _Replay

TRACE_ID = "ab" * 16
SPAN_ID = "ab" * 8


@dataclass(frozen=True)
class Request:
    """One request, as nginx hands it to the app."""

    name: str
    target: str = "/items/7"
    method: str = "GET"
    base_url: str = "http://shop.example"
    protocol: str = "HTTP/1.1"
    data: bytes | None = None

    def build_environ(self) -> dict[str, Any]:
        # Empty without a body, as nginx's own uwsgi_params have it.
        length: dict[str, Any] = {} if self.data else {"CONTENT_LENGTH": ""}
        builder = EnvironBuilder(
            self.target,
            self.base_url,
            method=self.method,
            headers=[("User-Agent", "probe/1.0")],
            data=self.data,
            environ_overrides={
                "SERVER_PROTOCOL": self.protocol,
                **length,
                "REMOTE_ADDR": "203.0.113.9",
                "REMOTE_PORT": "50123",
                "REQPATH_TRACEPARENT": f"00-{TRACE_ID}-{SPAN_ID}-01",
                "HTTP_TRACEPARENT": f"00-{TRACE_ID}-{SPAN_ID}-01",
            },
        )
        try:
            return builder.get_environ()
        finally:
            builder.close()


REQUESTS = (
    Request("a route"),
    Request("a query string", "/items/7?token=secret"),
    Request("HEAD", method="HEAD"),
    Request("POST", method="POST", data=b"12345"),
    Request("a method that there is not", method="BREW"),
    Request("no route", "/nothing/7"),
    Request("a method that the route has not", method="DELETE"),
    Request("an exception", "/fail"),
    Request("an error that the view gives", "/refuse"),
    Request("an exception that the app handles", "/handled"),
    Request("a streamed response", "/stream"),
    Request("another port and HTTPS", base_url="https://shop.example:8443"),
    Request("HTTP/2", protocol="HTTP/2.0"),
    Request("what the app sets itself", "/sets"),
)


class Shop:
    """The app, and when its streamed body was done."""

    def __init__(self) -> None:
        self.body_end_ns = 0
        self.app = app = Flask("shop")
        # One of its own: a logger that is found by its name would be silent in every later test.
        app.logger = logging.Logger("unheard", logging.CRITICAL + 1)
        app.add_url_rule("/items/<int:number>", view_func=self._item, methods=["GET", "POST"])
        app.add_url_rule("/fail", view_func=self._fail)
        app.add_url_rule("/refuse", view_func=self._refuse)
        app.add_url_rule("/handled", view_func=self._handled)
        app.add_url_rule("/stream", view_func=self._stream)
        app.add_url_rule("/sets", view_func=self._sets)
        app.register_error_handler(LookupError, lambda _error: ("sorry", 400))

    def ask(self, request: Request) -> None:
        """Send a request and read all of its answer."""
        chunks, _status, _headers = run_wsgi_app(self.app, request.build_environ())
        for _chunk in chunks:
            pass
        close = getattr(chunks, "close", None)
        if close is not None:
            close()

    def _item(self, number: int) -> str:
        return f"item {number}"

    def _fail(self) -> str:
        raise ValueError("no such thing")

    def _refuse(self) -> str:
        abort(503)

    def _handled(self) -> str:
        raise LookupError("handled")

    def _stream(self) -> Response:
        def chunks() -> Iterator[str]:
            yield "a"
            time.sleep(0.002)
            self.body_end_ns = time.time_ns()

        return Response(chunks())

    def _sets(self) -> str:
        span = trace.get_current_span()
        span.set_attribute("shop.customer", 7)
        span.add_event("packed", {"shop.boxes": 2})
        span.set_status(trace.StatusCode.ERROR, "out of boxes")
        return "sets"


@dataclass(frozen=True)
class Statement:
    """One call of the driver."""

    name: str
    sql: str = "SELECT a FROM t WHERE b = %s"
    values: Any = ("secret",)
    many: bool = False
    fails: bool = False

    def run(self, connection: Any) -> None:
        cursor = connection.cursor()
        with contextlib.suppress(pymysql.err.IntegrityError):
            (cursor.executemany if self.many else cursor.execute)(self.sql, self.values)

    def connect(self) -> Any:
        """Return a connection that has the answer already."""
        return _Replay(_ERROR if self.fails else _TWO_ROWS).connected(pymysql)


STATEMENTS = (
    Statement("a statement with placeholders"),
    Statement("a statement with values in it", "update t set a = 'secret'", None),
    Statement("many sets of values", "INSERT INTO t VALUES (%s)", [(1,), (2,)], many=True),
    Statement("a statement that the server refuses", fails=True),
)


def _print_spans() -> None:
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.instrumentation.pymysql import PyMySQLInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    shop = Shop()
    FlaskInstrumentor.instrument_app(shop.app, tracer_provider=provider)  # type: ignore[no-untyped-call]

    def take() -> dict[str, Any]:
        (span,) = memory.get_finished_spans()
        memory.clear()
        assert span.end_time is not None
        return {
            "name": span.name,
            "kind": span.kind.name.lower(),
            "status": span.status.status_code.name,
            "description": span.status.description,
            "attributes": dict(span.attributes or {}),
            "events": [[event.name, dict(event.attributes or {})] for event in span.events],
            "holds_body": span.end_time >= shop.body_end_ns,
        }

    requests, statements = [], []
    for request in REQUESTS:
        shop.ask(request)
        requests.append(take())
    for statement in STATEMENTS:
        statement.run(
            PyMySQLInstrumentor.instrument_connection(  # type: ignore[no-untyped-call]
                statement.connect(), tracer_provider=provider
            )
        )
        statements.append(take())
    json.dump({"requests": requests, "statements": statements}, sys.stdout)


if __name__ == "__main__":
    _print_spans()
