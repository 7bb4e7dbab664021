"""A Flask app with OpenTelemetry's own instrumentation, as a process of its own: prints a request's spans.

`OTEL_SEMCONV_STABILITY_OPT_IN` says which conventions they follow, and is read once in a process.
"""

from __future__ import annotations

import sys
from typing import Any

import flask
import msgspec
from opentelemetry.instrumentation.dbapi import DatabaseApiIntegration
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.traces.spans import read_back


class Cursor:
    """What the instrumentation asks of a driver's cursor."""

    rowcount = 1

    def execute(self, statement: str, arguments: tuple[Any, ...]) -> int:
        return 1


class Connection:
    """What the instrumentation asks of a driver's connection."""

    host, port, user, database = "db1", 3306, "shop", "shop"

    def cursor(self) -> Cursor:
        return Cursor()


def main() -> None:
    """Serve one request and print its spans."""
    provider = TracerProvider(resource=Resource({"service.name": "shop", "host.name": "web1"}))
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = flask.Flask("shop")
    instrumentor: Any = FlaskInstrumentor()  # its methods have no types
    instrumentor.instrument_app(app, tracer_provider=provider)
    integration = DatabaseApiIntegration(
        "opentelemetry.instrumentation.pymysql",
        "mysql",
        {"database": "database", "port": "port", "host": "host", "user": "user"},
        tracer_provider=provider,
    )
    connection: Any = integration.wrapped_connection(Connection, (), {})

    @app.get("/items/<int:number>")
    def show(number: int) -> str:
        connection.cursor().execute("SELECT name FROM items WHERE id = %s", (number,))
        return "a kettle"

    app.test_client().get("/items/7?secret=1")
    sys.stdout.buffer.write(msgspec.json.encode(read_back(exporter.get_finished_spans())))


if __name__ == "__main__":
    main()
