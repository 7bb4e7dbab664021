"""Every line ends as a record or in a count, and nothing that arrives ends the collector."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from reqpath.collect import receiver as receiver_module
from reqpath.collect.nginx import Rejection
from reqpath.collect.receiver import (
    Counts,
    DatagramSource,
    FileSource,
    Receiver,
    Source,
    stopped_by_signals,
)
from reqpath.configuration import Listen, parse_listen
from reqpath.errors import ConfigurationError, SpoolError
from reqpath.record import NginxRecord, Record
from reqpath.servers.process import find_free_port
from reqpath.settings import Settings
from reqpath.spool import SpoolReader
from tests.collect.lines import build_line, build_numbered_line

ReadRecords = Callable[[str], list[Record]]


@pytest.fixture(params=["udp", "unix"])
def listen(request: pytest.FixtureRequest, tmp_path: Path) -> Listen:
    """Return an address of each kind."""
    if request.param == "unix":
        return parse_listen(f"unix:{tmp_path}/log.sock")
    return parse_listen(f"udp:127.0.0.1:{find_free_port()}")


@contextlib.contextmanager
def _sender(listen: Listen) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX if listen.is_unix else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(listen.path or (listen.host, listen.port))
        yield sender


def _send(listen: Listen, lines: Sequence[bytes]) -> None:
    with _sender(listen) as sender:
        for line in lines:
            sender.send(line)


def _collect(spool: str, *sources: Source, messages: list[str] | None = None) -> Counts:
    """Take what is there already, and stop."""
    receiver = Receiver(
        Settings(spool=spool), sources, report=(messages if messages is not None else []).append
    )
    receiver.stop()
    return receiver.run()


def _trace_ids(records: list[Record]) -> list[int]:
    return [int(record.trace_id, 16) for record in records]


def test_lines_become_records_in_the_order_of_their_coming(
    listen: Listen, spool: str, read_records: ReadRecords
) -> None:
    with contextlib.closing(DatagramSource(listen)) as source:
        _send(listen, [build_numbered_line(number) for number in (1, 2, 3)])
        counts = _collect(spool, source)
    records = read_records(spool)
    assert _trace_ids(records) == [1, 2, 3]
    assert [record.sequence for record in records] == [0, 1, 2]
    assert counts == Counts(recorded=3)


def test_the_spool_says_that_nginx_is_the_writer(spool: str, listen: Listen) -> None:
    with contextlib.closing(DatagramSource(listen)) as source:
        _send(listen, [build_line()])
        _collect(spool, source)
    ((info, _records),) = SpoolReader(spool).read()
    assert (info.kind, info.server, info.pid) == ("nginx", "nginx", os.getpid())


def test_a_line_that_is_none_is_counted_and_the_next_one_is_taken(
    listen: Listen, spool: str, read_records: ReadRecords
) -> None:
    messages: list[str] = []
    with contextlib.closing(DatagramSource(listen)) as source:
        _send(listen, [b"\xff\x00", b"", b"garbage", build_line()[:99], build_numbered_line(7)])
        counts = _collect(spool, source, messages=messages)
    assert _trace_ids(read_records(spool)) == [7]
    assert dict(counts.rejected) == {Rejection.FORMAT: 3, Rejection.CUT: 1}
    assert counts.received == 5
    assert len(messages) == 2, "one message for each reason"


def test_what_the_kernel_drops_is_counted_once(spool: str) -> None:
    listen = parse_listen(f"udp:127.0.0.1:{find_free_port()}")
    messages: list[str] = []
    with contextlib.closing(DatagramSource(listen)) as source:
        _send(listen, [build_line(more="x" * 60_000)] * 600)
        counts = _collect(spool, source, messages=messages)
        assert counts.recorded + counts.kernel_dropped == 600
        assert counts.kernel_dropped > 0
        assert source.take_drops() == 0
    assert [message for message in messages if "kernel dropped" in message]


def test_a_reader_counts_dropped_lines_as_lost(spool: str, tmp_path: Path) -> None:
    class Dropping(FileSource):
        def take_drops(self) -> int:
            return 3

    log = tmp_path / "log"
    log.write_bytes(build_line())
    with contextlib.closing(Dropping(str(log))) as source:
        Receiver(Settings(spool=spool), [source], report=list[str]().append).run()
    reader = SpoolReader(spool)
    assert [len(records) for _info, records in reader.read()] == [1]
    assert reader.losses.lost_records == 3


def test_a_file_is_read_to_its_end(spool: str, tmp_path: Path, read_records: ReadRecords) -> None:
    log = tmp_path / "access.log"
    log.write_bytes(b"\n".join([build_numbered_line(1), b"", b"garbage", build_numbered_line(2)]))
    with contextlib.closing(FileSource(str(log))) as source:
        counts = Receiver(Settings(spool=spool), [source], report=list[str]().append).run()
    assert _trace_ids(read_records(spool)) == [1, 2]
    assert counts.rejected.total() == 1


def test_a_file_without_a_line_is_taken_in_bounded_pieces(
    spool: str, tmp_path: Path, read_records: ReadRecords
) -> None:
    log = tmp_path / "access.log"
    log.write_bytes(b"x" * 1_000_000 + b"\n" + build_numbered_line(5) + b"\n")
    with contextlib.closing(FileSource(str(log))) as source:
        counts = Receiver(Settings(spool=spool), [source], report=list[str]().append).run()
    assert _trace_ids(read_records(spool)) == [5]
    assert counts.rejected.total() > 1


def test_a_pipe_is_read_as_it_is_written(spool: str, read_records: ReadRecords) -> None:
    read_end, write_end = os.pipe()
    line = build_numbered_line(9) + b"\n"
    try:
        with contextlib.closing(FileSource(f"/proc/self/fd/{read_end}")) as source:
            os.write(write_end, line[:50])
            assert source.read_lines() == []
            os.write(write_end, line[50:])
            assert source.read_lines() == [line[:-1]]
            os.close(write_end)
            write_end = -1
            assert source.read_lines() is None
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)


def test_records_that_the_spool_cannot_take_are_counted(listen: Listen, spool: str) -> None:
    messages: list[str] = []
    with contextlib.closing(DatagramSource(listen)) as source:
        receiver = Receiver(Settings(spool=spool), [source], report=messages.append)
        shutil.rmtree(spool)
        Path(spool).write_text("in the way")
        _send(listen, [build_line()] * 2)
        receiver.stop()
        counts = receiver.run()
    assert counts == Counts(spool_dropped=2)
    assert messages


def test_a_signal_ends_it_after_what_is_there(listen: Listen, spool: str, read_records: ReadRecords) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.closing(DatagramSource(listen)) as source:
        receiver = Receiver(Settings(spool=spool), [source], report=list[str]().append)
        with stopped_by_signals(receiver):
            _send(listen, [build_numbered_line(1)])
            os.kill(os.getpid(), signal.SIGTERM)
            receiver.run()
    assert _trace_ids(read_records(spool)) == [1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_work_that_never_ends_keeps_no_line_waiting(
    listen: Listen, spool: str, read_records: ReadRecords
) -> None:
    turns: list[int] = []
    with contextlib.closing(DatagramSource(listen)) as source:

        def work() -> int:
            turns.append(receiver.counts.recorded)
            if len(turns) <= 3:
                _send(listen, [build_numbered_line(len(turns))])
            elif len(turns) > 20:
                receiver.stop()
            # It wants to go on at once.
            return 0

        receiver = Receiver(Settings(spool=spool), [source], report=list[str]().append, work=work)
        assert receiver.run().recorded == 3
    # Each line is taken in the turn in which it came.
    assert turns[:5] == [0, 1, 2, 3, 3]
    assert _trace_ids(read_records(spool)) == [1, 2, 3]


def test_it_goes_on_until_it_may_stop(listen: Listen, spool: str, read_records: ReadRecords) -> None:
    with contextlib.closing(DatagramSource(listen)) as source, _sender(listen) as sender:
        receiver = Receiver(Settings(spool=spool), [source], report=list[str]().append)
        left = iter([1, 2, 3])

        def may_stop() -> bool:
            number = next(left, None)
            if number is not None:
                sender.send(build_numbered_line(number))
            return number is None

        receiver.stop(when=may_stop)
        receiver.run()
    assert _trace_ids(read_records(spool)) == [1, 2, 3]


def test_lines_gather_only_where_the_kernel_holds_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_gather_s(buffer_bytes: int, address: str) -> float:
        monkeypatch.setattr(receiver_module, "_BUFFER_BYTES", buffer_bytes)
        with contextlib.closing(DatagramSource(parse_listen(address))) as source:
            return source.gather_s

    udp = f"udp:127.0.0.1:{find_free_port()}"
    # What the kernel gives is twice of what it is asked for: room for 160 lines, 10 ms of them.
    assert find_gather_s(102_400, udp) == pytest.approx(0.01)
    assert find_gather_s(204_800, udp) == pytest.approx(0.02)
    assert find_gather_s(204_800, f"unix:{tmp_path}/log.sock") == 0


def test_a_unix_socket_can_be_written_by_nginxs_user_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    with contextlib.closing(DatagramSource(Listen(path=str(path)))):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert not path.exists()


def test_a_unix_sockets_mode_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    with contextlib.closing(DatagramSource(Listen(path=str(path)), mode=0o660)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_the_socket_of_a_killed_collector_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "log.sock")
    DatagramSource(Listen(path=path), keep_path=True).close()
    assert os.path.exists(path)
    DatagramSource(Listen(path=path)).close()
    assert not os.path.exists(path)


def test_a_path_that_another_collector_took_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    first = DatagramSource(Listen(path=str(path)))
    path.rename(tmp_path / "moved")
    with contextlib.closing(DatagramSource(Listen(path=str(path)))):
        first.close()
        assert path.exists()


def test_an_address_in_use_is_refused(listen: Listen) -> None:
    with (
        contextlib.closing(DatagramSource(listen)),
        pytest.raises(ConfigurationError, match="collector"),
    ):
        DatagramSource(listen)


def test_a_file_in_the_sockets_place_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    path.write_text("precious")
    with pytest.raises(ConfigurationError, match="no socket"):
        DatagramSource(Listen(path=str(path)))
    assert path.read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a socket away")
def test_a_socket_of_another_user_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.sock"
    DatagramSource(Listen(path=str(path)), keep_path=True).close()
    os.chown(path, 12345, 12345)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(ConfigurationError, match="belongs to uid 12345"):
        DatagramSource(Listen(path=str(path)))
    assert path.exists()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such directory"):
        DatagramSource(Listen(path=str(tmp_path / "none" / "log.sock")))


def test_a_foreign_address_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no such address"):
        DatagramSource(Listen("192.0.2.1", 5170))


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't read the log"):
        FileSource(str(tmp_path / "none"))


def test_a_directory_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="directory"):
        FileSource(str(tmp_path))


def test_a_spool_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(SpoolError, match="chmod 700"):
        Receiver(Settings(spool=str(tmp_path)), [], report=list[str]().append)


def test_lines_of_either_family_arrive(spool: str, read_records: ReadRecords) -> None:
    try:
        source = DatagramSource(parse_listen(f"udp:[::1]:{find_free_port()}"))
    except ConfigurationError:
        pytest.skip("this machine has no IPv6 loopback")
    with contextlib.closing(source), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        duplicate = socket.socket(fileno=os.dup(source.fileno()))
        with contextlib.closing(duplicate):
            sender.connect(duplicate.getsockname())
        sender.send(build_line())
        _collect(spool, source)
    assert isinstance(read_records(spool)[0], NginxRecord)
