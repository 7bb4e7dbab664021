"""`reqpath collect` says where it listens, what it did, and why it can't."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from reqpath.bench.process import find_free_port
from reqpath.collect.receiver import DatagramSource
from reqpath.commands.collect import command
from reqpath.configuration import Listen
from reqpath.errors import ConfigurationError, SpoolError
from reqpath.record import Record
from tests.collect.lines import build_line, build_numbered_line


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no variable of the machine's decide."""
    for name in list(os.environ):
        if name.startswith("REQPATH_"):
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
