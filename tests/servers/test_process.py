"""A started process is waited for, and is gone whatever happens."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reqpath.errors import ServerError
from reqpath.servers.process import (
    exit_on_signals,
    find_free_port,
    is_listening,
    make_socket_directory,
    read_tail,
    run_to_end,
    start_process,
)

_SLEEP = ["sleep", "300"]


def _runs(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_a_process_runs_in_the_block_and_not_after_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = ["sh", "-c", "echo ready; exec sleep 300"]
    with start_process(argv, str(log), lambda: read_tail(str(log)) == "ready\n", 30.0, "sleeper") as process:
        process.check_alive()
        assert _runs(process.pid)

    assert not process.is_alive()
    assert not _runs(process.pid)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_the_block_ends_it(tmp_path: Path, error: type[BaseException]) -> None:
    with (
        pytest.raises(error),
        start_process(_SLEEP, str(tmp_path / "log"), lambda: True, 5.0, "x") as process,
    ):
        raise error

    assert not _runs(process.pid)


def test_one_that_ends_early_is_an_error_with_the_logs_tail(tmp_path: Path) -> None:
    argv = ["sh", "-c", "echo no more space >&2; exit 3"]
    with (
        pytest.raises(ServerError, match="thing ended with status 3\nno more space"),
        start_process(argv, str(tmp_path / "log"), lambda: False, 60.0, "thing"),
    ):
        pass


def test_one_that_is_never_ready_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match="thing was not ready within 0 s"),
        start_process(_SLEEP, str(tmp_path / "log"), lambda: False, 0.0, "thing"),
    ):
        pass


def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match="there is no program no-such-program"),
        start_process(["no-such-program"], str(tmp_path / "log"), lambda: True, 5.0, "thing"),
    ):
        pass


def test_one_that_will_not_stop_is_killed_with_its_children(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = ["sh", "-c", "trap '' TERM; sleep 300 & echo $!; wait; wait; sleep 300"]

    def has_child() -> bool:
        return read_tail(str(log)).strip().isdecimal()

    with start_process(argv, str(log), has_child, 10.0, "stubborn", stop_s=0.0) as process:
        child = int(read_tail(str(log)))
        assert _runs(child)

    assert not _runs(process.pid)
    # Killed as well; whoever adopts it may not have waited for it yet.
    assert not _runs(child) or "Z" in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2]


def test_one_does_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    script = f"""
import sys
from reqpath.servers.process import read_tail, start_process
argv = ["sh", "-c", "echo ready; exec sleep 300"]
with start_process(argv, {log!r}, lambda: read_tail({log!r}) == "ready\\n", 30.0, "sleeper") as process:
    print(process.pid, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        sleeper = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()

    try:
        # Readable when it has ended. Source: pidfd_open(2).
        ended, _, _ = select.select([sleeper], [], [], 30.0)
    finally:
        os.close(sleeper)
    assert ended == [sleeper]


def test_a_command_is_run_to_its_end(tmp_path: Path) -> None:
    run_to_end(["true"], str(tmp_path / "log"), 30.0, "truth")
    with pytest.raises(ServerError, match="truth ended with status 1"):
        run_to_end(["false"], str(tmp_path / "log"), 30.0, "truth")


def test_a_signal_becomes_an_exit_in_the_block_only() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, exit_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)

    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_free_port_has_no_listener() -> None:
    assert not is_listening(("127.0.0.1", find_free_port()))


def test_a_socket_directory_is_as_short_as_a_socket_needs(tmp_path: Path) -> None:
    with make_socket_directory("/tmp/short", "s.sock") as directory:
        assert directory == "/tmp/short"
    with make_socket_directory(str(tmp_path / ("x" * 200)), "s.sock") as directory:
        assert len(directory) < 80
        assert os.stat(directory).st_mode & 0o077 == 0
    assert not os.path.exists(directory)


def test_a_log_on_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.write_text("begun\n")
    assert read_tail(str(log)) == "begun\n"
    found = os.statvfs(log)
    full = os.statvfs_result([*found[:4], 0, *found[5:]])
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    with pytest.raises(
        ServerError, match=r"^it ended with status 1\nbegun\nno space is left on the disk of .*/log"
    ):
        run_to_end(["false"], str(log), 10.0, "it")
    assert read_tail(str(tmp_path / "none")) == ""
