"""`opentelemetry-instrument uwsgi`: an app that says nothing of either has reqpath around its SDK's spans."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from reqpath.record import Record, WorkerRecord
from reqpath.servers.deployment import find_program
from reqpath.servers.process import find_free_port, is_listening, start_process, wait_until

pytestmark = pytest.mark.live

_START_S = 30.0
TRACE_ID, CALLER = "ab" * 16, "cd" * 8
MODES = {
    "preforking": ["--processes", "2"],
    "lazy apps": ["--processes", "2", "--lazy-apps", "--enable-threads"],
    "threads": ["--processes", "1", "--threads", "3"],
}
REQUESTS = 6

ReadRecords = Callable[[str], list[Record]]


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize(("mode", "instrumented"), [*((mode, True) for mode in MODES), ("preforking", False)])
def test_the_command_brings_both_and_there_is_one_span_of_flask(
    tmp_path: Path, spool: str, read_records: ReadRecords, mode: str, instrumented: bool
) -> None:
    command = Path(sys.executable).with_name("opentelemetry-instrument")
    if not command.exists():
        pytest.skip(f"no {command}: pip install opentelemetry-distro")
    port, log = find_free_port(), tmp_path / "uwsgi.log"
    # In ms. A thread that waits for the GIL when the master forks is given it, and is not there in the
    # worker, which waits for it for ever: uWSGI's own, with any thread and without reqpath. So it wakes well
    # after that.
    export_delay = "50" if "--lazy-apps" in MODES[mode] else "5000"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | {
        "REQPATH_SPOOL": spool,
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_BSP_SCHEDULE_DELAY": export_delay,
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "" if instrumented else "flask",
        "PATH": f"{command.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    arguments = ["--http-socket", f"127.0.0.1:{port}", "--module", "bare_app:app", "--master", "--need-app"]
    with start_process(
        [str(command), find_program("uwsgi", "the live tests need it"), *arguments, *MODES[mode]],
        str(log),
        lambda: is_listening(("127.0.0.1", port)),
        _START_S,
        "uWSGI",
        stop_signal=signal.SIGQUIT,
        environment=environment,
    ) as uwsgi:
        told = {ask(port) for _ in range(REQUESTS)}
        if instrumented:
            wait_until(lambda: len(read_spans(log)) == REQUESTS, _START_S, uwsgi)
        # A client has its answer before the worker closes the body and writes the record.
        wait_until(lambda: len(read_records(spool)) == REQUESTS, _START_S, uwsgi)
    assert len(told) == REQUESTS
    records = read_records(spool)
    assert len(records) == REQUESTS
    spans = {span["context"]["span_id"].removeprefix("0x"): span for span in read_spans(log)}
    assert set(spans) == (told if instrumented else set())
    for record in records:
        assert isinstance(record, WorkerRecord)
        assert record.route == "/items/<int:number>"
        if not instrumented:
            assert record.span_id in told
            continue
        assert record.app_span is not None
        span = spans[record.app_span.span_id]
        assert (record.trace_id, record.parent_id) == (TRACE_ID, CALLER)
        assert span["kind"] == "SpanKind.SERVER"
        assert span["context"]["trace_id"] == f"0x{TRACE_ID}"
        assert span["parent_id"] == f"0x{record.span_id}"
    assert "Traceback" not in log.read_text(encoding="utf-8")


def ask(port: int) -> str:
    """Return what the app answers to a request with a trace."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_START_S)) as connection:
        connection.request("GET", "/items/7", headers={"traceparent": f"00-{TRACE_ID}-{CALLER}-01"})
        return connection.getresponse().read().decode()


def read_spans(log: Path) -> list[dict[str, Any]]:
    """Return the spans that the SDK's console exporter has written among uWSGI's lines; whole ones only."""
    text = log.read_text(encoding="utf-8")
    decoder, spans = json.JSONDecoder(), []
    at = text.find('{\n    "name"')
    while at >= 0:
        try:
            span, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            break
        spans.append(span)
        at = text.find('{\n    "name"', end)
    return spans
