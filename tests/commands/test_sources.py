"""A report is the same from a spool's paths and from the spans that were made of them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from rich.console import Console

from reqpath.analyse.breakdown import BreakdownBuilder
from reqpath.collect.join import read_paths
from reqpath.collect.spans import build_spans
from reqpath.commands import report, trace
from reqpath.commands.sources import open_source
from reqpath.errors import ConfigurationError, ReqPathError
from reqpath.render.text import render_report
from reqpath.spool import SpoolReader
from reqpath.traces.counts import TraceCounts
from tests.commands.test_report import write_paths
from tests.factories import make_shop_paths
from tests.traces.spans import as_sdk_spans
from tests.traces.test_otlp import encode_json


def run(command: Any, *arguments: str) -> str:
    return CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False).output


@pytest.fixture
def spool(tmp_path: Path) -> str:
    return write_paths(tmp_path / "spool", make_shop_paths(200))


@pytest.fixture
def traces(tmp_path: Path, spool: str) -> str:
    """A file of the spans of the spool's paths, as an exporter would have written it."""
    path = tmp_path / "traces.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for request in read_paths(SpoolReader(spool)):
            json.dump(encode_json(as_sdk_spans(build_spans(request, service_name="shop"))), file)
            file.write("\n")
    return str(path)


#: What a spool knows of itself, and traces of themselves.
_OF_THE_SOURCE = {
    *("lost_records", "evicted_records", "evicted_files", "torn_bytes", "foreign_files", "traces"),
}


def test_the_report_from_spans_is_the_report_from_the_spool(spool: str, traces: str) -> None:
    of_spool = json.loads(run(report.command, spool, "--json"))
    of_spans = json.loads(run(report.command, "--from", "otlp", traces, "--json"))
    assert of_spans["traces"]["traces"] == of_spool["requests"] == 200
    assert (of_spans["traces"]["plain"], of_spans["traces"]["unreadable"]) == (0, 0)
    assert of_spans["lost_records"] is None
    assert {key: value for key, value in of_spans.items() if key not in _OF_THE_SOURCE} == {
        key: value for key, value in of_spool.items() if key not in _OF_THE_SOURCE
    }


def test_the_page_says_what_was_read_and_how_to_see_one_request(traces: str) -> None:
    page = run(report.command, "--from", "otlp", traces, "--slowest", "1")
    assert "read from 200 traces" in " ".join(page.split())
    assert f"reqpath trace slowest --from otlp {traces}" in page.replace("\n", "")


def test_a_pipe_is_read_and_what_was_torn_in_it_is_told(traces: str) -> None:
    piped = Path(traces).read_bytes()[:-200] + b'\n{"resourceMetrics": []}\n'
    done = subprocess.run(
        [sys.executable, "-m", "reqpath.cli", "report", "--from", "otlp", "-"],
        input=piped,
        stdout=subprocess.PIPE,
        check=True,
    )
    page = " ".join(done.stdout.decode().split())
    assert page.startswith("199 requests")
    assert "unreadable 1 line" in page
    # It can't be read again.
    assert "reqpath trace slowest" not in page


def test_what_jaeger_did_not_tell_is_told() -> None:
    builder = BreakdownBuilder()
    builder.extend(make_shop_paths(5))
    console = Console(width=80, record=True, file=io.StringIO())
    render_report(builder.build(traces=TraceCounts(traces=7, without_request=2, cut_windows=3)), console)
    page = " ".join(console.export_text().split())
    assert "no request in 2 traces: left out" in page
    assert "incomplete 3 ms: Jaeger has more traces of them than it tells of at once" in page


def test_one_request_is_drawn_from_its_spans_as_from_its_record(spool: str, traces: str) -> None:
    assert run(trace.command, "slowest", "--from", "otlp", traces) == run(trace.command, "slowest", spool)


def test_requests_of_another_service_are_left_out(traces: str) -> None:
    other = ("--from", "otlp", traces, "--service", "other")
    assert json.loads(run(report.command, *other, "--json"))["traces"]["without_request"] == 200
    assert "They hold no SERVER span of HTTP of the service other." in " ".join(
        run(report.command, *other).split()
    )


def test_spans_of_plain_opentelemetry_show_what_they_know_and_name_what_not(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "shop"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("opentelemetry.instrumentation.flask")
    request: dict[str, str | int] = {
        "http.request.method": "GET",
        "http.route": "/items",
        "http.response.status_code": 200,
    }
    query = {"db.system.name": "mysql", "db.query.text": "SELECT 1"}
    with (
        tracer.start_as_current_span("GET /items", kind=SpanKind.SERVER, attributes=request),
        tracer.start_as_current_span("SELECT", kind=SpanKind.CLIENT, attributes=query),
    ):
        pass
    provider.shutdown()
    path = tmp_path / "plain.jsonl"
    path.write_text(json.dumps(encode_json(exporter.get_finished_spans())), encoding="utf-8")
    document = json.loads(run(report.command, "--from", "otlp", str(path), "--json"))
    assert document["traces"]["plain"] == document["requests"] == 1
    known = {segment["name"] for segment in document["segments"] if segment["known"]}
    assert known == {"wsgi.app", "mysql.query"}
    assert set(document["missing_stamps"]) >= {"nginx_start", "accept", "nginx_end"}
    assert document["statements"][0]["statement"] == "SELECT 1"
    assert "without reqpath 1 request" in " ".join(run(report.command, "--from", "otlp", str(path)).split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("otlp", ()), "takes files"),
        (("jaeger", ()), "takes one address"),
        (("jaeger", ("http://a", "http://b")), "takes one address"),
        (("jaeger", ("localhost",)), "takes one such as"),
        (("spool", ("a", "b")), "a spool is one directory"),
    ],
)
def test_places_that_do_not_fit_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        open_source(*arguments)


def test_options_that_do_not_go_together_are_refused(spool: str) -> None:
    with pytest.raises(ConfigurationError, match="--service, go with --from otlp"):
        open_source("spool", (spool,), service="shop")
    with pytest.raises(ConfigurationError, match="--lookback goes with --from jaeger"):
        open_source("otlp", ("a",), lookback="1h")
    with pytest.raises(ConfigurationError, match="--lookback is 'x'"):
        open_source("jaeger", ("http://localhost:1",), lookback="x")
    with pytest.raises(ReqPathError, match="can't read the traces"):
        run(report.command, "--from", "otlp", f"{spool}/none")
