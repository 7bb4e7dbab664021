"""The app of `overhead.py`: one plain route and one with two point queries, under three instrumentations.

`overhead_app:nothing`, `:reqpath` and `:opentelemetry` are factories; one process uses one of them, since
both instrumentations patch classes for the whole process.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import pymysql
from flask import Flask

_connections = threading.local()


def _connection() -> pymysql.Connection[Any]:
    """Return this thread's connection, opened at its first request."""
    connection: pymysql.Connection[Any] | None = getattr(_connections, "connection", None)
    if connection is None:
        connection = _connections.connection = pymysql.connect(
            unix_socket=os.environ["OVERHEAD_DATABASE_SOCKET"],
            user=os.environ["OVERHEAD_DATABASE_USER"],
            database=os.environ["OVERHEAD_DATABASE_NAME"],
            autocommit=True,
        )
    return connection


def nothing() -> Flask:
    """Build the app without any instrumentation."""
    app = Flask("overhead")

    @app.get("/plain/<int:number>")
    def plain(number: int) -> str:
        return f"item {number}"

    @app.get("/queries/<int:number>")
    def queries(number: int) -> dict[str, Any]:
        with _connection().cursor() as cursor:
            cursor.execute("SELECT name, price FROM overhead WHERE id = %s", (number,))
            item = cursor.fetchone()
            cursor.execute("SELECT name, price FROM overhead WHERE id = %s", (number + 1,))
            following = cursor.fetchone()
        return {"item": item, "next": following}

    return app


def reqpath() -> Flask:
    """Build the app with reqpath."""
    from reqpath import ReqPath

    app = nothing()
    ReqPath(app)
    return app


def opentelemetry() -> Flask:
    """Build the app with OpenTelemetry's own instrumentation: all requests recorded, exported in batches."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.instrumentation.pymysql import PyMySQLInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=os.environ["OVERHEAD_OTLP_ENDPOINT"]))
    )
    trace.set_tracer_provider(provider)
    PyMySQLInstrumentor().instrument()
    app = nothing()
    FlaskInstrumentor().instrument_app(app)  # type: ignore[no-untyped-call]  # it has no annotations
    return app
