"""`reqpath top` on a real terminal: tmux's, by keys, as over ssh."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from reqpath.record import encode
from reqpath.spool import SpoolWriter
from tests.factories import NOW_NS, make_path, make_writer_info

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed: apt-get install tmux"),
]

MS = 1_000_000
ATTEMPTS = 600


class Terminal:
    """A terminal of 80 by 24 in which a command runs, and after it an `ended` with its exit code."""

    def __init__(self, directory: Path, command: str) -> None:
        self._tmux = ("tmux", "-u", "-S", str(directory / "tmux"), "-f", "/dev/null")
        # `read` keeps the last screen until the server is killed.
        script = f"{command}; echo ended $?; read _"
        self._run("new-session", "-d", "-x", "80", "-y", "24", "sh", "-c", script)

    def _run(self, *arguments: str) -> str:
        return subprocess.run(
            (*self._tmux, *arguments),
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
        ).stdout

    def look(self) -> str:
        """Return what is on the screen."""
        return self._run("capture-pane", "-p")

    def see(self, *texts: str) -> str:
        """Return the screen once all these texts are on it."""
        screen = ""
        for _ in range(ATTEMPTS):
            screen = self.look()
            if all(text in screen for text in texts):
                return screen
            time.sleep(0.05)
        raise AssertionError(f"{texts} not on the screen:\n{screen}")

    def press(self, *keys: str) -> None:
        """Press keys, by tmux's names."""
        self._run("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        """Make the terminal of another size."""
        self._run("resize-window", "-x", str(columns), "-y", str(rows))

    def close(self) -> None:
        """End the terminal and what runs in it."""
        subprocess.run((*self._tmux, "kill-server"), check=False, capture_output=True)


Open = Callable[..., Terminal]


@pytest.fixture
def open_top(tmp_path: Path) -> Iterator[Open]:
    """Return a function that opens `reqpath top` on a terminal."""
    terminals: list[Terminal] = []

    def open_terminal(*arguments: str, prefix: Sequence[str] = ()) -> Terminal:
        command = shlex.join([*prefix, str(Path(sys.executable).with_name("reqpath")), "top", *arguments])
        terminals.append(Terminal(tmp_path, command))
        return terminals[-1]

    yield open_terminal
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def writer(spool: str) -> Iterator[SpoolWriter]:
    """Return a worker's writer."""
    writer = SpoolWriter(
        spool,
        lambda writer_id: make_writer_info(writer_id=writer_id, created_ns=time.time_ns(), worker=1),
        max_bytes=1 << 20,
        report=print,
    )
    yield writer
    writer.close()


def write(writer: SpoolWriter, number: int, *, query_ns: int = 0, statement: str = "SELECT ?") -> None:
    """Write the record of a request that has just ended."""
    total_ns = 12 * MS + query_ns
    at_ns = time.time_ns() - NOW_NS - total_ns
    worker = make_path(total_ns, at_ns=at_ns, query_ns=query_ns, statement=statement, number=number).worker
    assert worker is not None
    # Without nginx it is complete at once.
    alone = msgspec.structs.replace(worker, parent_id="", sequence=writer.next_sequence())
    assert writer.append(encode(alone))


def test_a_slow_query_shows_and_opens_as_a_waterfall(open_top: Open, writer: SpoolWriter, spool: str) -> None:
    for number in range(20):
        write(writer, number, query_ns=3 * MS)
    terminal = open_top(spool)
    terminal.see("mysql", "flask", "slowest", "open", "quit")
    write(writer, 99, query_ns=700 * MS, statement="SELECT sold FROM goods ORDER BY reviews")
    screen = terminal.see("mysql.query 6")
    assert all(len(line) <= 80 for line in screen.splitlines())
    terminal.press("Enter")
    terminal.see("SELECT sold FROM go", "esc back")
    terminal.press("Escape")
    terminal.see("mysql.query 6")
    terminal.press("q")
    terminal.see("ended 0")


def test_what_was_written_long_ago_is_not_read(open_top: Open, writer: SpoolWriter, spool: str) -> None:
    write(writer, 1, query_ns=700 * MS)
    for file in Path(spool).iterdir():
        os.utime(file, (time.time() - 3600,) * 2)
    terminal = open_top(spool)
    terminal.see("waiting for requests")
    write(writer, 2)
    screen = terminal.see("slowest", "/items/<int:id>")
    assert "mysql.query 6" not in screen
    terminal.press("q")
    terminal.see("ended 0")


def test_it_fits_the_terminal_when_that_changes(open_top: Open, writer: SpoolWriter, spool: str) -> None:
    write(writer, 1)
    terminal = open_top(spool)
    terminal.see("slowest")
    terminal.resize(130, 40)
    wide = terminal.see("slowest")
    terminal.resize(60, 20)
    terminal.see("slowest")
    assert max(map(len, wide.splitlines())) <= 130
    terminal.press("C-c")
    terminal.see("ended 0")


def test_an_empty_spool_says_what_it_waits_for_and_then_shows_it(
    open_top: Open, writer: SpoolWriter, spool: str
) -> None:
    os.mkdir(spool, 0o700)
    terminal = open_top(spool)
    terminal.see("waiting for requests", "REQPATH_SPOOL")
    write(writer, 1)
    terminal.see("slowest", "/items/<int:id>")
    terminal.press("q")
    terminal.see("ended 0")


def test_a_spool_that_is_not_there_is_an_error_that_says_what_to_do(open_top: Open, tmp_path: Path) -> None:
    terminal = open_top(str(tmp_path / "none"))
    terminal.see("there is no spool at", "ended 2")


def test_another_users_spool_is_an_error_that_says_who_may_read_it(
    open_top: Open, writer: SpoolWriter, spool: str
) -> None:
    write(writer, 1)
    prefix: Sequence[str] = ()
    if os.geteuid() == 0:
        # Root without its capabilities is a user like any other.
        os.chown(spool, 12_345, 12_345)
        prefix = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
    else:
        os.chmod(spool, 0)
    try:
        terminal = open_top(spool, prefix=prefix)
        screen = terminal.see("ended 2")
    finally:
        os.chmod(spool, 0o700)
    assert "can't read the spool" in screen
    # The terminal breaks the line wherever its 80 columns end.
    assert "runthisasthatuserorasroot" in "".join(screen.split())
