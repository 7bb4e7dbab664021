"""`reqpath demo` as a user runs it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from reqpath.servers.jaeger import Jaeger
from reqpath.tiers import NAMES
from reqpath.traces.jaeger import JaegerReader

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("servers")]

_DEADLINE_S = 120.0
_GRACE_S = 5.0


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Mark what a test starts; whatever the demo's end, no file and no process with the mark may be left."""
    with tempfile.TemporaryDirectory(prefix="rq", dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield directory
        assert os.listdir(directory) == []
        # Asking a server for its version, say, ends by itself.
        give_up_s = time.monotonic() + _GRACE_S
        while (marked := _list_marked(directory)) and time.monotonic() < give_up_s:
            time.sleep(0.05)
        assert marked == []


def test_json_is_one_object_and_stands_alone_on_stdout() -> None:
    result = subprocess.run(
        [*_command("--seconds", "2", "--json")],
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=True,
    )
    document = json.loads(result.stdout)
    assert document["client"]["recorded"] == document["client"]["requests"] == document["requests"] > 20
    assert {segment["name"] for segment in document["segments"]} <= set(NAMES)
    assert document["missing_stamps"] == {}
    # nginx answers some by itself, over no transport.
    assert document["transports"]["nginx_uwsgi"].keys() - {"unknown"} == {"unix"}
    assert document["transports"]["app_mysql"].keys() == {"tcp"}
    assert "starting nginx" in result.stderr
    assert "Traceback" not in result.stderr


def test_other_transports_and_threads_on_a_kept_spool(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    options = ("--transport", "tcp", "--db-transport", "unix", "--workers", "threads", "--seconds", "1")
    result = _run(*options, "--keep-spool", str(spool))
    assert result.returncode == 0, result.stderr
    assert "mysql.query" in result.stdout
    assert f"reqpath trace slowest {spool}" in result.stderr
    report = subprocess.run(
        [sys.executable, "-m", "reqpath.cli", "report", str(spool), "--json"],
        capture_output=True,
        timeout=_DEADLINE_S,
        check=True,
    )
    document = json.loads(report.stdout)
    assert document["transports"]["nginx_uwsgi"].keys() - {"unknown"} == {"tcp"}
    assert document["transports"]["app_mysql"].keys() == {"unix"}
    assert {worker["concurrency"] for worker in document["workers"]} == {"threads"}


def test_ctrl_c_in_the_middle_prints_what_was_measured() -> None:
    with _start("--seconds", "600", "--json") as demo:
        _wait_for(demo, "driving traffic")
        time.sleep(1)
        demo.send_signal(signal.SIGINT)
        stdout, stderr = demo.communicate(timeout=_DEADLINE_S)
    assert demo.returncode == 130
    assert json.loads(stdout)["requests"] > 0
    assert "interrupted" in stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["the database", "its data", "uWSGI", "driving"])
def test_a_signal_at_any_moment_leaves_nothing_behind(number: signal.Signals, moment: str) -> None:
    with _start("--seconds", "600") as demo:
        _wait_for(demo, moment)
        demo.send_signal(number)
        demo.communicate(timeout=_DEADLINE_S)
    assert demo.returncode != 0


def test_keep_running_serves_until_ctrl_c() -> None:
    with _start("--seconds", "0.5", "--keep-running") as demo:
        told = _wait_for(demo, "is up until Ctrl-C")
        url = told.rpartition("http://")[2].split()[0]
        with urllib.request.urlopen(f"http://{url}/health", timeout=_DEADLINE_S) as answer:
            body = answer.read()
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=_DEADLINE_S)
    assert body == b"ok\n"
    assert demo.returncode == 0


def test_the_traces_are_in_a_jaeger_that_runs_and_the_slowest_is_named(
    jaeger: Jaeger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQPATH_JAEGER", jaeger.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", jaeger.otlp_http)
    result = _run("--seconds", "1", "--jaeger", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    slowest = document["slowest_requests"][0]["trace_id"]
    assert f"{jaeger.url}/trace/{slowest}\n" in result.stderr
    assert "shop-nginx" in {span.service for span in JaegerReader(jaeger.url).fetch_trace(slowest)}
    # Nothing of the user's is sent to where the demo was not told to.
    monkeypatch.delenv("REQPATH_JAEGER")
    quiet = _run("--seconds", "0.5", "--json")
    last = json.loads(quiet.stdout)["slowest_requests"][0]["trace_id"]
    assert JaegerReader(jaeger.url).fetch_trace(last) == []


def test_a_backend_without_pages_is_told_with_the_trace_id(
    jaeger: Jaeger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the user interface were elsewhere.
    monkeypatch.setenv("REQPATH_JAEGER", "http://127.0.0.1:1")
    result = _run("--seconds", "0.5", "--otlp", jaeger.otlp_http, "--json")
    assert result.returncode == 0, result.stderr
    slowest = json.loads(result.stdout)["slowest_requests"][0]["trace_id"]
    assert f"sent to {jaeger.otlp_http} as trace {slowest}" in result.stderr


def test_a_jaeger_that_was_started_stays_until_ctrl_c(jaeger: Jaeger) -> None:
    # A Jaeger is known to be had here.
    with _start("--seconds", "0.5", "--jaeger") as demo:
        told = _wait_for(demo, "Jaeger is up until Ctrl-C")
        url = told.rpartition("http://")[2].split()[0]
        services = JaegerReader(f"http://{url}").list_services()
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=_DEADLINE_S)
    assert demo.returncode == 0
    assert {"shop", "shop-nginx", "shop-uwsgi", "shop-mysql"} <= set(services)


def _run_with_spool(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command("--keep-spool", str(directory)),
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=False,
    )


def test_a_spool_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    result = _run_with_spool(tmp_path)
    assert result.returncode == 2
    assert "is not empty" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_spool_that_workers_would_not_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    result = _run_with_spool(tmp_path / "open")
    assert result.returncode == 2
    assert "is open to other users: chmod 700" in result.stderr


def test_without_nginx_the_package_to_install_is_named() -> None:
    environment = os.environ | {"PATH": os.path.dirname(sys.executable)}
    code = (
        "import reqpath.servers.deployment as servers; servers._SYSTEM_DIRECTORIES = '';"
        "from reqpath.cli import main; import sys; sys.argv = ['reqpath', 'demo']; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        env=environment,
        check=False,
    )
    assert result.returncode == 2
    assert "apt install nginx" in result.stderr


def _command(*options: str) -> list[str]:
    # Python ignores Ctrl-C where it was started with it ignored, as in a shell's background.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sys.argv[0] = 'reqpath'; from reqpath.cli import main; main()"
    )
    return [sys.executable, "-c", code, "demo", *options]


@contextlib.contextmanager
def _start(*options: str) -> Iterator[subprocess.Popen[str]]:
    """Start the demo; end it when the test did not."""
    with subprocess.Popen(
        _command(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as demo:
        try:
            yield demo
        finally:
            if demo.poll() is None:
                demo.terminate()


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*options), capture_output=True, text=True, timeout=_DEADLINE_S, check=False
    )


def _wait_for(demo: subprocess.Popen[str], words: str) -> str:
    """Read the demo's standard error until it says these words; return all of it so far."""
    assert demo.stderr is not None
    told = ""
    for line in demo.stderr:
        told += line
        if words in line:
            return told
    raise AssertionError(f"the demo ended without saying {words!r}: {told}")


def _list_marked(mark: str) -> list[str]:
    """Return the command lines of the processes other than this one that inherited the mark."""
    marked = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={mark}".encode() in (directory / "environ").read_bytes():
                marked.append((directory / "cmdline").read_text())
        except OSError:
            continue
    return marked
