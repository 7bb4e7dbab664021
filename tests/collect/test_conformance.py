"""reqpath's span of a request beside the one that opentelemetry-instrumentation-flask makes of it.

The same requests go through both; what is not the same is in `DIFFERENCES` with its reason, and so in
docs/opentelemetry.md. A difference that is not there fails, and so does an entry that is none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from reqpath import ReqPath
from reqpath import conventions as names
from reqpath.collect.nginx import parse_line
from reqpath.collect.spans import build_spans
from reqpath.path import RequestPath
from reqpath.record import NginxRecord, Record, WorkerRecord
from reqpath.settings import Settings
from reqpath.traces.span import Span
from reqpath.worker.pymysql import install
from tests.collect import conformance_app
from tests.collect.conformance_app import REQUESTS, SPAN_ID, STATEMENTS, TRACE_ID, Request, Shop
from tests.collect.lines import build_line
from tests.factories import make_path, make_writer_info
from tests.traces.spans import read_back
from tests.worker.recorders import read
from tests.worker.test_pymysql import _request

ReadRecords = Callable[[str], list[Record]]
#: One aspect of a span, by its name, and its value.
Aspects = dict[str, Any]

ROOT = Path(__file__).parents[2]


class Difference(NamedTuple):
    """One row of the table."""

    #: The aspect, as `find_aspects` has it.
    aspect: str
    what: str
    theirs: str
    ours: str
    why: str
    #: Of the requests in which it shows; empty: in all.
    requests: tuple[str, ...] = ()


DIFFERENCES = (
    Difference(
        "name",
        "the span's name, where no route matched",
        "method and path",
        "the method",
        "the conventions: a path is no route, and there is no bound to how many there are",
        ("no route", "a method that the route has not"),
    ),
    Difference(
        "holds_body",
        "the span's end, where the response is streamed",
        "before the body",
        "when the body is closed",
        "the request lasts as long as its body",
        ("a streamed response",),
    ),
    Difference(
        "error.type",
        "`error.type`, after an exception",
        "the status",
        "the exception's class",
        "the conventions put the exception first",
        ("an exception",),
    ),
    Difference(
        "exception: exception.escaped",
        "`exception.escaped`, on the event",
        "`False`",
        "none; `reqpath.unhandled`",
        "the conventions have dropped it; ours tells what left the app from what the app recorded",
        ("an exception",),
    ),
    Difference(
        "network.protocol.version",
        "`network.protocol.version` of HTTP/2",
        "`2.0`",
        "`2`",
        "the conventions' own value",
        ("HTTP/2",),
    ),
    Difference(
        "server.address",
        "`server.address`, where the Host header has a port",
        "with the port",
        "without it",
        "that is `server.port`",
        ("another port and HTTPS",),
    ),
    Difference(
        "server.port",
        "`server.port`, where the Host header has none",
        "the port that the server listens on",
        "none",
        "the client asked for its scheme's default; behind a proxy the server's own port is another",
        tuple(request.name for request in REQUESTS if ":8443" not in request.base_url),
    ),
    Difference(
        "client.port",
        "`client.port`",
        "the client's port",
        "none",
        "the conventions have it only for those who ask for it",
    ),
    Difference(
        "url.query",
        "`url.query`",
        "the query string",
        "none; with `query_string` it is kept with the path",
        "it may hold secrets",
        ("a query string",),
    ),
    Difference(
        "http.request.body.size",
        "`http.request.body.size`",
        "none",
        "bytes, by Content-Length",
        "the worker has it at no cost",
        ("POST",),
    ),
    Difference(
        "http.response.body.size",
        "`http.response.body.size`",
        "none",
        "bytes that the app gave",
        "the worker has it at no cost",
    ),
    Difference(
        "reqpath",
        "`reqpath.…`",
        "none",
        "times and stamps, see [spans.md](spans.md)",
        "what reqpath is for",
    ),
)


STATEMENT_DIFFERENCES = (
    Difference(
        "name",
        "the span's name",
        "the statement's first word, as it is written",
        "that in capitals, and the database",
        "the conventions: operation and namespace",
    ),
    Difference(
        "db.query.text",
        "`db.query.text`, where values are written into the statement",
        "with the values",
        "placeholders",
        "they may be secrets; `sql = verbatim` keeps them",
        ("a statement with values in it",),
    ),
    Difference(
        "db.operation.name",
        "`db.operation.name`",
        "none",
        "the first word, in capitals",
        "the conventions recommend it",
    ),
    Difference(
        "db.operation.batch.size",
        "`db.operation.batch.size`",
        "none",
        "how many sets of values",
        "the conventions recommend it",
        ("many sets of values",),
    ),
    Difference(
        "db.response.returned_rows",
        "`db.response.returned_rows`",
        "none",
        "rows that came back",
        "the worker has it at no cost",
        ("a statement with placeholders",),
    ),
    Difference(
        "server.address",
        "`server.address`, over a Unix socket",
        "`localhost`",
        "the socket's path",
        "the conventions: the socket's name",
    ),
    Difference(
        "server.port",
        "`server.port`, over a Unix socket",
        "the port that is not used",
        "none",
        "a socket has none",
    ),
    Difference(
        "network.transport",
        "`network.transport`",
        "none",
        "`unix` or `tcp`",
        "the two differ in latency",
    ),
    Difference(
        "error.type",
        "`error.type`",
        "none",
        "the exception's class",
        "the conventions require it",
        ("a statement that the server refuses",),
    ),
    Difference(
        "db.response.status_code",
        "`db.response.status_code`",
        "none",
        "the server's code",
        "the conventions recommend it",
        ("a statement that the server refuses",),
    ),
    Difference(
        "description",
        "the status' description",
        "class, code and the server's text",
        "none",
        "the server's text has values in it: `Duplicate entry 'secret'`",
        ("a statement that the server refuses",),
    ),
    *(
        Difference(
            aspect,
            "the event `exception`",
            "with message and stack",
            "none",
            "as above; where the exception leaves the app, the request's span has it",
            ("a statement that the server refuses",),
        )
        for aspect in (
            "events",
            "exception: exception.type",
            "exception: exception.message",
            "exception: exception.stacktrace",
            "exception: exception.escaped",
        )
    ),
    Difference(
        "reqpath",
        "`reqpath.…`",
        "none",
        "first byte, fetching and more, see [spans.md](spans.md)",
        "what reqpath is for",
    ),
)


def render_differences(differences: tuple[Difference, ...], instrumentation: str) -> str:
    """Return a table as it is in docs/opentelemetry.md."""
    rows = [f"| {row.what} | {row.theirs} | {row.ours} | {row.why} |" for row in differences]
    # Several aspects can be one row.
    rows = list(dict.fromkeys(rows))
    return "\n".join(
        [
            f"| what | opentelemetry-instrumentation-{instrumentation} | reqpath | why |",
            "|---|---|---|---|",
            *rows,
        ]
    )


@pytest.fixture(scope="module")
def theirs() -> dict[str, list[Aspects]]:
    """The aspects of OpenTelemetry's spans, in the order of the requests and of the statements."""
    result = subprocess.run(
        [sys.executable, "-m", conformance_app.__name__],
        cwd=ROOT,
        env={**os.environ, "OTEL_SEMCONV_STABILITY_OPT_IN": "http,database"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return {key: [find_aspects(span) for span in spans] for key, spans in json.loads(result.stdout).items()}


@pytest.fixture
def ours(spool: str, read_records: ReadRecords) -> list[Aspects]:
    """The aspects of reqpath's spans, in the order of the requests."""
    shop = Shop()
    ReqPath(shop.app, spool=spool)
    lines, body_ends_ns = [], []
    for request in REQUESTS:
        shop.ask(request)
        body_ends_ns.append(shop.body_end_ns)
        lines.append(log(request))
    shop.app.extensions["reqpath"]._writer.close()
    aspects = []
    for record, line, body_end_ns in zip(read_records(spool), lines, body_ends_ns, strict=True):
        assert isinstance(record, WorkerRecord)
        line.status = record.status
        spans = read_back(build_spans(RequestPath(record, make_writer_info(), line)))
        (span,) = (span for span in spans if span.attributes[names.ROLE] == names.REQUEST)
        aspects.append(find_aspects(describe(span, body_end_ns)))
    return aspects


def describe(span: Span, body_end_ns: int = 0) -> dict[str, Any]:
    """Return what `conformance_app` prints of a span."""
    return {
        "name": span.name,
        "kind": span.kind,
        "status": span.status,
        "description": span.status_description,
        "attributes": span.attributes,
        "events": [[event.name, event.attributes] for event in span.events],
        "holds_body": span.end_ns >= body_end_ns,
    }


def log(request: Request) -> NginxRecord:
    """Return nginx's line of a request that has just ended."""
    environ = request.build_environ()
    record = parse_line(
        build_line(
            trace=TRACE_ID,
            span=SPAN_ID,
            end=f"{time.time():.6f}",
            start="",
            passed="",
            method=request.method,
            host="shop.example",
            path=environ["PATH_INFO"],
            protocol=request.protocol,
            scheme=environ["wsgi.url_scheme"],
            client=environ["REMOTE_ADDR"],
            agent=environ["HTTP_USER_AGENT"],
        )
    )
    assert isinstance(record, NginxRecord)
    return record


def find_aspects(span: dict[str, Any]) -> Aspects:
    """Take a span apart; its times are not compared, but whether it holds the body."""
    aspects: Aspects = {key: span[key] for key in ("name", "kind", "status", "description", "holds_body")}
    aspects["events"] = [name for name, _attributes in span["events"]]
    aspects["reqpath"] = any(map(is_own, span["attributes"]))
    aspects |= {key: value for key, value in span["attributes"].items() if not is_own(key)}
    for name, attributes in span["events"]:
        for key, value in attributes.items():
            if key == "exception.stacktrace":
                # The frames around the app are each one's own.
                aspects[f"{name}: {key}"] = value.splitlines()[-1]
            elif not is_own(key):
                aspects[f"{name}: {key}"] = value
    return aspects


def is_own(key: str) -> bool:
    return key.startswith(names.PREFIX)


def find_listed(differences: tuple[Difference, ...], name: str) -> set[str]:
    return {row.aspect for row in differences if not row.requests or name in row.requests}


def find_differences(theirs: Aspects, ours: Aspects) -> set[str]:
    return {key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)}


@pytest.mark.parametrize("number", range(len(REQUESTS)), ids=lambda number: REQUESTS[number].name)
def test_a_span_differs_from_opentelemetrys_only_as_listed(
    theirs: dict[str, list[Aspects]], ours: list[Aspects], number: int
) -> None:
    found = find_differences(theirs["requests"][number], ours[number])
    assert found == find_listed(DIFFERENCES, REQUESTS[number].name)


@pytest.mark.parametrize("number", range(len(STATEMENTS)), ids=lambda number: STATEMENTS[number].name)
def test_a_statements_span_differs_from_opentelemetrys_only_as_listed(
    theirs: dict[str, list[Aspects]], number: int
) -> None:
    assert install(Settings())
    statement = STATEMENTS[number]
    connection = statement.connect()
    with _request() as recorder:
        statement.run(connection)
    # PyMySQL puts all sets of values into one INSERT.
    (operation,) = read(recorder).operations
    spans = read_back(build_spans(make_path(operations=[operation])))
    (span,) = (span for span in spans if span.attributes[names.ROLE] == names.OPERATION)
    found = find_differences(theirs["statements"][number], find_aspects(describe(span)))
    assert found == find_listed(STATEMENT_DIFFERENCES, statement.name)


@pytest.mark.parametrize(
    ("differences", "instrumentation"), [(DIFFERENCES, "flask"), (STATEMENT_DIFFERENCES, "pymysql")]
)
def test_the_list_is_that_of_the_documentation(
    differences: tuple[Difference, ...], instrumentation: str
) -> None:
    text = (ROOT / "docs" / "opentelemetry.md").read_text(encoding="utf-8")
    assert render_differences(differences, instrumentation) in text
