"""`reqpath collect` says where it listens, what it did, and why it can't."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from reqpath.collect.checkpoint import hold_spool
from reqpath.collect.receiver import DatagramSource
from reqpath.commands.collect import command
from reqpath.configuration import Listen
from reqpath.errors import ConfigurationError, MissingExtraError, SpoolError
from reqpath.record import Record
from reqpath.servers.process import find_free_port
from tests.collect.backend import Backend, Reply, start_backend
from tests.collect.lines import build_line, build_numbered_line
from tests.collect.spools import open_spool, write_paths
from tests.factories import make_path


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no variable of the machine's decide."""
    for name in list(os.environ):
        if name.startswith(("REQPATH_", "OTEL_")):
            monkeypatch.delenv(name)


@pytest.fixture
def log(tmp_path: Path) -> str:
    """Return the path of a log with two lines of ours and one of another."""
    path = tmp_path / "access.log"
    path.write_bytes(b"".join(line + b"\n" for line in (build_line(), b"other", build_numbered_line(3))))
    return str(path)


def test_a_log_is_read_and_summed_up(
    log: str, spool: str, read_records: Callable[[str], list[Record]]
) -> None:
    result = CliRunner().invoke(command, [spool, "--file", log], catch_exceptions=False)
    assert result.stdout == "3 lines, 2 recorded, 1 rejected (another format), 0 dropped by the kernel\n"
    assert f"collecting from {log} into {spool}" in result.stderr
    assert len(read_records(spool)) == 2


def test_the_summary_as_json(log: str, spool: str) -> None:
    result = CliRunner().invoke(command, [spool, "--file", log, "--json"], catch_exceptions=False)
    assert json.loads(result.stdout) == {
        "received": 3,
        "recorded": 2,
        "rejected": {"another format": 1},
        "kernel_dropped": 0,
        "spool_dropped": 0,
        "export": None,
    }


def test_the_environment_names_the_spool(
    log: str, spool: str, monkeypatch: pytest.MonkeyPatch, read_records: Callable[[str], list[Record]]
) -> None:
    monkeypatch.setenv("REQPATH_SPOOL", spool)
    CliRunner().invoke(command, ["--file", log], catch_exceptions=False)
    assert len(read_records(spool)) == 2


def test_the_standard_input_is_a_log(spool: str, read_records: Callable[[str], list[Record]]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "reqpath.cli", "collect", spool, "--file", "-"],
        input=build_line() + b"\n",
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(b"1 lines, 1 recorded")
    assert len(read_records(spool)) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_the_summary(number: int, spool: str, tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "reqpath.cli", "collect", spool, "--listen", f"unix:{path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stderr is not None
        assert f"collecting from unix:{path} into {spool}" in process.stderr.readline().decode()
        process.send_signal(number)
        stdout, _ = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (0, b"0 lines, 0 recorded, 0 dropped by the kernel\n")
    assert not path.exists()


def test_an_address_in_use_is_one_message(spool: str) -> None:
    port = find_free_port()
    with contextlib.closing(DatagramSource(Listen("127.0.0.1", port))):
        done = subprocess.run(
            [sys.executable, "-m", "reqpath.cli", "collect", spool, "--listen", f"127.0.0.1:{port}"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"reqpath: can't listen on udp:127.0.0.1:{port}: something listens there already"
    )
    assert "Traceback" not in done.stderr


def test_a_spool_that_is_open_to_others_is_refused(log: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(SpoolError, match="chmod 700"):
        CliRunner().invoke(command, [str(tmp_path), "--file", log], catch_exceptions=False)


@pytest.mark.parametrize("mode", ["rw", "-1", "7777", "9"])
def test_a_wrong_mode_is_refused(mode: str, spool: str) -> None:
    with pytest.raises(ConfigurationError, match="octal"):
        CliRunner().invoke(command, [spool, f"--socket-mode={mode}"], catch_exceptions=False)


def test_a_saved_spool_is_exported_once(spool: str) -> None:
    write_paths(spool, [*(make_path(number=number) for number in range(4)), make_path(number=4, status=500)])
    with start_backend() as backend:
        arguments = ["--once", spool, "--otlp", backend.url]
        first = CliRunner().invoke(command, arguments, catch_exceptions=False)
        second = CliRunner().invoke(command, arguments, catch_exceptions=False)
        again = CliRunner().invoke(
            command, [*arguments, "--from-start", "--keep", "all", "--json"], catch_exceptions=False
        )
    assert [result.exit_code for result in (first, second, again)] == [0, 0, 0]
    assert first.stdout.startswith("5 paths, 3 kept (error 1, steady 2), 3 exported in ")
    assert second.stdout == "0 paths, 0 kept, 0 exported in 0 spans\n"
    status = json.loads(again.stdout)
    assert status.pop("spans") > 5
    assert status == {
        "joined": 5,
        "kept": {"all": 2, "error": 1, "steady": 2},
        "not_kept": 0,
        "exported": 5,
        "refused": 0,
        "rejected_spans": 0,
        "pending": 0,
        "waiting": 0,
        "missed": 0,
        "clocks": {},
    }
    assert sorted(backend.arrivals().values()) == [1, 1, 2, 2, 2]


def test_spans_that_the_backend_rejects_are_told(spool: str) -> None:
    write_paths(spool, [make_path()])
    partial = ExportTracePartialSuccess(rejected_spans=2, error_message="too old")
    with start_backend() as backend:
        reply = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
        backend.decide = lambda _: Reply(body=reply)
        result = CliRunner().invoke(
            command, ["--once", spool, "--otlp", backend.url, "--keep", "all"], catch_exceptions=False
        )
        spans = len(backend.spans)
    assert f"1 exported in {spans - 2} spans, 2 spans rejected\n" in result.stdout
    target = f"{backend.url}/v1/traces (http/protobuf)"
    assert result.stderr.splitlines() == [
        f"reqpath: {target} has rejected 2 of {spans} spans: too old; "
        "they are lost, further ones are counted",
        f"reqpath: {target} has rejected 2 spans in all",
    ]


def test_what_no_backend_took_is_for_the_next_time(spool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    monkeypatch.setattr("reqpath.collect.collector._PATIENCE_S", 0.3)
    monkeypatch.setattr("reqpath.collect.collector._END_SEND_S", 0.1)
    write_paths(spool, [make_path(number=number) for number in range(4)])
    backend = Backend()
    backend.start()
    backend.stop()
    arguments = ["--once", spool, "--otlp", backend.url]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 1
    assert result.stdout == "4 paths, 2 kept (steady 2), 0 exported in 0 spans, 2 still to be exported\n"
    assert result.stderr.splitlines() == [
        f"reqpath: can't export to {backend.url}/v1/traces (http/protobuf): Connection refused; "
        "trying again, the spool holds on",
        "reqpath: 2 paths could not be exported before the end; the spool holds them for the next start",
    ]
    backend.start()
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    backend.stop()
    assert result.stdout.startswith("0 paths, 0 kept, 2 exported in ")
    assert list(backend.arrivals().values()) == [1, 1]


def test_lines_and_records_are_exported_while_they_come(spool: str, tmp_path: Path) -> None:
    paths = [make_path(number=number) for number in range(3)]
    listen = tmp_path / "log.sock"
    with start_backend() as backend:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "reqpath.cli", "collect", spool, "--listen", f"unix:{listen}"),
                *("--otlp", backend.url, "--keep", "all"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stderr is not None
            assert f"collecting from unix:{listen} into {spool}" in process.stderr.readline()
            assert f"exporting to {backend.url}" in process.stderr.readline()
            with open_spool(spool) as spooler, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nginx:
                nginx.connect(str(listen))
                for path in paths:
                    spooler.write(path.worker)
                    assert path.worker is not None
                    nginx.send(build_line(trace=path.trace_id, span=path.worker.parent_id))
            deadline_s = time.monotonic() + 30
            while len(backend.arrivals()) < 3 and time.monotonic() < deadline_s:
                time.sleep(0.02)
            process.send_signal(signal.SIGUSR1)
            assert "3 lines, 3 recorded, 0 dropped by the kernel\n" in process.stderr.readline()
            assert process.stderr.readline().startswith("3 paths, 3 kept (")
            process.send_signal(signal.SIGTERM)
            stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
    assert backend.arrivals() == {path.trace_id: 1 for path in paths}
    assert ", 3 exported in " in stdout.splitlines()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--once"], "--once needs a backend"),
        (
            ["--once", "--otlp", "http://otel", "--listen", "udp:127.0.0.1:5170"],
            "neither --listen nor --file",
        ),
        (["--once", "--otlp", "ftp://otel"], "it takes http://HOST:PORT"),
    ],
)
def test_what_makes_no_sense_together_is_said(arguments: list[str], message: str, spool: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CliRunner().invoke(command, [spool, *arguments], catch_exceptions=False)


def test_a_spool_that_is_not_there_is_one_message(spool: str) -> None:
    with pytest.raises(SpoolError, match="can't open the spool"):
        CliRunner().invoke(command, ["--once", spool, "--otlp", "http://127.0.0.1:1"], catch_exceptions=False)


def test_two_collectors_do_not_export_one_spool(spool: str) -> None:
    write_paths(spool, [make_path()])
    with hold_spool(spool), pytest.raises(SpoolError, match="another collector exports the spool"):
        CliRunner().invoke(command, ["--once", spool, "--otlp", "http://127.0.0.1:1"], catch_exceptions=False)


def test_without_the_extra_it_says_what_to_install(spool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_paths(spool, [make_path()])
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'reqpath\[otlp\]'"):
        CliRunner().invoke(command, ["--once", spool, "--otlp", "http://127.0.0.1:1"], catch_exceptions=False)
