"""Through everything that uWSGI does with its workers, each finished request has exactly one record.

Requests carry a number in their path, so that records can be told apart; an answer says which process gave
it. Only a request that was in flight when its worker was killed may have no record.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reqpath import configuration
from reqpath.record import WorkerRecord, WriterInfo
from reqpath.servers.process import Process, find_free_port, is_listening, start_process, wait_until
from reqpath.spool import SpoolReader

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

# Far beyond what a stop takes; after it uWSGI kills a worker that hangs, and says so.
_MERCY_S = 10
_STOP_S = 2.0 * _MERCY_S
_ANSWER_S = 30.0
_PAUSE_S = 0.2
#: What uWSGI's processes return when they were told to end. Source: uwsgi.h, UWSGI_END_CODE.
_ENDED_WITHOUT_MASTER = 30
# A worker that uWSGI stops at once calls exit() in a signal handler; with threads, and nothing of reqpath in
# the process, about one in fifty of those that are busy then waits for a lock that it has itself (malloc's,
# say), until the master kills it. A graceful stop has its threads end by themselves.
_MASTER = ("master = true", "hook-master-start = unix_signal:15 gracefully_kill_them_all")
_AT_ONCE = ("master = true", "die-on-term = true")
_UWSGI = shutil.which("uwsgi", path=f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', os.defpath)}")

Address = str | tuple[str, int]


@dataclass(frozen=True)
class Server:
    """A uWSGI that is running, or was."""

    process: Process
    address: Address
    directory: Path

    def log(self) -> str:
        return Path(self.process.log_path).read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it and return its exit code. Raises: ServerError when it hangs."""
        self.process.send_signal(number)
        status = self.process.wait(_STOP_S)
        assert number != signal.SIGTERM or "NO MERCY" not in self.log()
        return status

    def stop_all(self, pids: set[int]) -> int:
        """Stop it where no master tells its workers, and return its exit code."""
        for pid in pids - {self.process.pid}:
            os.kill(pid, signal.SIGINT)
        wait_until(lambda: not any(map(is_running, pids - {self.process.pid})), _STOP_S, self.process)
        return self.stop(signal.SIGINT)

    def workers(self) -> set[int]:
        """Return the process ids of the workers that uWSGI started last."""
        started = re.findall(r"spawned uWSGI worker (\d+) .*pid: (\d+)", self.log())
        return {int(pid) for pid in dict(started).values()}

    def wait_for_log(self, words: str, times: int = 1) -> None:
        """Wait until uWSGI has said something so many times."""
        wait_until(lambda: self.log().count(words) >= times, 30.0, self.process)

    def records(self, *, lost_at_most: int = 0) -> list[tuple[WriterInfo, WorkerRecord]]:
        """Return what the spool holds, having checked that nothing in it is torn, lost or foreign."""
        reader = SpoolReader(str(self.directory / "spool"))
        found = [(info, record) for info, batch in reader.read() for record in batch]
        assert reader.losses.lost_records <= lost_at_most
        assert (reader.losses.torn_bytes, reader.losses.foreign_files) == (0, {})
        workers = [(info, record) for info, record in found if isinstance(record, WorkerRecord)]
        assert len(workers) == len(found)
        return workers


@contextlib.contextmanager
def serve(
    directory: Path, *lines: str, module: str = "lifecycle_app:app", tcp: bool = False, **variables: str
) -> Iterator[Server]:
    """Run the app on a uWSGI of its own, configured by `lines`, and see it ended."""
    if _UWSGI is None:
        pytest.skip("uwsgi is not installed: pip install 'reqpath[demo]'")
    address: Address = ("127.0.0.1", find_free_port()) if tcp else str(directory / "s")
    ini = [
        "[uwsgi]",
        "strict = true",
        "need-app = true",
        "buffer-size = 16384",
        "listen = 100",
        "disable-logging = true",
        f"worker-reload-mercy = {_MERCY_S}",
        f"http-socket = {address if isinstance(address, str) else f'{address[0]}:{address[1]}'}",
        f"virtualenv = {sys.prefix}",
        f"pythonpath = {Path(__file__).parent}",
        f"module = {module}",
        *lines,
    ]
    (directory / "uwsgi.ini").write_text("\n".join([*ini, ""]))
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("REQPATH_", "OTEL_"))
    }
    environment = inherited | {
        "REQPATH_SPOOL": str(directory / "spool"),
        "PYTHONDONTWRITEBYTECODE": "1",
        **variables,
    }
    with start_process(
        [_UWSGI, "--ini", str(directory / "uwsgi.ini")],
        str(directory / "uwsgi.log"),
        lambda: is_listening(address),
        30.0,
        "uWSGI",
        stop_signal=signal.SIGINT,
        environment=environment,
        cwd=str(directory),
    ) as process:
        yield Server(process, address, directory)
    log = (directory / "uwsgi.log").read_text(errors="replace")
    # What reqpath has to say on the request path, it says with its name.
    assert "reqpath failed" not in log
    assert "reqpath:" not in log


def fetch(address: Address, path: str, pause_s: float = 0) -> tuple[int, bytes] | None:
    """Return status and body; None when the connection broke before the whole answer was there.

    `pause_s` is between the answer's first bytes and all others.
    """
    try:
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as connection:
            connection.settimeout(_ANSWER_S)
            connection.connect(address)
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: test\r\n\r\n".encode())
            data = bytearray(connection.recv(1))
            time.sleep(pause_s)
            while chunk := connection.recv(1 << 16):
                data += chunk
    except OSError:
        return None
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    if not head:
        return None
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and int(value) != len(body):
            return None
    return int(head.split()[1]), body


def get(server: Server, path: str) -> dict[str, Any]:
    """Return the answer of the app's process about itself."""
    answer = fetch(server.address, path)
    assert answer is not None, server.log()
    assert answer[0] == 200, answer
    who: dict[str, Any] = json.loads(answer[1])
    return who


@dataclass
class Traffic:
    """Clients that request /r/0, /r/1, …, each number once."""

    server: Server
    answered: dict[int, dict[str, Any]] = field(default_factory=dict)
    broken: set[int] = field(default_factory=set)
    _next: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, requests: int, clients: int = 8) -> None:
        """Make so many requests, and return when all are answered or broken."""
        end = self._next + requests
        with ThreadPoolExecutor(clients) as pool:
            for client in [
                pool.submit(self._request_until, lambda: self._next >= end) for _ in range(clients)
            ]:
                client.result()

    @contextlib.contextmanager
    def flowing(self, clients: int = 4) -> Iterator[None]:
        """Keep requests coming until the end of the block."""
        stop = threading.Event()
        with ThreadPoolExecutor(clients) as pool:
            running = [pool.submit(self._request_until, stop.is_set) for _ in range(clients)]
            try:
                yield
            finally:
                stop.set()
            for client in running:
                client.result()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so, while the server lives."""
        wait_until(condition, 30.0, self.server.process)

    def wait_for_more(self, requests: int) -> None:
        """Wait until so many more are answered."""
        enough = len(self.answered) + requests
        self.wait_for(lambda: len(self.answered) >= enough)

    def wait_for_workers(self) -> None:
        """Wait until each worker has answered.

        One that is being started ignores a graceful end, or has the master's signal handlers and takes a stop
        for the master's.
        """
        self.wait_for(lambda: self.server.workers() <= self.pids)

    def wait_for_new_pids(self, count: int, after: Callable[[], object]) -> None:
        """Do something, and wait until so many processes have answered that had not before."""
        before = self.pids
        after()
        self.wait_for(lambda: len(self.pids - before) >= count)

    @property
    def pids(self) -> set[int]:
        with self._lock:
            return {who["pid"] for who in self.answered.values()}

    def _request_until(self, is_over: Callable[[], bool]) -> None:
        while True:
            with self._lock:
                if is_over():
                    return
                number = self._next
                self._next += 1
            answer = fetch(self.server.address, f"/r/{number}")
            with self._lock:
                if answer is None:
                    self.broken.add(number)
                else:
                    assert answer[0] == 200, answer
                    self.answered[number] = json.loads(answer[1])
            if answer is None:
                # Nobody may be listening just now.
                time.sleep(0.01)


def check_records(traffic: Traffic, *, lost_at_most: int = 0) -> list[tuple[WriterInfo, WorkerRecord]]:
    """Check the records against the answers; those without a record must be no more than `lost_at_most`."""
    found = traffic.server.records(lost_at_most=lost_at_most)
    seen = Counter(record.path for _, record in found)
    assert [path for path, count in seen.items() if count > 1] == []
    numbered = {f"/r/{number}": who for number, who in traffic.answered.items()}
    missing = set(numbered) - set(seen)
    assert len(missing) <= lost_at_most, missing
    # A request whose answer did not arrive may have been handled all the same.
    strange = set(seen) - set(numbered) - {f"/r/{number}" for number in traffic.broken}
    assert set() == {path for path in strange if path.startswith("/r/")}
    check_identity(found)
    for info, record in found:
        assert record.closed_offset_ns is not None
        assert sum(ns or 0 for ns in record.exclusive_ns) == record.closed_offset_ns
        if who := numbered.get(record.path):
            assert (who["pid"], who["worker"], who["core"]) == (info.pid, info.worker, record.core)
            assert (record.route, record.status) == ("/r/<int:number>", 200)
    return found


def check_identity(found: list[tuple[WriterInfo, WorkerRecord]]) -> None:
    """Check that no id was given out twice, by any worker."""
    records = [record for _, record in found]
    assert len(records) == len({record.span_id for record in records})
    assert len(records) == len({record.trace_id for record in records})
    by_writer = {(info.writer_id, info.pid) for info, _ in found}
    assert len(by_writer) == len({writer for writer, _ in by_writer}) == len({pid for _, pid in by_writer})


def check_gone(pids: set[int]) -> None:
    """Check that these processes have ended."""
    assert set() == {pid for pid in pids if is_running(pid)}


def is_running(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("lines", "processes", "threads", "tcp"),
    [
        pytest.param(_MASTER, 2, 1, False, id="preforked"),
        pytest.param((*_MASTER, "lazy-apps = true"), 2, 1, True, id="lazy-apps"),
        pytest.param((*_MASTER, "enable-threads = true"), 2, 1, True, id="enable-threads"),
        pytest.param((*_MASTER, "single-interpreter = true"), 2, 1, False, id="single-interpreter"),
        pytest.param((*_MASTER, "py-call-osafterfork = true"), 2, 1, True, id="osafterfork"),
        pytest.param((*_MASTER, "py-call-uwsgi-fork-hooks = true"), 2, 1, False, id="fork-hooks"),
        pytest.param(_MASTER, 1, 4, False, id="threads"),
        pytest.param((*_MASTER, "enable-threads = true"), 1, 4, True, id="threads-enabled"),
        pytest.param((*_MASTER, "lazy-apps = true"), 2, 4, False, id="threads-lazy-apps"),
        pytest.param((*_MASTER, "py-call-uwsgi-fork-hooks = true"), 2, 4, True, id="threads-fork-hooks"),
        pytest.param((), 1, 1, True, id="no-master"),
        pytest.param((), 1, 4, False, id="no-master-threads"),
        pytest.param((), 2, 1, False, id="no-master-preforked"),
        pytest.param(("lazy-apps = true",), 2, 2, True, id="no-master-lazy-apps-threads"),
    ],
)
def test_each_request_has_one_record_and_the_server_is_told_truly(
    lines: tuple[str, ...], processes: int, threads: int, tcp: bool, tmp_path: Path
) -> None:
    sizes = (f"processes = {processes}", *([f"threads = {threads}"] if threads > 1 else []))
    with serve(tmp_path, *lines, *sizes, tcp=tcp) as server:
        traffic = Traffic(server)
        traffic.run(200)
        assert set() == traffic.broken
        with traffic.flowing():
            traffic.wait_for_workers()
        if "master = true" in lines:
            assert server.stop(signal.SIGINT) == 0
        else:
            assert server.stop_all(traffic.pids) == _ENDED_WITHOUT_MASTER
    found = check_records(traffic)
    assert len(found) == len(traffic.answered)
    check_gone(traffic.pids)
    told = {
        (info.processes, info.threads, info.concurrency, info.server, record.transport)
        for info, record in found
    }
    concurrency = "threads" if threads > 1 else "processes"
    assert {(processes, threads, concurrency, "uWSGI 2.0.30", "tcp" if tcp else "unix")} == told


@pytest.mark.parametrize("threads", [1, 4])
def test_a_worker_that_is_recycled_after_max_requests_loses_nothing(threads: int, tmp_path: Path) -> None:
    with serve(
        tmp_path,
        *_MASTER,
        "processes = 2",
        f"threads = {threads}",
        "max-requests = 40",
        "min-worker-lifetime = 0",
    ) as server:
        traffic = Traffic(server)
        with traffic.flowing():
            traffic.wait_for(lambda: len(traffic.pids) >= 4)
        # At once: a worker that is just being started would not hear of a graceful stop.
        assert server.stop(signal.SIGINT) == 0
    check_records(traffic)
    check_gone(traffic.pids)


# pyuwsgi starts itself anew as the interpreter that /proc/self/exe names, which in a virtual environment is
# the base one and has no pyuwsgi. With binary-path it is the environment's. Reloads that leave the master
# running need no such line.
_BINARY = f"binary-path = {sys.executable}"


@pytest.mark.parametrize(
    ("lines", "reload", "threads"),
    [
        pytest.param((_BINARY,), signal.SIGHUP, 1, id="sighup"),
        pytest.param((_BINARY,), signal.SIGHUP, 4, id="sighup-threads"),
        pytest.param((_BINARY, "lazy-apps = true"), signal.SIGHUP, 4, id="sighup-lazy-apps"),
        pytest.param((_BINARY, "touch-reload = %d/touched"), "touched", 1, id="touch-reload"),
        pytest.param(("touch-workers-reload = %d/touched",), "touched", 4, id="touch-workers-reload"),
        pytest.param(
            ("lazy-apps = true", "touch-chain-reload = %d/touched"), "touched", 1, id="touch-chain-reload"
        ),
        pytest.param(("lazy-apps = true", "master-fifo = %d/fifo"), b"c", 4, id="fifo-chain-reload"),
    ],
)
def test_a_reload_in_the_middle_of_traffic_loses_nothing(
    lines: tuple[str, ...], reload: signal.Signals | str | bytes, threads: int, tmp_path: Path
) -> None:
    (tmp_path / "touched").touch()
    with serve(tmp_path, *_MASTER, "processes = 2", f"threads = {threads}", *lines) as server:
        traffic = Traffic(server)
        with traffic.flowing():
            traffic.wait_for_workers()
            traffic.wait_for_new_pids(2, lambda: _reload(server, reload))
            traffic.wait_for_more(50)
            traffic.wait_for_workers()
        assert server.stop() == 0
    check_records(traffic)
    check_gone(traffic.pids)


def _reload(server: Server, how: signal.Signals | str | bytes) -> None:
    if isinstance(how, signal.Signals):
        server.process.send_signal(how)
    elif isinstance(how, bytes):
        (server.directory / "fifo").write_bytes(how)
    else:
        # uWSGI compares whole seconds.
        path = server.directory / how
        after_s = path.stat().st_mtime + 2
        os.utime(path, (after_s, after_s))


def _wait_for_chains(server: Server) -> None:
    """Wait until each chain of reloads that has begun is over."""
    server.wait_for_log("chain reloading complete", server.log().count("chain reload starting"))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_request_that_a_reload_waits_for_is_recorded(threads: int, tmp_path: Path) -> None:
    with serve(
        tmp_path,
        *_MASTER,
        "processes = 1",
        f"threads = {threads}",
        _BINARY,
        HOLD_FIFO=_make_fifo(tmp_path),
    ) as server:
        with holding(server, 1) as held:
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_log("Gracefully killing worker 1")
        assert held["pid"] != get(server, "/r/2")["pid"]
        assert server.stop() == 0
    assert [record.path for _, record in server.records()] == ["/hold/1", "/r/2"]


def _make_fifo(directory: Path) -> str:
    path = directory / "hold"
    os.mkfifo(path)
    return str(path)


@contextlib.contextmanager
def holding(server: Server, number: int) -> Iterator[dict[str, Any]]:
    """Have a request in flight during the block; its answer is in the yielded dictionary afterwards."""
    answer: dict[str, Any] = {}
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(get, server, f"/hold/{number}")
        opened: list[int] = []

        def is_held() -> bool:
            try:
                opened.append(os.open(server.directory / "hold", os.O_WRONLY | os.O_NONBLOCK))
            except OSError as error:
                assert error.errno == errno.ENXIO  # noqa: PT017 - anything else is a fault of the test
                return False
            return True

        wait_until(is_held, 20.0, server.process)
        try:
            yield answer
        finally:
            os.close(opened[0])
        answer.update(request.result())


@pytest.mark.parametrize(
    ("lines", "number", "threads", "lost_at_most"),
    [
        pytest.param(_MASTER, signal.SIGTERM, 1, 0, id="graceful"),
        pytest.param(_MASTER, signal.SIGTERM, 4, 0, id="graceful-threads"),
        pytest.param(_AT_ONCE, signal.SIGTERM, 1, 2, id="at-once"),
        pytest.param(_MASTER, signal.SIGINT, 4, 8, id="at-once-threads"),
    ],
)
def test_a_stop_in_the_middle_of_traffic_loses_no_more_than_what_is_in_flight(
    lines: tuple[str, ...], number: int, threads: int, lost_at_most: int, tmp_path: Path
) -> None:
    with serve(tmp_path, *lines, "processes = 2", f"threads = {threads}") as server:
        traffic = Traffic(server)
        with traffic.flowing():
            traffic.wait_for_more(200)
            traffic.wait_for_workers()
            assert server.stop(number) == 0
    check_records(traffic, lost_at_most=lost_at_most)
    check_gone(traffic.pids)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_killed_worker_loses_no_more_than_what_it_was_serving(threads: int, tmp_path: Path) -> None:
    kills = 2
    with serve(tmp_path, *_MASTER, "processes = 2", f"threads = {threads}") as server:
        traffic = Traffic(server)
        with traffic.flowing():
            for _ in range(kills):
                traffic.wait_for_more(100)
                victim = max(traffic.pids, key=_started)
                traffic.wait_for_new_pids(1, functools.partial(os.kill, victim, signal.SIGKILL))
            traffic.wait_for_workers()
        assert server.stop() == 0
    check_records(traffic, lost_at_most=kills * threads)
    check_gone(traffic.pids)


def test_harakiri_loses_the_request_that_it_ends_and_no_other(tmp_path: Path) -> None:
    with serve(tmp_path, *_MASTER, "processes = 2", "harakiri = 1") as server:
        traffic = Traffic(server)
        with ThreadPoolExecutor(1) as pool:
            endless = pool.submit(fetch, server.address, "/forever/1")
            with traffic.flowing():
                traffic.wait_for(endless.done)
                traffic.wait_for_workers()
            assert endless.result() is None
        assert "HARAKIRI" in server.log()
        assert server.stop() == 0
    found = check_records(traffic)
    assert [record.path for _, record in found if record.path == "/forever/1"] == []


def test_a_collector_as_mule_hangs_neither_a_reload_nor_the_end(tmp_path: Path) -> None:
    listen = f"udp:127.0.0.1:{find_free_port()}"
    (tmp_path / "reqpath.ini").write_text(
        configuration.render_uwsgi(listen=listen, spool=str(tmp_path / "spool"))
    )
    with serve(
        tmp_path, *_MASTER, "processes = 2", _BINARY, "ini = %d/reqpath.ini", REQPATH_SPOOL=""
    ) as server:
        traffic = Traffic(server)
        with traffic.flowing():
            traffic.wait_for_more(50)
            traffic.wait_for_workers()
            traffic.wait_for_new_pids(2, lambda: server.process.send_signal(signal.SIGHUP))
            traffic.wait_for_workers()
        mules = {int(pid) for pid in re.findall(r"spawned uWSGI mule 1 \(pid: (\d+)\)", server.log())}
        assert len(mules) == 2
        assert server.stop() == 0
    for _, record in check_records(traffic):
        assert record.accept_ns is not None
        assert record.parsed_ns is not None
        # uWSGI's stamps are whole microseconds.
        assert record.accept_ns <= record.parsed_ns <= record.app_start_ns
    check_gone(traffic.pids | mules)


def test_under_gevent_requests_in_one_thread_keep_apart(tmp_path: Path) -> None:
    parties = 8
    with serve(
        tmp_path,
        *_MASTER,
        "processes = 1",
        "gevent = 20",
        "gevent-monkey-patch = true",
        PARTIES=str(parties),
    ) as server:
        paths = [f"/{'meet' if n % 2 else 'meet-also'}/{n}" for n in range(3 * parties)]
        with ThreadPoolExecutor(parties) as pool:
            answers = list(pool.map(lambda path: get(server, path), paths))
        with ThreadPoolExecutor(parties) as pool:
            streams = list(pool.map(lambda n: fetch(server.address, f"/stream/{n}"), range(parties)))
        assert [(200, b"chunk\n" * 4)] * parties == streams
        traffic = Traffic(server)
        traffic.run(100)
        assert server.stop() == 0
    assert len({who["pid"] for who in answers}) == 1
    found = check_records(traffic)
    by_path = {record.path: record for _, record in found}
    assert len(paths) + parties + 100 == len(by_path)
    for path, who in zip(paths, answers, strict=True):
        assert path.rpartition("/")[0] + "/<int:number>" == by_path[path].route
        assert who["core"] == by_path[path].core
    for info, record in found:
        # A thread's clock would tell of all its greenlets together.
        assert (record.cpu_ns, record.run_queue_ns) == (None, None)
        assert (info.concurrency, info.threads, info.processes) == ("greenlets", 20, 1)


@pytest.mark.parametrize("hooks", ["", "before", "after", "decorated", "decorated after"])
def test_a_file_goes_by_sendfile_and_the_hooks_of_the_app_still_run(hooks: str, tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 6 + b"the end"
    (tmp_path / "large").write_bytes(content)
    with serve(
        tmp_path,
        *_MASTER,
        "processes = 1",
        # The log of requests says by what they were answered.
        "disable-logging = false",
        LARGE_FILE=str(tmp_path / "large"),
        HOOKS=hooks,
        HOOK_FILE=str(tmp_path / "hooked"),
        FORK_FILE=str(tmp_path / "forked"),
    ) as server:
        get(server, "/r/1")
        for number in (2, 3):
            assert (200, content) == fetch(server.address, f"/file/{number}", _PAUSE_S)
        get(server, "/r/4")
        assert server.stop() == 0
    # uWSGI logs a request after it was answered.
    assert server.log().count("via sendfile()") == 2
    found = {record.path: record for _, record in server.records()}
    assert list(found) == ["/r/1", "/file/2", "/file/3", "/r/4"]
    for path in ("/file/2", "/file/3"):
        # Its end is that of the sending: much of it fits into no buffer, so it was there after the pause.
        assert (found[path].closed_offset_ns or 0) > _PAUSE_S * 1e9
        assert len(content) == found[path].response_bytes or found[path].response_bytes is None
    if hooks in ("before", "after"):
        assert (tmp_path / "hooked").read_bytes() == b"...."
    if hooks:
        assert (tmp_path / "forked").read_bytes() == b"."


@pytest.mark.parametrize("threads", [1, 4])
def test_every_kind_of_body_that_uwsgi_takes_goes_through(threads: int, tmp_path: Path) -> None:
    bodies = {
        "/list": b"a list",
        "/bytes": b"plain bytes",
        "/generator": b"made later",
        "/write": b"written and returned",
        "/memory-file": b"in memory",
    }
    with serve(tmp_path, *_MASTER, f"threads = {threads}", module="lifecycle_app:raw") as server:
        for path, body in bodies.items():
            assert (200, body) == fetch(server.address, path)
        # What uWSGI sends by itself is recorded after it has closed the connection.
        wait_until(lambda: len(server.records()) == len(bodies), 20.0, server.process)
        assert server.stop() == 0
    found = {record.path: record for _, record in server.records()}
    assert set(bodies) == set(found)
    for record in found.values():
        assert record.status == 200


def test_descriptors_do_not_grow_over_workers_and_each_writes_its_own_file(tmp_path: Path) -> None:
    counts = []
    with serve(
        tmp_path, *_MASTER, "processes = 1", "threads = 2", "touch-workers-reload = %d/touched"
    ) as server:
        (tmp_path / "touched").touch()
        traffic = Traffic(server)
        for generation in range(4):
            before = traffic.pids
            if generation:
                os.kill(max(before, key=_started), signal.SIGKILL)
            with traffic.flowing():
                traffic.wait_for_new_pids(1, lambda: None)
                traffic.wait_for_more(50)
            (pid,) = traffic.pids - before
            kinds = Counter(os.path.splitext(os.path.basename(path))[1] or path for path in _open_files(pid))
            assert kinds.pop(".rqp") == 1
            # One for each thread that has served a request.
            assert sum(count for path, count in kinds.items() if path.endswith("/schedstat")) <= 2
            counts.append(sum(count for path, count in kinds.items() if not path.endswith("/schedstat")))
        assert [path for path in _open_files(server.process.pid) if path.endswith(".rqp")] == []
        assert server.stop() == 0
    assert len(set(counts)) == 1, counts
    check_records(traffic, lost_at_most=3 * 2)


def _open_files(pid: int) -> list[str]:
    directory = f"/proc/{pid}/fd"
    return [os.readlink(f"{directory}/{number}") for number in os.listdir(directory)]


def _started(pid: int) -> int:
    """Return when a process was started, in the kernel's ticks; -1 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return -1
    return int(text.rpartition(")")[2].split()[19])


def test_a_child_that_the_app_forks_writes_records_of_its_own(tmp_path: Path) -> None:
    with serve(tmp_path, *_MASTER, "processes = 1") as server:
        get(server, "/r/1")
        who = get(server, "/fork/2")
        get(server, "/r/4")
        assert server.stop() == 0
    found = server.records()
    check_identity(found)
    assert {"/r/1", "/fork/2", "/r/3", "/r/4"} == {record.path for _, record in found}
    assert [record.path for info, record in found if info.pid != who["pid"]] == ["/r/3"]


def test_thousands_of_requests_through_reloads_and_deaths_lose_no_more_than_what_is_in_flight(
    tmp_path: Path,
) -> None:
    kills = 0
    with serve(
        tmp_path,
        *_MASTER,
        "processes = 2",
        "threads = 2",
        "lazy-apps = true",
        "master-fifo = %d/fifo",
    ) as server:
        traffic = Traffic(server)
        with traffic.flowing(clients=6):
            for turn in range(6):
                traffic.wait_for_more(1000)
                if turn % 2:
                    # While a chain is under way, uWSGI ignores the next: a death can hold it up.
                    _wait_for_chains(server)
                    traffic.wait_for_new_pids(2, lambda: _reload(server, b"c"))
                else:
                    kills += 1
                    victim = max(traffic.pids, key=_started)
                    traffic.wait_for_new_pids(1, functools.partial(os.kill, victim, signal.SIGKILL))
            # A chain's last reload is over before the workers are looked at.
            _wait_for_chains(server)
            traffic.wait_for_workers()
        assert server.stop() == 0
    found = check_records(traffic, lost_at_most=kills * 2)
    assert len(found) >= 6000 - kills * 2
    check_gone(traffic.pids)
