"""What plain OpenTelemetry instrumentation sends of an app: `plain_app.py ENDPOINT`, then some requests."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pymysql
from flask import Flask
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.pymysql import PyMySQLInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

REQUESTS = 5


def main() -> None:
    """Send the spans of some requests, each with two queries."""
    provider = TracerProvider(resource=Resource.create({"service.name": "plain"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=sys.argv[1])))
    app = Flask(__name__)
    instrument_app: Callable[..., None] = FlaskInstrumentor().instrument_app
    instrument_app(app, tracer_provider=provider)
    PyMySQLInstrumentor().instrument(tracer_provider=provider)

    @app.get("/items/<int:item>")
    def show(item: int) -> str:
        socket = os.environ["PLAIN_SOCKET"]
        with pymysql.connect(unix_socket=socket, user="root") as connection, connection.cursor() as cursor:
            cursor.execute("SELECT %s", (item,))
            cursor.execute("SELECT 'x'")
        return f"{item}\n"

    client = app.test_client()
    for item in range(REQUESTS):
        assert client.get(f"/items/{item}").status_code == 200
    provider.shutdown()


if __name__ == "__main__":
    main()
