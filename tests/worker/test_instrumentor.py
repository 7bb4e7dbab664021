"""The entry point: every Flask app made while it is in force has reqpath, as its own code would put it in.

In a process of its own each, since instrumentations hook classes for the whole process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from reqpath.record import Record, WorkerRecord

ReadRecords = Callable[[str], list[Record]]

APP = """
from flask import Flask

def make(**arguments):
    app = Flask("shop")
    @app.get("/items/<int:number>")
    def item(number):
        return {"number": number}
    return app

def get(app, path="/items/7"):
    from werkzeug.test import Client
    traceparent = f"00-{'ab' * 16}-{'ab' * 8}-01"
    response = Client(app).get(path, environ_overrides={"REQPATH_TRACEPARENT": traceparent})
    response.close()
    assert response.status_code == 200
"""


def run(code: str, spool: str, *command: str, **environment: str) -> str:
    """Run `code` after `APP` in a fresh interpreter; return what it prints."""
    result = subprocess.run(
        [*command, sys.executable, "-c", APP + code],
        env={**os.environ, "REQPATH_SPOOL": spool, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


@pytest.fixture
def instrument() -> str:
    """Return the command; a module of its own is what it runs."""
    path = Path(sys.executable).with_name("opentelemetry-instrument")
    if not path.exists():
        pytest.skip(f"no {path}")
    return str(path)


def test_the_entry_point_is_reqpaths_instrumentor() -> None:
    from reqpath.worker.instrumentor import ReqPathInstrumentor

    (point,) = entry_points(group="opentelemetry_instrumentor", name="reqpath")
    assert point.load() is ReqPathInstrumentor
    (needed,) = ReqPathInstrumentor().instrumentation_dependencies()
    assert needed.startswith("flask ")


def test_apps_made_while_it_is_in_force_are_recorded(spool: str, read_records: ReadRecords) -> None:
    code = """
from reqpath.worker.instrumentor import ReqPathInstrumentor
before = make()
ReqPathInstrumentor().instrument(service_name="ours")
during = make()
get(before); get(during)
ReqPathInstrumentor().uninstrument()
after = make()
get(after); get(during)
print("reqpath" in before.extensions, "reqpath" in during.extensions, "reqpath" in after.extensions)
print(Flask.__init__.__qualname__)
"""
    assert run(code, spool) == "False True False\nFlask.__init__\n"
    (record,) = read_records(spool)
    assert isinstance(record, WorkerRecord)
    assert record.route == "/items/<int:number>"


def test_the_apps_own_arguments_hold(spool: str, tmp_path: Path, read_records: ReadRecords) -> None:
    own = str(tmp_path / "own")
    code = f"""
from reqpath import ReqPath
from reqpath.worker.instrumentor import ReqPathInstrumentor
ReqPathInstrumentor().instrument()
app = make()
ReqPath(app, spool={own!r}, query_string=True)
ReqPath(app, spool="/nowhere")
get(app, "/items/7?a=b")
"""
    run(code, spool)
    (record,) = read_records(own)
    assert isinstance(record, WorkerRecord)
    assert record.path == "/items/7?a=b"
    assert read_records(spool) == []


def test_the_apps_own_word_that_it_wants_none_holds(spool: str, read_records: ReadRecords) -> None:
    code = """
from reqpath import ReqPath
from reqpath.worker.instrumentor import ReqPathInstrumentor
ReqPathInstrumentor().instrument()
app = make()
ReqPath(app, enabled=False)
get(app)
"""
    run(code, spool)
    assert read_records(spool) == []


def test_a_wrong_argument_raises() -> None:
    code = """
from reqpath.worker.instrumentor import ReqPathInstrumentor
try:
    ReqPathInstrumentor().instrument(spoool="x")
except Exception as error:
    print(type(error).__name__)
"""
    assert run(code, "") == "ConfigurationError\n"


def test_without_opentelemetrys_instrumentation_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["opentelemetry.instrumentation.instrumentor"] = None
try:
    import reqpath.worker.instrumentor
except ModuleNotFoundError as error:
    print(error)
"""
    assert "pip install 'reqpath[opentelemetry]'" in run(code, "")


def spans_of(output: str) -> list[dict[str, Any]]:
    """Return the spans that the SDK's console exporter printed."""
    import json

    spans, decoder, at = [], json.JSONDecoder(), output.find("{")
    while at >= 0:
        span, at = decoder.raw_decode(output, at)
        spans.append(span)
        at = output.find("{", at)
    return spans


def test_the_command_puts_it_into_an_app_that_has_no_line_of_it(
    instrument: str, spool: str, read_records: ReadRecords
) -> None:
    output = run(
        "get(make())",
        spool,
        instrument,
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="flask",
        OTEL_TRACES_EXPORTER="console",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )
    assert spans_of(output) == []
    (record,) = read_records(spool)
    assert isinstance(record, WorkerRecord)
    assert (record.trace_id, record.app_span) == ("ab" * 16, None)


def test_the_command_with_the_instrumentation_of_flask_as_well_makes_one_span(
    instrument: str, spool: str, read_records: ReadRecords
) -> None:
    output = run(
        "get(make())",
        spool,
        instrument,
        OTEL_TRACES_EXPORTER="console",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )
    (span,) = spans_of(output)
    (record,) = read_records(spool)
    assert isinstance(record, WorkerRecord)
    assert span["kind"] == "SpanKind.SERVER"
    assert span["parent_id"] == f"0x{record.span_id}"
    assert record.app_span is not None
    assert span["context"]["span_id"] == f"0x{record.app_span.span_id}"
    assert record.trace_id == record.app_span.trace_id == "ab" * 16
