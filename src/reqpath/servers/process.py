"""A server's process as a context manager: started, waited for, and stopped whatever happens.

The layer below is `subprocess`; `database` and the servers of the demo are made of this. Example::

    with start_process(["nginx", "-c", path], "nginx.log", is_listening, 10.0, "nginx") as process:
        print(process.pid)

A process started here leads a session of its own, so Ctrl-C in a terminal does not stop it behind our back,
and gets `stop_signal` from the kernel when we die without a chance to stop it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from reqpath.errors import ServerError

_POLL_S = 0.02
_TICK_S = 1.0
_TAIL_BYTES = 4096
#: Of `sun_path`, with its closing NUL. Source: unix(7).
_SUN_PATH_BYTES = 108


@dataclass(frozen=True, slots=True)
class Process:
    """A running server process."""

    name: str
    pid: int
    log_path: str
    _popen: subprocess.Popen[bytes]

    def is_alive(self) -> bool:
        """Tell whether it still runs."""
        return self._popen.poll() is None

    def check_alive(self) -> None:
        """Do nothing while it runs. Raises: ServerError with the log's tail when it has ended."""
        status = self._popen.poll()
        if status is not None:
            raise ServerError(f"{self.name} ended with status {status}", read_tail(self.log_path))

    def send_signal(self, number: int) -> None:
        """Send it a signal, such as the one that makes it reload; no effect when it has ended."""
        self._popen.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Wait for its end and return its status. Raises: ServerError when it still runs by then."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ServerError(
                f"{self.name} still runs after {timeout_s:g} s", read_tail(self.log_path)
            ) from None


@contextlib.contextmanager
def start_process(
    argv: Sequence[str],
    log_path: str,
    ready: Callable[[], bool],
    deadline_s: float,
    name: str,
    *,
    stop_signal: signal.Signals = signal.SIGTERM,
    stop_s: float = 10.0,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> Iterator[Process]:
    """Start `argv`, wait until `ready()`, yield it, and stop it on the way out.

    Standard output and error are appended to `log_path`. `stop_signal` is what makes this server end (uWSGI:
    SIGINT or SIGQUIT); what has not ended `stop_s` later is killed, with its children. `environment` replaces
    the inherited one. To be called from a thread that outlives the process, which the main thread does: the
    kernel takes the end of that thread for ours. Source: PR_SET_PDEATHSIG(2const).

    Raises: ServerError when it can't be started, ends early or is not ready within `deadline_s`.
    """
    popen: subprocess.Popen[bytes] | None = None
    try:
        with _hold_signals():
            popen = _spawn(argv, log_path, name, stop_signal, environment=environment, cwd=cwd)
        process = Process(name, popen.pid, log_path, popen)
        wait_until(ready, deadline_s, process)
        yield process
    finally:
        if popen is not None:
            _stop(popen, stop_signal, stop_s)


def wait_until(ready: Callable[[], bool], deadline_s: float, process: Process) -> None:
    """Wait until `ready()`, while `process` lives. Raises: ServerError."""
    give_up_s = time.monotonic() + deadline_s
    while not ready():
        process.check_alive()
        if time.monotonic() > give_up_s:
            raise ServerError(
                f"{process.name} was not ready within {deadline_s:g} s", read_tail(process.log_path)
            )
        time.sleep(_POLL_S)


def run_to_end(
    argv: Sequence[str],
    log_path: str,
    deadline_s: float,
    name: str,
    *,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
    while_running: Callable[[], None] | None = None,
) -> None:
    """Run a command that ends by itself; `while_running` is called about once a second until then.

    Raises: ServerError when it fails or takes too long.
    """
    popen: subprocess.Popen[bytes] | None = None
    give_up_s = time.monotonic() + deadline_s
    try:
        with _hold_signals():
            popen = _spawn(argv, log_path, name, signal.SIGTERM, environment=environment, cwd=cwd)
        while while_running is not None and time.monotonic() < give_up_s - _TICK_S:
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(_TICK_S)
                break
            while_running()
        status = popen.wait(max(0.0, give_up_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise ServerError(f"{name} did not end within {deadline_s:g} s", read_tail(log_path)) from None
    finally:
        if popen is not None:
            _stop(popen, signal.SIGTERM, 2.0)
    if status != 0:
        raise ServerError(f"{name} ended with status {status}", read_tail(log_path))


def read_tail(path: str) -> str:
    """Return the end of a log; empty when there is none. On a full disk, which keeps it short, say so too."""
    try:
        with open(path, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            tail = log.read().decode("utf-8", "replace")
        full = os.statvfs(path).f_bavail == 0
    except OSError:
        return ""
    return f"{tail}no space is left on the disk of {path}\n" if full else tail


def find_free_port() -> int:
    """Return a TCP port on 127.0.0.1 that nobody listens on at this instant."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_listening(address: str | tuple[str, int]) -> bool:
    """Tell whether somebody accepts connections at a socket's path or at (host, port)."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address)
        except OSError:
            return False
        return True


@contextlib.contextmanager
def make_socket_directory(directory: str, longest_name: str) -> Iterator[str]:
    """Yield `directory`, or a short temporary one when a socket `longest_name` in it has too long a path."""
    if len(os.fsencode(os.path.join(directory, longest_name))) < _SUN_PATH_BYTES:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="reqpath-", dir="/tmp") as short:
        yield short


@contextlib.contextmanager
def exit_on_signals(*numbers: signal.Signals) -> Iterator[None]:
    """Make these signals (SIGTERM and SIGHUP by default) raise SystemExit, so that every `with` cleans up.

    Without effect outside the main thread, where Python takes no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, leave) for number in numbers or (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _hold_signals() -> Iterator[None]:
    """Put off Ctrl-C and the signals of `exit_on_signals` until a process that is being made is ours to stop.

    An exception in the middle of `Popen` would leave a process that nobody knows of.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        held.append(number)

    previous = {
        number: signal.signal(number, hold)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # One that is ignored or at its default stays so: a process inherits those, and no handler.
        if callable(signal.getsignal(number))
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for arrived in dict.fromkeys(held):
            signal.raise_signal(arrived)


def _spawn(
    argv: Sequence[str],
    log_path: str,
    name: str,
    death_signal: signal.Signals,
    *,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> subprocess.Popen[bytes]:
    command = list(argv)
    # util-linux's setpriv sets the signal and then becomes the command, with the same process id; a hook of
    # our own between fork and exec is not safe beside threads.
    setpriv = shutil.which("setpriv")
    if setpriv is not None:
        if shutil.which(command[0]) is None:
            raise ServerError(f"{name} can't be started: there is no program {command[0]}")
        command = [setpriv, "--pdeathsig", death_signal.name.removeprefix("SIG"), "--", *command]
    try:
        with open(log_path, "ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=cwd,
                start_new_session=True,
            )
    except OSError as error:
        raise ServerError(f"{name} can't be started: {error}") from error


def _stop(popen: subprocess.Popen[bytes], stop_signal: signal.Signals, stop_s: float) -> None:
    """End the process and, when it would not go by itself, all of its session's first group."""
    try:
        if popen.poll() is None:
            popen.send_signal(stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(stop_s)
    finally:
        # Also children that outlived a killed master; the group is ours alone, by start_new_session.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
