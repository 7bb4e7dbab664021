"""The spool: what is appended is read, and what can't be is counted."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reqpath.errors import SpoolError
from reqpath.forks import NO_PROCESS, Mark
from reqpath.raw import RAW_TAG, RawRecord
from reqpath.record import FORMAT_VERSION, NginxRecord, Record, WorkerRecord, WriterInfo, encode
from reqpath.spool import (
    EVICTED,
    MAGIC,
    MAX_FRAME_BYTES,
    SUFFIX,
    Bookmark,
    SpoolReader,
    SpoolWriter,
    prepare_spool,
)
from reqpath.spool.files import evict_file, list_files
from reqpath.spool.writer import _Process
from reqpath.stamps import ALWAYS_COPIED
from tests.factories import NOW_NS, make_nginx_record, make_worker_record, make_writer_info
from tests.strategies import lines as nginx_lines
from tests.strategies import raw_records

MEGABYTE = 1 << 20
#: The index of a route in a record's values, after the tag.
ROUTE_AT = 1 + RawRecord.__struct_fields__.index("route")
ReadRecords = Callable[[str], list[Record]]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def make_writer(spool: str, messages: list[str] | None = None, **options: object) -> SpoolWriter:
    arguments: dict[str, object] = {"max_bytes": 64 * MEGABYTE, "retry_s": 0} | options
    return SpoolWriter(
        spool,
        lambda writer_id: make_writer_info(writer_id=writer_id, pid=os.getpid()),
        report=(messages if messages is not None else []).append,
        **arguments,  # type: ignore[arg-type]  # each test names what it needs
    )


def write(writer: SpoolWriter, count: int = 1, padding: int = 0) -> list[bool]:
    return [writer.append_record(values(route="x" * padding), time.monotonic_ns()) for _ in range(count)]


def values(**overrides: Any) -> list[Any]:
    """Return a worker's record as it is appended."""
    raw = RawRecord(NOW_NS, [None] * ALWAYS_COPIED, [0, 5, 0, 7], 1, 0, None, **overrides)
    return [RAW_TAG, *msgspec.structs.astuple(raw)]


def spool_files(spool: str) -> list[str]:
    return sorted(os.path.join(spool, name) for name in os.listdir(spool) if name.endswith(SUFFIX))


@pytest.fixture
def writer(spool: str) -> Iterator[SpoolWriter]:
    writer = make_writer(spool)
    yield writer
    writer.close()


def test_what_is_appended_is_read(spool: str, writer: SpoolWriter) -> None:
    records: list[Record] = [make_worker_record(sequence=0), make_nginx_record(sequence=1)]
    for record in records:
        writer.next_sequence()
        assert writer.append(encode(record))
    ((info, read),) = SpoolReader(spool).read()
    assert records == read
    assert os.getpid() == info.pid


@pytest.mark.parametrize("odd", ["x" * 20_000, "\ud800"])
def test_a_record_that_is_long_or_can_not_be_encoded_is_appended_as_what_can_be_kept(
    spool: str, odd: str
) -> None:
    def keep_what_can_be(record: list[Any]) -> bytes:
        return encode([*record[:ROUTE_AT], "odd"])

    writer = make_writer(spool, encode_odd=keep_what_can_be)
    for name in ("a longer name before", odd, "after"):
        assert writer.append_record(values(route=name), time.monotonic_ns())
    writer.close()
    ((_, records),) = SpoolReader(spool).read()
    names = [record.route for record in records if isinstance(record, WorkerRecord)]
    assert names == ["a longer name before", "odd", "after"]
    assert [record.sequence for record in records] == [0, 1, 2]


def test_the_spool_and_its_files_are_their_owners_alone(spool: str, writer: SpoolWriter) -> None:
    previous = os.umask(0)
    try:
        write(writer)
    finally:
        os.umask(previous)
    assert os.stat(spool).st_mode & 0o777 == 0o700
    assert os.stat(spool_files(spool)[0]).st_mode & 0o777 == 0o600


def test_a_torn_tail_is_skipped_and_counted(spool: str, writer: SpoolWriter) -> None:
    write(writer, 3)
    (path,) = spool_files(spool)
    os.truncate(path, os.path.getsize(path) - 5)
    reader = SpoolReader(spool)
    assert [record.sequence for _, records in reader.read() for record in records] == [0, 1]
    assert len(encode(values(route=""))) + 4 - 5 == reader.losses.torn_bytes


def test_a_torn_frame_in_the_middle_ends_the_file_and_its_records_are_counted_as_lost(
    spool: str, writer: SpoolWriter
) -> None:
    def append(count: int = 1) -> None:
        for _ in range(count):
            writer.append(encode(make_worker_record(sequence=writer.next_sequence())))

    append(3)
    (path,) = spool_files(spool)
    whole = Path(path).read_bytes()
    frame = 4 + len(encode(make_worker_record(sequence=2)))
    with open(path, "wb") as file:  # the second record lost its last 10 bytes
        file.write(whole[: -frame - 10] + whole[-frame:])
    append()
    Path(path).rename(os.path.join(spool, "a" + SUFFIX))
    writer.close()
    append()
    reader = SpoolReader(spool)
    sequences = [record.sequence for _, records in reader.read() for record in records]
    assert sorted(sequences) == [0, 4]
    assert reader.losses.lost_records == 3
    # The stump and ten bytes of the third are a frame that is no msgpack: nothing from there on is read.
    assert reader.losses.torn_bytes == 3 * frame - 10


def test_a_frame_that_is_no_record_is_lost_alone(spool: str, writer: SpoolWriter) -> None:
    write(writer)
    writer.next_sequence()
    writer.append(encode([99, "of a newer reqpath"]))
    write(writer)
    reader = SpoolReader(spool)
    assert [record.sequence for _, records in reader.read() for record in records] == [0, 2]
    assert reader.losses.lost_records == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04 and so on, not ours at all", "not a spool file"),
        (os.urandom(4096).replace(b"r", b"s"), "not a spool file"),
        (b"reqpath\x02" + b"\0" * 100, "not a spool file"),
        (MAGIC + b"\xff\xff\xff\xff" + b"x" * 100, "not a spool file"),
        (MAGIC + b"\x03\0\0\0abc" + b"x" * 100, "not a spool file"),
    ],
    ids=["zip", "random", "another magic", "absurd length", "no writer"],
)
def test_a_foreign_file_is_named_and_the_others_are_read(
    spool: str, writer: SpoolWriter, content: bytes, reason: str
) -> None:
    write(writer, 2)
    Path(spool, "foreign.rqp").write_bytes(content)
    reader = SpoolReader(spool)
    assert [record.sequence for _, records in reader.read() for record in records] == [0, 1]
    assert reader.losses.foreign_files["foreign.rqp"].startswith(reason)
    assert reader.losses.lost_records == 0


def test_a_file_of_a_newer_format_says_what_to_do(spool: str, writer: SpoolWriter) -> None:
    write(writer)
    info = encode(make_writer_info(format_version=FORMAT_VERSION + 1, reqpath_version="9.0"))
    Path(spool, "newer.rqp").write_bytes(MAGIC + len(info).to_bytes(4, "little") + info)
    reader = SpoolReader(spool)
    assert len(list(reader.read())) == 1
    assert reader.losses.foreign_files == {"newer.rqp": "written by reqpath 9.0; upgrade to read it"}


def test_an_empty_file_and_files_of_other_names_are_no_trouble(spool: str, writer: SpoolWriter) -> None:
    write(writer)
    Path(spool, "empty.rqp").touch()
    Path(spool, "notes.txt").write_text("hello")
    Path(spool, "link.rqp").symlink_to("/etc/passwd")
    os.mkfifo(os.path.join(spool, "pipe.rqp"))
    reader = SpoolReader(spool)
    assert len(list(reader.read())) == 1
    assert reader.losses.foreign_files == {}


def test_threads_lose_nothing_through_rotations(spool: str, writer: SpoolWriter) -> None:
    small = make_writer(spool, max_bytes=64 * MEGABYTE)
    small._file_bytes = 16 << 10  # rotate every few dozen records
    small._step_bytes = 2 << 10
    start = threading.Barrier(16)

    def run() -> None:
        start.wait()
        assert all(write(small, 200, padding=300))

    threads = [threading.Thread(target=run) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = SpoolReader(spool)
    sequences = [record.sequence for _, records in reader.read() for record in records]
    assert list(range(3200)) == sorted(sequences)
    assert reader.losses.torn_bytes == 0
    assert len(spool_files(spool)) > 5
    small.close()


def test_the_first_records_of_many_threads_are_all_kept(
    spool: str, monkeypatch: pytest.MonkeyPatch, read_records: ReadRecords
) -> None:
    """The threads of a forked worker get here at the same moment, before there is a file."""
    messages: list[str] = []
    opening = threading.Event()
    goes_on = threading.Event()

    def build_slowly(writer_id: str) -> WriterInfo:
        if not opening.is_set():
            opening.set()
            assert goes_on.wait(10)
        return make_writer_info(writer_id=writer_id)

    writer = SpoolWriter(spool, build_slowly, max_bytes=MEGABYTE, report=messages.append)
    first = threading.Thread(target=write, args=(writer,))
    first.start()
    assert opening.wait(10)
    kept = write(writer, 3)
    goes_on.set()
    first.join()
    write(writer)
    assert kept == [True] * 3
    assert len(read_records(spool)) == 5
    assert len({record.sequence for record in read_records(spool)}) == 5
    writer.close()


def test_threads_that_meet_in_a_new_process_become_one_writer(
    spool: str, writer: SpoolWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(writer)
    pid = os.getpid() + 1
    meet = threading.Barrier(8)

    original = _Process

    def make_together(pid: int, mark: Mark) -> _Process:
        meet.wait(10)
        return original(pid, mark)

    monkeypatch.setattr(os, "getpid", lambda: pid)
    monkeypatch.setattr(writer._process, "mark", NO_PROCESS)
    monkeypatch.setattr("reqpath.spool.writer._Process", make_together)
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(writer.next_sequence())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(8))


def run_in_child(function: Callable[[], object]) -> int:
    """Run `function` in a forked child; return its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            function()
            status = 0
        os._exit(status)
    return os.waitpid(pid, 0)[1]


def test_a_forked_child_writes_a_file_of_its_own(spool: str, writer: SpoolWriter) -> None:
    write(writer, 2)

    def child() -> None:
        assert all(write(writer, 3))

    assert run_in_child(child) == 0
    write(writer, 2)
    reader = SpoolReader(spool)
    by_writer: dict[str, list[int]] = {}
    for info, records in reader.read():
        by_writer.setdefault(info.writer_id, []).extend(record.sequence for record in records)
    assert sorted(by_writer.values()) == [[0, 1, 2], [0, 1, 2, 3]]
    assert reader.losses.lost_records == 0


def test_a_fork_in_the_middle_of_a_rotation_does_not_block_the_child(spool: str, writer: SpoolWriter) -> None:
    write(writer)
    with writer._process.lock:  # as another thread of the parent may hold it
        assert run_in_child(lambda: write(writer) == [True] or 1 / 0) == 0


def test_the_bound_removes_the_oldest_files_and_counts_them(spool: str) -> None:
    writer = make_writer(spool, max_bytes=MEGABYTE)
    write(writer, 2000, padding=1000)
    writer.close()
    size = sum(os.path.getsize(path) for path in spool_files(spool))
    assert size <= MEGABYTE
    assert size > MEGABYTE // 2
    reader = SpoolReader(spool)
    sequences = [record.sequence for _, records in reader.read() for record in records]
    assert list(range(2000 - len(sequences), 2000)) == sequences
    losses = reader.losses
    assert 2000 - len(sequences) == losses.lost_records == losses.evicted_records
    assert losses.evicted_files > 0


def test_what_was_evicted_of_a_dead_writer_is_counted_exactly(spool: str) -> None:
    dead = make_writer(spool)
    write(dead, 7, padding=1000)
    dead.close()
    (path,) = spool_files(spool)
    os.utime(path, (1, 1))
    writer = make_writer(spool, max_bytes=MEGABYTE)
    write(writer, 1500, padding=1000)
    writer.close()
    assert not os.path.exists(path)
    reader = SpoolReader(spool)
    read = sum(len(records) for _, records in reader.read())
    assert 1507 - read == reader.losses.lost_records == reader.losses.evicted_records


def test_several_writers_share_one_bound(spool: str) -> None:
    writers = [make_writer(spool, max_bytes=MEGABYTE) for _ in range(6)]
    for _ in range(400):
        for writer in writers:
            write(writer, padding=1000)
    for writer in writers:
        writer.close()
    assert sum(os.path.getsize(path) for path in spool_files(spool)) <= MEGABYTE
    reader = SpoolReader(spool)
    read = sum(len(records) for _, records in reader.read())
    assert 2400 - read == reader.losses.lost_records


def test_a_writer_whose_file_was_evicted_starts_another(
    spool: str, writer: SpoolWriter, read_records: ReadRecords
) -> None:
    """An idle worker's file is the oldest one; what it writes later must not go to a file without a name."""
    write(writer)
    (path,) = spool_files(spool)
    os.unlink(path)
    writer._process.look_at_ns -= 2_000_000_000  # it was idle for two seconds
    assert write(writer, 2) == [True, True]
    assert [record.sequence for record in read_records(spool)] == [1, 2]


def test_the_file_just_started_is_never_the_one_to_go(spool: str) -> None:
    """File systems stamp files of the same few milliseconds alike: times do not tell the newest."""
    writer = make_writer(spool, max_bytes=MEGABYTE)
    write(writer)
    (own,) = spool_files(spool)
    os.utime(own, (1, 1))
    for i in range(9):
        Path(spool, f"other-{i}.rqp").write_bytes(b"x" * (128 << 10))
    writer._evict(writer._process)
    assert os.path.exists(own)
    assert len(spool_files(spool)) < 10
    writer.close()


def test_two_processes_that_evict_the_same_file_count_it_once(
    spool: str, writer: SpoolWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(writer)
    for i in range(9):
        Path(spool, f"other-{i}.rqp").write_bytes(MAGIC + b"\0" * 4 + b"x" * (128 << 10))
        os.utime(os.path.join(spool, f"other-{i}.rqp"), (i, i))
    small = make_writer(spool, max_bytes=MEGABYTE)
    listed = [list_files(spool) for _ in range(2)]
    monkeypatch.setattr("reqpath.spool.writer.list_files", lambda directory: listed.pop())
    small._evict(small._process)
    small._evict(small._process)
    names = [line.split()[0] for line in Path(spool, EVICTED).read_text().splitlines()]
    assert len(set(names)) == len(names)
    assert 7 <= len(spool_files(spool)) < 10


def test_a_record_that_no_reader_takes_is_dropped_before_it_spoils_the_file(
    spool: str, writer: SpoolWriter
) -> None:
    write(writer)
    writer.next_sequence()
    assert not writer.append(b"x" * (MAX_FRAME_BYTES + 1))
    write(writer)
    assert writer.dropped == 1
    reader = SpoolReader(spool)
    assert [record.sequence for _, records in reader.read() for record in records] == [0, 2]
    assert reader.losses.lost_records == 1


def encode_some(writer: SpoolWriter, count: int, padding: int = 0) -> list[bytes]:
    return [
        encode(make_worker_record(sequence=writer.next_sequence(), span_name="x" * padding))
        for _ in range(count)
    ]


def read_sequences(spool: str) -> tuple[list[int], int]:
    """Return the numbers of the records that are read, and how many are told as lost."""
    reader = SpoolReader(spool)
    sequences = [record.sequence for _, records in reader.read() for record in records]
    return sequences, reader.losses.lost_records


def test_a_batch_is_appended_as_its_records_would_be_one_by_one(spool: str, writer: SpoolWriter) -> None:
    assert writer.append_all([]) == 0
    assert not os.path.exists(spool), "nothing to write starts no file"
    assert writer.append_all(encode_some(writer, 3)) == 3
    write(writer)
    assert writer.append_all(encode_some(writer, 200)) == 200
    assert read_sequences(spool) == ([*range(204)], 0)


def test_a_batch_keeps_what_stands_around_a_record_that_no_reader_takes(
    spool: str, writer: SpoolWriter
) -> None:
    before = encode_some(writer, 2)
    writer.next_sequence()
    after = encode_some(writer, 2)
    assert writer.append_all([*before, b"x" * (MAX_FRAME_BYTES + 1), *after]) == 4
    assert writer.dropped == 1
    assert read_sequences(spool) == ([0, 1, 3, 4], 1)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.5, 0.9])
def test_a_batch_that_was_cut_off_loses_the_record_at_the_cut(
    share: float, spool: str, writer: SpoolWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole ones before the cut are in the spool, those after it get a file of their own."""
    write(writer)
    payloads = encode_some(writer, 10)
    frame = len(payloads[0]) + 4
    real_write, cuts = os.write, [int(share * 10 * frame + 7)]
    monkeypatch.setattr(
        "reqpath.spool.writer.os.write",
        lambda fd, data: real_write(fd, data[: cuts.pop()] if cuts else data),
    )
    assert writer.append_all(payloads) == 9
    lost = int(share * 10) + 1
    assert writer.dropped == 1
    write(writer)
    assert read_sequences(spool) == ([number for number in range(12) if number != lost], 1)


@contextlib.contextmanager
def tiny_disk(path: Path) -> Iterator[Path]:
    """Mount a file system of 256 KiB, or skip the test where that is not allowed."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "reqpath-test", str(path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("can't mount a tmpfs here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@as_root
def test_a_full_disk_drops_and_counts_and_recovers(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(tiny_disk(tmp_path / "disk"))
        spool = str(disk / "spool")
        messages: list[str] = []
        writer = make_writer(spool, messages)
        stack.callback(writer.close)
        kept = write(writer, 500, padding=1000)
        assert kept.count(False) == writer.dropped > 0
        assert any("No space left on device; records are dropped" in message for message in messages)
        # Room again: an operator removes what was there.
        ballast = disk / "ballast"
        for path in spool_files(spool):
            os.unlink(path)
        writer._process.look_at_ns = 0
        assert write(writer, 3) == [True] * 3
        reader = SpoolReader(spool)
        assert [record.sequence for _, records in reader.read() for record in records] == [500, 501, 502]
        assert reader.losses.lost_records == 500
        # Full again, by another program, and room again without a new file.
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        results = write(writer, 20, padding=1000)
        assert False in results
        ballast.unlink()
        assert write(writer, 2) == [True] * 2
        reader = SpoolReader(spool)
        read = [record.sequence for _, records in reader.read() for record in records]
        assert read[-2:] == [523, 524]
        assert 525 - len(read) == reader.losses.lost_records == 500 + results.count(False)


@as_root
def test_a_full_disk_takes_of_a_batch_what_it_can(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        spool = str(stack.enter_context(tiny_disk(tmp_path / "disk")) / "spool")
        writer = make_writer(spool)
        stack.callback(writer.close)
        appended = sum(writer.append_all(encode_some(writer, 50, padding=1000)) for _ in range(10))
        assert 100 < appended < 500
        assert writer.dropped == 500 - appended
        sequences, _ = read_sequences(spool)
        assert len(sequences) == appended


def test_a_file_that_may_not_grow_is_replaced_by_another(spool: str) -> None:
    """`RLIMIT_FSIZE` cuts a frame off in its middle, as a full disk does; nothing may follow the stump."""

    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        writer = make_writer(spool)
        kept = write(writer, 30, padding=1000)
        assert kept.count(False) == writer.dropped > 0
        assert kept.count(True) > 20

    assert run_in_child(child) == 0
    reader = SpoolReader(spool)
    read = [record.sequence for _, records in reader.read() for record in records]
    assert reader.losses.lost_records > 0
    assert read[-1] + 1 - len(read) == reader.losses.lost_records
    assert len(spool_files(spool)) > 2


def test_a_spool_that_can_not_be_made_says_what_to_do_once_and_drops(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    messages: list[str] = []
    writer = make_writer(str(tmp_path / "file" / "spool"), messages, retry_s=3600)
    assert write(writer, 5) == [False] * 5
    assert writer.dropped == 5
    (message,) = messages
    assert "set REQPATH_SPOOL to one of your own" in message


def test_an_unwritable_spool_is_left_alone_until_the_next_try(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.touch()
    writer = make_writer(str(spool))
    assert write(writer) == [False]
    spool.unlink()
    assert write(writer) == [True]
    assert writer.dropped == 1
    writer.close()


def test_a_writer_that_can_not_tell_who_it_is_drops_and_leaves_no_file(spool: str) -> None:
    def fail(writer_id: str) -> WriterInfo:
        raise LookupError(writer_id)

    messages: list[str] = []
    writer = SpoolWriter(spool, fail, max_bytes=MEGABYTE, report=messages.append)
    writer.next_sequence()
    assert not writer.append(b"x")
    assert os.listdir(spool) == []
    assert "LookupError" in messages[0]


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    """In /tmp another user can put a link where the spool will be."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "spool").symlink_to("elsewhere")
    with pytest.raises(SpoolError, match="is a symbolic link; set REQPATH_SPOOL"):
        prepare_spool(str(tmp_path / "spool"))


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spool").symlink_to("nowhere")
    with pytest.raises(SpoolError, match="REQPATH_SPOOL"):
        prepare_spool(str(tmp_path / "spool"))
    assert not (tmp_path / "nowhere").exists()


@as_root
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir(mode=0o700)
    os.chown(tmp_path / "spool", 12345, 12345)
    with pytest.raises(SpoolError, match="belongs to uid 12345, this process is uid 0"):
        prepare_spool(str(tmp_path / "spool"))


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o777, 0o1777])
def test_a_directory_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(mode)
    with pytest.raises(SpoolError, match="chmod 700"):
        prepare_spool(str(tmp_path / "spool"))


def test_reading_goes_on_where_it_stopped(spool: str, writer: SpoolWriter) -> None:
    write(writer, 2)
    reader = SpoolReader(spool)

    def read() -> list[int]:
        return [record.sequence for _, records in reader.read() for record in records]

    assert read() == [0, 1]
    assert read() == []
    write(writer, 2)
    other = make_writer(spool)
    write(other)
    other.close()
    assert sorted(read()) == [0, 2, 3]
    assert read() == []
    assert reader.losses.lost_records == 0


def test_another_reader_goes_on_from_a_bookmark(spool: str, writer: SpoolWriter) -> None:
    other = make_writer(spool)
    write(writer, 30, padding=200)
    write(other, 30, padding=200)
    reader = SpoolReader(spool, batch_bytes=1000)
    reading = reader.read()
    before = [record for _ in range(3) for record in next(reading)[1]]
    bookmark = msgspec.msgpack.decode(msgspec.msgpack.encode(reader.bookmark()), type=Bookmark)
    write(other, 5)

    later = SpoolReader(spool, batch_bytes=1000)
    later.resume(bookmark)
    after = [record for _info, records in later.read() for record in records]

    assert 0 < len(before) < 30
    assert len(before) + len(after) == 65
    numbers = Counter(record.sequence for record in [*before, *after])
    assert numbers == Counter([*range(30), *range(35)])
    assert later.losses.lost_records == 0


def test_what_was_evicted_behind_a_bookmark_is_counted_as_lost(spool: str, writer: SpoolWriter) -> None:
    write(writer, 10)
    reader = SpoolReader(spool)
    assert len(list(reader.read())) == 1
    bookmark = reader.bookmark()
    write(writer, 7)
    writer.close()
    write(writer, 1)
    evict_file(spool, min(list_files(spool), key=lambda file: file.path))
    later = SpoolReader(spool)
    later.resume(bookmark)
    assert [len(records) for _info, records in later.read()] == [1]
    assert later.losses.lost_records == 7


def test_a_batch_is_read_again_from_its_place(spool: str, writer: SpoolWriter) -> None:
    write(writer, 40)
    reader = SpoolReader(spool, batch_bytes=1000)
    places = [(reader.place, records) for _info, records in reader.read()]
    assert len(places) > 2
    write(writer, 5)
    for (name, offset), records in places:
        again = [record for _info, batch in reader.read_at(name, offset) for record in batch]
        assert again[: len(records)] == records
    assert list(reader.read_at("0123456789abcdef-000001.rqp", 0)) == []


def test_a_partly_written_frame_is_read_when_it_is_whole(spool: str, writer: SpoolWriter) -> None:
    write(writer, 2)
    (path,) = spool_files(spool)
    whole = Path(path).read_bytes()
    reader = SpoolReader(spool)
    seen: list[int] = []
    for end in range(len(whole) + 1):
        with open(path, "wb") as file:
            file.write(whole[:end])
        seen += [record.sequence for _, records in reader.read() for record in records]
    assert seen == [0, 1]
    assert reader.losses.foreign_files == {}
    assert reader.losses.torn_bytes == 0


def test_a_record_longer_than_a_batch_is_read(spool: str, writer: SpoolWriter) -> None:
    write(writer, 1, padding=5000)
    write(writer, 1)
    write(writer, 1, padding=5000)
    reader = SpoolReader(spool, batch_bytes=100)
    assert [record.sequence for _, records in reader.read() for record in records] == [0, 1, 2]


def test_a_record_within_a_damaged_frame_is_not_brought_forth(spool: str, writer: SpoolWriter) -> None:
    write(writer)
    # As long as makes its length begin with 0xc1, the one byte that msgpack has no use for.
    inner = encode(make_worker_record(sequence=1, span_name="x" * 27))
    assert len(inner) == 0xC1
    writer.append(len(inner).to_bytes(4, "little") + inner)
    reader = SpoolReader(spool)
    assert [record.sequence for _, records in reader.read() for record in records] == [0]
    assert list(reader.read()) == []
    assert reader.losses.torn_bytes == len(inner) + 8


def test_a_batch_without_a_record_does_not_end_the_file(spool: str, writer: SpoolWriter) -> None:
    write(writer)
    for _ in range(20):
        writer.next_sequence()
        writer.append(encode([99, "of a newer reqpath"]))
    write(writer)
    reader = SpoolReader(spool, batch_bytes=100)
    assert [record.sequence for _, records in reader.read() for record in records] == [0, 21]


def test_nothing_follows_a_frame_that_was_cut_off(
    spool: str, writer: SpoolWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk takes half a frame; the next one would be read as the rest of it."""
    slow = make_writer(spool, retry_s=3600)
    write(slow)
    real_write = os.write
    monkeypatch.setattr(
        "reqpath.spool.writer.os.write", lambda fd, data: real_write(fd, data[: len(data) // 2])
    )
    assert write(slow) == [False]
    monkeypatch.undo()
    assert write(slow, 2) == [False, False], "until a new file is due"
    slow._process.broken_until_ns = 0
    assert write(slow) == [True]
    reader = SpoolReader(spool)
    assert [record.sequence for _, records in reader.read() for record in records] == [0, 4]
    assert (reader.losses.lost_records, slow.dropped) == (3, 3)
    slow.close()


def test_a_file_evicted_between_two_reads_is_no_loss_when_it_was_read(
    spool: str, writer: SpoolWriter
) -> None:
    write(writer, 3)
    reader = SpoolReader(spool)
    assert len(list(reader.read())) == 1
    (path,) = spool_files(spool)
    os.unlink(path)
    Path(spool, EVICTED).write_text(f"{os.path.basename(path)} 100 3\n")
    assert list(reader.read()) == []
    assert reader.losses.lost_records == 0


def test_garbage_among_the_notes_of_evictions_is_skipped(spool: str, writer: SpoolWriter) -> None:
    write(writer)
    Path(spool, EVICTED).write_bytes(b"x 1\n\nabc-000001.rqp 10 x\nabc-000001.rqp 10 4\n")
    reader = SpoolReader(spool)
    list(reader.read())
    assert (
        reader.losses.evicted_files,
        reader.losses.evicted_records,
        reader.losses.lost_records,
    ) == (1, 4, 4)


def test_a_reader_of_nothing_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match=r"there is no spool at .*nowhere.*REQPATH_SPOOL"):
        SpoolReader(str(tmp_path / "nowhere"))


def test_a_reader_that_may_not_look_does_not_say_that_nothing_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_directory: str) -> list[str]:
        raise PermissionError(13, "Permission denied")

    # As where a directory above it, such as a home, is its owner's alone.
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        with pytest.raises(SpoolError, match=r"can't read the spool .*run this as that user or as root"):
            SpoolReader(str(tmp_path / "hidden" / "spool"))


_BASE = MAGIC + b"".join(
    len(frame).to_bytes(4, "little") + frame
    for frame in [
        encode(make_writer_info()),
        *(encode(make_worker_record(sequence=i, path=f"/{i}" * 9)) for i in range(4)),
        *(encode(make_nginx_record(sequence=i)) for i in range(4, 6)),
    ]
)
_ORIGINALS = {encode(make_worker_record(sequence=i, path=f"/{i}" * 9)) for i in range(4)} | {
    encode(make_nginx_record(sequence=i)) for i in range(4, 6)
}


@given(
    cut=st.integers(0, len(_BASE)),
    drop=st.integers(0, 40),
    junk=st.binary(max_size=40),
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_never_raises_and_never_brings_forth_records(
    tmp_path: Path, cut: int, drop: int, junk: bytes
) -> None:
    """Bytes are cut out anywhere and others put there; only whole, untouched records may come out."""
    (tmp_path / "a.rqp").write_bytes(_BASE[:cut] + junk + _BASE[cut + drop :])
    reader = SpoolReader(str(tmp_path))
    read = [encode(record) for _, records in reader.read() for record in records]
    damaged = [record for record in read if record not in _ORIGINALS]
    # A change within one record's text can't be told from a record; more than one can't have changed.
    assert len(damaged) <= 1
    assert len(read) <= len(_ORIGINALS)


@given(content=st.binary(max_size=300))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_after_a_good_head_are_no_records(tmp_path: Path, content: bytes) -> None:
    info = encode(make_writer_info())
    (tmp_path / "a.rqp").write_bytes(MAGIC + len(info).to_bytes(4, "little") + info + content)
    assert list(SpoolReader(str(tmp_path)).read()) == []


@given(
    raws=st.lists(raw_records(), max_size=8),
    lines=st.lists(nginx_lines(), max_size=8),
    lost=st.integers(1, 3),
    torn=st.integers(0, 30),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_two_halves_of_the_traces_are_the_whole(
    tmp_path: Path, raws: list[RawRecord], lines: list[NginxRecord], lost: int, torn: int
) -> None:
    """Each record is in one of them, what belongs together in the same, and together they miss as much."""

    def write(name: str, records: Sequence[RawRecord | NginxRecord]) -> None:
        frames = [encode(make_writer_info(kind=name, writer_id=name))]
        for place, record in enumerate(records):
            record.sequence = place * lost
            frames.append(encode(record))
        content = MAGIC + b"".join(len(frame).to_bytes(4, "little") + frame for frame in frames)
        (tmp_path / f"{name}.rqp").write_bytes(content[: len(content) - torn] if records else content)

    write("worker", raws)
    write("nginx", lines)

    def read(reader: SpoolReader) -> list[tuple[str, bytes]]:
        return [(record.trace_id, encode(record)) for _, records in reader.read() for record in records]

    files = list_files(str(tmp_path))
    whole = SpoolReader(str(tmp_path))
    first, second = (SpoolReader(str(tmp_path), files=files, half=half) for half in (0, 1))
    everything, halves = read(whole), (read(first), read(second))
    assert sorted(everything) == sorted(halves[0] + halves[1])
    traces = [{trace_id for trace_id, _ in half} for half in halves]
    assert not traces[0] & traces[1]
    first.absorb(second.bookmark())
    assert whole.losses == first.losses
