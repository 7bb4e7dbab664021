"""An app with spans of its own, sent by its own SDK: the request's span is their parent.

`TRACED_INSTRUMENTED=yes` adds OpenTelemetry's instrumentation, whose spans are then the request's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pymysql
from flask import Flask
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.pymysql import PyMySQLInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

from reqpath import ReqPath

app = Flask(__name__)
ReqPath(app, service_name="traced")

provider = TracerProvider(resource=Resource.create({"service.name": "traced"}))
exporter = OTLPSpanExporter(endpoint=os.environ["TRACED_ENDPOINT"])
# A batch's thread is lost when uWSGI forks, unless it loads the app in each worker.
processor = BatchSpanProcessor if os.environ["TRACED_PROCESSOR"] == "batch" else SimpleSpanProcessor
provider.add_span_processor(processor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("the app's own")
if os.environ["TRACED_INSTRUMENTED"] == "yes":
    instrument_app: Callable[..., None] = FlaskInstrumentor().instrument_app
    instrument_app(app)
    PyMySQLInstrumentor().instrument()


@app.get("/work")
def work() -> str:
    """Do two things, one within the other."""
    with tracer.start_as_current_span("outer"):
        time.sleep(0.002)
        with (
            tracer.start_as_current_span("inner", attributes={"shop.items": 3}),
            connect().cursor() as cursor,
        ):
            cursor.execute("SELECT 1")
    return "done\n"


def connect() -> pymysql.connections.Connection[pymysql.cursors.Cursor]:
    """Connect to the database that the variables name."""
    return pymysql.connect(
        unix_socket=os.environ["TRACED_SOCKET"] or None,
        host=os.environ["TRACED_HOST"],
        port=int(os.environ["TRACED_PORT"]),
        user=os.environ["TRACED_USER"],
        ssl_disabled=True,
    )
