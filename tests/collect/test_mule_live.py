"""The collector under uWSGI's master: through reloads, its own death and the stop, no line is lost."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reqpath.collect.checkpoint import NAME
from reqpath.collect.receiver import DatagramSource
from reqpath.configuration import Listen, parse_listen, render_uwsgi
from reqpath.errors import ServerError
from reqpath.record import NginxRecord
from reqpath.servers.deployment import find_program
from reqpath.servers.process import Process, find_free_port, is_listening, start_process, wait_until
from reqpath.spool import SpoolReader
from tests.collect.backend import start_backend
from tests.collect.lines import build_numbered_line

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

_START_S = 20.0
_WORKERS = 2
_SPAWNED = re.compile(r"spawned uWSGI mule 1 \(pid: (\d+)\)")


@dataclass(frozen=True)
class Server:
    """A uWSGI with the collector as its mule."""

    process: Process
    port: int
    listen: Listen
    spool: str

    @property
    def log(self) -> str:
        return Path(self.process.log_path).read_text(errors="replace")

    def mule_pids(self) -> list[int]:
        """Return the processes that were a mule, the last one is now."""
        return [int(pid) for pid in _SPAWNED.findall(self.log)]

    def send(self, *numbers: int) -> None:
        family = socket.AF_UNIX if self.listen.is_unix else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.connect(self.listen.path or (self.listen.host, self.listen.port))
            for number in numbers:
                sender.send(build_numbered_line(number))

    def recorded(self) -> list[int]:
        """Return the numbers of the lines in the spool, sorted, having checked that none was lost."""
        if not os.path.isdir(self.spool):
            return []
        reader = SpoolReader(self.spool)
        records = [record for _info, records in reader.read() for record in records]
        assert reader.losses.lost_records == 0
        return sorted(int(record.trace_id, 16) for record in records if isinstance(record, NginxRecord))

    def wait_for(self, ready: Callable[[], bool]) -> None:
        wait_until(ready, _START_S, self.process)

    def wait_for_workers(self, *, reloads: int = 0) -> None:
        """Wait until each worker takes requests; before that it does not heed what the master tells it."""
        self.wait_for(lambda: self.log.count("(accepting)") >= _WORKERS * (reloads + 1) and self.answers())

    def wait_for_mules(self, started: int) -> None:
        """Wait until so many mules have been started; the master says so only after one may be at work."""
        self.wait_for(lambda: len(self.mule_pids()) >= started)
        assert len(self.mule_pids()) == started

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False


@contextlib.contextmanager
def _start(*lines: str, unix: bool = False, lazy_apps: bool = False) -> Iterator[Server]:
    try:
        uwsgi = find_program("uwsgi", "the live tests need it")
    except ServerError as error:
        pytest.skip(str(error))
    # Under /tmp in any case: a Unix socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="reqpath-test-", dir="/tmp") as directory:
        port = find_free_port()
        spool = os.path.join(directory, "spool")
        listen = f"unix:{directory}/log.sock" if unix else f"udp:127.0.0.1:{find_free_port()}"
        ini = os.path.join(directory, "uwsgi.ini")
        Path(ini).write_text(
            "\n".join(
                [
                    render_uwsgi(listen=listen, spool=spool, lazy_apps=lazy_apps),
                    f"http-socket = 127.0.0.1:{port}",
                    f"wsgi-file = {Path(__file__).with_name('echo_app.py')}",
                    f"processes = {_WORKERS}",
                    # uWSGI says that it runs this, once for each worker.
                    "hook-accepting = print:",
                    "disable-logging = true",
                    *_virtual_environment(uwsgi),
                    *lines,
                ]
            )
            + "\n"
        )
        environment = {name: value for name, value in os.environ.items() if not name.startswith("REQPATH_")}
        with start_process(
            [uwsgi, "--ini", ini],
            os.path.join(directory, "uwsgi.log"),
            lambda: is_listening(("127.0.0.1", port)),
            _START_S,
            "uWSGI",
            stop_signal=signal.SIGINT,
            environment=environment,
        ) as process:
            server = Server(process, port, parse_listen(listen), spool)
            server.wait_for_workers()
            server.wait_for_mules(1)
            yield server


def _virtual_environment(uwsgi: str) -> list[str]:
    with open(uwsgi, "rb") as file:
        is_script = file.read(2) == b"#!"
    # At SIGHUP pyuwsgi runs the interpreter behind the links, which knows no virtual environment.
    return [f"binary-path = {sys.executable}"] if is_script else [f"virtualenv = {sys.prefix}"]


def _read_state(pid: int) -> str:
    """Return the letter of a process's state. Source: proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("unix", [False, True])
def test_lines_are_taken_from_the_first_moment_and_the_stop_is_prompt(unix: bool) -> None:
    with _start(unix=unix) as server:
        server.send(1, 2, 3)
        server.wait_for(lambda: server.recorded() == [1, 2, 3])
        server.send(4)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(_START_S) == 0
        assert server.recorded() == [1, 2, 3, 4]
        assert len(server.mule_pids()) == 1
        assert "Traceback" not in server.log
        assert "reqpath" not in server.log.split("spawned uWSGI mule", 1)[1]


def test_a_killed_mule_is_started_anew_and_the_kernel_keeps_its_lines() -> None:
    with _start() as server:
        server.send(1)
        server.wait_for(lambda: server.recorded() == [1])
        os.kill(server.mule_pids()[0], signal.SIGKILL)
        # The master looks after its mules once a second.
        server.send(*range(2, 50))
        server.wait_for(lambda: server.recorded() == [*range(1, 50)])
        server.wait_for_mules(2)


def test_a_mule_that_is_told_to_end_ends_and_is_started_anew() -> None:
    with _start() as server:
        server.send(1)
        # Before its first line it may have no handlers yet: uWSGI's or the master's would take the signal.
        server.wait_for(lambda: server.recorded() == [1])
        server.send(2)
        os.kill(server.mule_pids()[0], signal.SIGTERM)
        server.wait_for_mules(2)
        server.send(3)
        server.wait_for(lambda: server.recorded() == [1, 2, 3])


@pytest.mark.parametrize("unix", [False, True])
def test_a_reload_starts_a_new_mule_on_the_same_address(unix: bool) -> None:
    with _start(unix=unix) as server:
        server.send(1)
        server.wait_for(lambda: server.recorded() == [1])
        server.send(2)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_mules(2)
        server.wait_for_workers(reloads=1)
        server.send(3, 4)
        server.wait_for(lambda: server.recorded() == [1, 2, 3, 4])
        assert "ModuleNotFoundError" not in server.log


def test_with_lazy_apps_it_is_the_same() -> None:
    with _start("lazy-apps = true", lazy_apps=True) as server:
        server.send(1)
        server.wait_for(lambda: server.recorded() == [1])
        server.send(2)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_mules(2)
        server.wait_for_workers(reloads=1)
        server.send(3)
        server.wait_for(lambda: server.recorded() == [1, 2, 3])
        os.kill(server.mule_pids()[-1], signal.SIGKILL)
        server.send(4)
        server.wait_for(lambda: server.recorded() == [1, 2, 3, 4])
        server.wait_for_mules(3)
        assert not {"Traceback", "Segmentation"} & set(server.log.split())


def test_the_workers_have_no_socket_of_the_collectors() -> None:
    with _start() as server:
        server.send(1)
        server.wait_for(lambda: server.recorded() == [1])
        workers = [int(pid) for pid in re.findall(r"spawned uWSGI worker \d \(pid: (\d+)", server.log)]
        (mule,) = server.mule_pids()
        with open("/proc/net/udp", encoding="ascii") as table:
            inodes = [
                fields[9]
                for fields in map(str.split, table)
                if fields[1].endswith(f":{server.listen.port:04X}")
            ]
        assert len(inodes) == 1

        def holds(pid: int) -> bool:
            directory = f"/proc/{pid}/fd"
            return f"socket:[{inodes[0]}]" in {
                os.readlink(f"{directory}/{fd}") for fd in os.listdir(directory)
            }

        assert [holds(pid) for pid in [*workers, mule]] == [False, False, True]


def test_an_address_in_use_is_said_once_and_the_app_serves_on() -> None:
    port = find_free_port()
    with (
        contextlib.closing(DatagramSource(Listen("127.0.0.1", port))),
        _start(f"env = REQPATH_LISTEN=udp:127.0.0.1:{port}") as server,
    ):
        server.wait_for(lambda: "something listens there already" in server.log)
        server.wait_for(server.answers)
        assert server.log.count("reqpath collector:") == 1
        assert len(server.mule_pids()) == 1


def test_a_spool_that_cannot_be_is_said_and_the_app_serves_on() -> None:
    with _start("env = REQPATH_SPOOL=/proc/none") as server:
        server.wait_for(lambda: "can't create the spool /proc/none" in server.log)
        server.wait_for(server.answers)
        assert len(server.mule_pids()) == 1


@pytest.mark.parametrize("threads", [False, True])
def test_it_exports_where_uwsgis_own_lines_say(threads: bool) -> None:
    """Without `enable-threads` too: the mule's thread runs whenever its loop waits."""
    with start_backend() as backend:
        lines = [
            f"env = OTEL_EXPORTER_OTLP_ENDPOINT={backend.url}",
            "env = OTEL_EXPORTER_OTLP_HEADERS=x-tenant=shop",
            "env = REQPATH_JOIN_WAIT_S=0.1",
        ]
        with _start(*lines, *(["enable-threads = true"] if threads else [])) as server:
            server.send(1, 2)
            server.wait_for(lambda: len(backend.arrivals()) == 2)
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(_START_S) == 0
        assert sorted(int(trace_id, 16) for trace_id in backend.arrivals()) == [1, 2]
        assert backend.headers[0]["x-tenant"] == "shop"


def test_an_export_that_cannot_be_set_up_is_said_once_and_lines_are_collected() -> None:
    with _start("env = REQPATH_OTLP=ftp://otel") as server:
        server.send(1)
        server.wait_for(lambda: server.recorded() == [1])
        assert server.log.count("not exporting: can't export to 'ftp://otel'") == 1


def test_a_checkpoint_that_cannot_be_read_is_said_once_and_lines_are_collected() -> None:
    with (
        start_backend() as backend,
        _start(f"env = REQPATH_OTLP={backend.url}", "env = REQPATH_JOIN_WAIT_S=0.1") as server,
    ):
        server.send(1)
        server.wait_for(lambda: backend.arrivals().total() == 1)
        (mule,) = server.mule_pids()
        # Stopped, it writes no other checkpoint in the garbage's place.
        os.kill(mule, signal.SIGSTOP)
        server.wait_for(lambda: _read_state(mule) == "T")
        Path(server.spool, NAME).write_bytes(b"garbage")
        os.kill(mule, signal.SIGKILL)
        server.wait_for(lambda: "not exporting: " in server.log)
        server.send(2)
        server.wait_for(lambda: server.recorded() == [1, 2])
        Path(server.spool, NAME).unlink()
        # It begins when it can, at the start of the spool.
        server.wait_for(lambda: backend.arrivals().total() == 3)
        assert server.log.count("not exporting: ") == 1
