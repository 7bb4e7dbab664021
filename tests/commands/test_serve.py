"""`reqpath serve`: what it reads, when it makes figures, and how it starts and ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from reqpath.analyse.recent import RecentWindow
from reqpath.commands import serve
from reqpath.commands.page_server import PageServer, pack
from reqpath.commands.serve import Feed, Publisher, parse_window
from reqpath.errors import ConfigurationError, SpoolError
from reqpath.record import encode
from reqpath.render.page import build_page
from reqpath.render.page_report import render_live_page
from reqpath.spool import SpoolWriter
from tests.factories import NOW_NS, make_path, make_writer_info

MS = 1_000_000
S = 1_000_000_000
WINDOW_NS = 60 * S


class Clock:
    """What `serve` takes from `time`, at a standstill; each build is told to take so much CPU time."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.cpu_s = 0.0
        self.build_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def thread_time(self) -> float:
        self.cpu_s += self.build_s
        return self.cpu_s

    def time_ns(self) -> int:
        return time.time_ns()

    def localtime(self) -> time.struct_time:
        return time.localtime()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(serve, "time", clock)
    return clock


@pytest.fixture
def writer(spool: str) -> Iterator[SpoolWriter]:
    writer = open_writer(spool)
    yield writer
    writer.close()


def open_writer(spool: str) -> SpoolWriter:
    return SpoolWriter(
        spool,
        lambda writer_id: make_writer_info(writer_id=writer_id, created_ns=time.time_ns(), worker=1),
        max_bytes=1 << 20,
        report=print,
    )


def write(writer: SpoolWriter, count: int, *, ago_ns: int = 0, **overrides: Any) -> None:
    """Write the records of requests that ended so long ago."""
    for _ in range(count):
        sequence = writer.next_sequence()
        at_ns = time.time_ns() - NOW_NS - 12 * MS - ago_ns
        worker = make_path(at_ns=at_ns, number=sequence, **overrides).worker
        assert worker is not None
        # Without nginx it is complete at once.
        alone = msgspec.structs.replace(worker, parent_id="", sequence=sequence)
        assert writer.append(encode(alone))


def make_feed(spool: str, *, route: str | None = None) -> Feed:
    return Feed(spool, RecentWindow(WINDOW_NS), route)


def read(feed: Feed) -> int:
    while feed.read(time.time_ns()):
        pass
    return feed.window.requests


def build(publisher: Publisher) -> Any:
    return json.loads(publisher.build("1"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10), ("90s", 90), ("15m", 900), ("1.5h", 5_400), ("24h", 86_400)]
)
def test_the_window_has_a_length(text: str, seconds: int) -> None:
    assert parse_window(text) == seconds * S


@pytest.mark.parametrize("text", ["1s", "2d", "0s", "2026-01-31T12:00", "15", "", "-3m"])
def test_a_window_is_neither_an_instant_nor_without_bounds(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--since is "):
        parse_window(text)


def test_only_what_was_added_is_read(spool: str, writer: SpoolWriter) -> None:
    write(writer, 10)
    feed = make_feed(spool)
    assert read(feed) == 10
    assert read(feed) == 10
    write(writer, 5)
    assert read(feed) == 15
    assert feed.caught_up
    assert feed.losses().lost_records == 0


def test_one_route_can_be_picked(spool: str, writer: SpoolWriter) -> None:
    write(writer, 3, route="/about", path="/about")
    write(writer, 4)
    assert read(make_feed(spool, route="/about")) == 3


def test_a_spool_that_is_not_there_yet_is_waited_for(spool: str) -> None:
    feed = make_feed(spool)
    assert not feed.open()
    assert read(feed) == 0
    assert " ".join(feed.problem or ()).startswith(f"There is no spool at {spool} yet. ")
    assert "reqpath demo" in build(Publisher(feed, None))["live"]["advice"]
    writer = open_writer(spool)
    write(writer, 2)
    assert read(feed) == 2
    assert feed.problem is None
    writer.close()


def test_a_spool_that_can_not_be_read_is_an_error_that_says_what_to_do(
    spool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(spool).mkdir()

    def refuse(_directory: str) -> list[str]:
        raise PermissionError(13, "Permission denied")

    feed = make_feed(spool)
    with monkeypatch.context() as patch:
        patch.setattr("reqpath.spool.reader.os.listdir", refuse)
        with pytest.raises(SpoolError, match="run this as that user or as root"):
            feed.open()
        # While it serves, it is told on the page, and tried again.
        assert read(feed) == 0
        assert "run this as that user or as root" in build(Publisher(feed, None))["live"]["waiting"]
    read(feed)
    assert feed.problem is None


def test_a_spool_behind_a_closed_directory_is_not_waited_for(
    spool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_directory: str) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", refuse)
        patch.setattr(os, "listdir", refuse)
        with pytest.raises(SpoolError, match="run this as that user or as root"):
            make_feed(spool).open()


def test_files_from_before_the_window_are_not_read_and_not_lost(spool: str) -> None:
    old = open_writer(spool)
    write(old, 20, ago_ns=600 * S)
    before_s = time.time() - 600
    for file in Path(spool).glob("*.rqp"):
        os.utime(file, (before_s, before_s))
    young = open_writer(spool)
    write(young, 3)
    feed = make_feed(spool)
    assert read(feed) == 3
    # Its writer is still alive, and goes on where it was.
    write(old, 2)
    assert read(feed) == 5
    assert feed.losses().lost_records == 0
    old.close()
    young.close()


def test_what_is_lost_while_it_serves_is_told(spool: str, writer: SpoolWriter) -> None:
    writer.next_sequence()
    write(writer, 3)
    feed = make_feed(spool)
    read(feed)
    # Before it began.
    assert feed.losses().lost_records == 0
    writer.next_sequence()
    writer.next_sequence()
    write(writer, 1)
    read(feed)
    assert feed.losses().lost_records == 2
    assert "lost 2 records" in [what for what, _ in build(Publisher(feed, None))["notes"]]


def test_figures_are_those_of_the_page(spool: str, writer: SpoolWriter) -> None:
    write(writer, 30, query_ns=MS)
    feed = make_feed(spool)
    read(feed)
    data = build(Publisher(feed, "http://localhost:16686"))
    assert data["report"]["requests"] == 30
    assert data["jaeger"] == "http://localhost:16686"
    assert (data["live"]["waiting"], data["live"]["note"]) == (None, None)
    assert data["live"]["what"] == f"the last 1 min of the spool {spool}"


def test_without_requests_it_says_when_the_newest_was(spool: str, writer: SpoolWriter) -> None:
    write(writer, 1, ago_ns=600 * S)
    feed = make_feed(spool, route="/items/*")
    read(feed)
    data = build(Publisher(feed, None))
    assert data["report"] == {"requests": 0}
    assert data["live"]["what"].endswith(", /items/* alone")
    assert data["live"]["waiting"] == "No request of /items/* has ended in the last 1 min."
    assert re.match(r"The newest ended at [\d :-]+; reqpath report has older ones\. ", data["live"]["advice"])


def test_too_many_requests_are_said_to_be_fewer(spool: str, writer: SpoolWriter) -> None:
    write(writer, 200)
    feed = Feed(spool, RecentWindow(WINDOW_NS, max_requests=100), None)
    feed.open()
    for _ in range(3):
        write(writer, 40)
        read(feed)
    assert build(Publisher(feed, None))["live"]["note"].startswith("At most 100 requests are held")


@pytest.fixture
def server() -> Iterator[PageServer]:
    with PageServer("127.0.0.1", 0, pack("text/html", "")) as server:
        yield server


def test_figures_are_made_for_who_asks_and_only_when_they_are_others(
    spool: str, writer: SpoolWriter, server: PageServer, clock: Clock
) -> None:
    feed = make_feed(spool)
    publisher = Publisher(feed, None)

    def publish() -> str | None:
        clock.now_s += 5
        read(feed)
        publisher.publish_to(server)
        return server.figures and server.figures[0]

    write(writer, 1)
    assert publish() is None
    server.asked_s = clock.now_s
    first = publish()
    assert first is not None
    server.asked_s = clock.now_s
    assert publish() == first
    write(writer, 1)
    second = publish()
    assert second != first
    # Nobody has asked for a while.
    clock.now_s += 60
    write(writer, 1)
    assert publish() == second


def test_making_figures_takes_a_fifth_of_a_core_at_most(
    spool: str, writer: SpoolWriter, server: PageServer, clock: Clock
) -> None:
    feed = make_feed(spool)
    publisher = Publisher(feed, None)
    clock.build_s = 0.75
    published = []
    for _ in range(240):
        write(writer, 1)
        server.asked_s = clock.now_s
        read(feed)
        publisher.publish_to(server)
        if server.figures and server.figures[0] not in published:
            published.append(server.figures[0])
        clock.now_s += 0.25
    # 60 s.
    assert len(published) == 20


def test_the_page_may_ask_its_own_server_and_nobody_else() -> None:
    def policy(page: str) -> str:
        match = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
        assert match is not None
        return match[1]

    live = policy(render_live_page({"tag": ""}))
    assert live.startswith("default-src 'none'; script-src 'sha256-")
    assert live.endswith("; connect-src 'self'")
    assert "connect-src" not in policy(build_page("", "", {}, ()))


def run(*arguments: str) -> subprocess.Popen[str]:
    # Python ignores Ctrl-C where it was started with it ignored, as in a shell's background.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from reqpath.cli import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fetch(url: str) -> Any:
    """Ask until there are figures."""
    for _ in range(600):
        with urllib.request.urlopen(f"{url}data?after=", timeout=30) as response:
            if response.status == 200:
                return json.loads(response.read())
        time.sleep(0.05)
    raise AssertionError("no figures")


def read_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    match = re.match(r"(http://\S+/)  the last ", line)
    assert match is not None, line + str(process.stderr and process.stderr.read())
    return match[1]


def test_it_serves_a_spool_and_ends_by_ctrl_c(spool: str, writer: SpoolWriter) -> None:
    write(writer, 25)
    with run(spool, "--port", "0") as process:
        url = read_url(process)
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url, timeout=30) as response:
            assert b"<title>reqpath serve</title>" in response.read()
        assert fetch(url)["report"]["requests"] == 25
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "", "")


def test_it_waits_for_a_spool_and_says_so(spool: str) -> None:
    with run(spool, "--port", "0", "--since", "5m") as process:
        url = read_url(process)
        data = fetch(url)
        assert data["report"]["requests"] == 0
        assert "There is no spool" in data["live"]["waiting"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors.startswith(f"There is no spool at {spool} yet. It is shown as soon as ")


def test_an_address_for_others_comes_with_a_warning(spool: str) -> None:
    Path(spool).mkdir(mode=0o700)
    with run(spool, "--port", "0", "--host", "0.0.0.0") as process:
        read_url(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert errors.startswith("warning: every machine that reaches 0.0.0.0 can read this page")


def test_a_port_that_is_taken_ends_it(spool: str, server: PageServer) -> None:
    Path(spool).mkdir(mode=0o700)
    port = str(server.server_address[1])
    with run(spool, "--port", port) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, "")
    assert errors.startswith(f"reqpath: port {port} is taken; name another with --port")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jaeger", "javascript:alert(1)"], "--jaeger is 'javascript:alert(1)'; it takes an address"),
        (["--port", "70000"], "70000 is not in the range"),
    ],
)
def test_a_wrong_option_is_said(spool: str, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(serve.command, [spool, *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_a_file_is_no_spool(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(serve.command, [str(tmp_path / "file")])
    assert isinstance(result.exception, SpoolError)
