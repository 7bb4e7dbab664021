"""The spool: a bounded, owner-only directory of append-only files, one writer each.

A file is `MAGIC`, then frames: four bytes of length, little-endian, and as many bytes of msgpack. The first
frame is a `record.WriterInfo`, the others are `WorkerRecord`s or `NginxRecord`s::

    reqpath-1000/
      3f9c2a7d10b4e6f8-000001.rqp    MAGIC [n WriterInfo] [n WorkerRecord] [n WorkerRecord] …
      3f9c2a7d10b4e6f8-000002.rqp    the same writer's next file
      evicted                        one line per file that the bound removed: name, bytes, records

A torn tail is what a killed process leaves, and is skipped. A record's `sequence` counts up within its
writer, so a reader knows exactly how many are missing, whatever the reason: a full disk, a torn or evicted
file.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from reqpath.errors import SpoolError
from reqpath.record import (
    FORMAT_VERSION,
    Record,
    WriterInfo,
    decode_info,
    decode_record,
    encode,
    finished_at_ns,
)

MAGIC = b"reqpath\x01"
SUFFIX = ".rqp"
EVICTED = "evicted"
#: Nothing that reqpath writes comes near; a larger length is a torn or foreign file.
MAX_FRAME_BYTES = 8 << 20

_LENGTH = 4


def prepare_spool(directory: str) -> None:
    """Create the spool's directory, for its owner only, or check the one that is there.

    Raises: SpoolError when it is no directory, another user's, or open to others.
    """
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        found = os.lstat(directory)
    except OSError as error:
        raise SpoolError(
            f"can't create the spool {directory}: {error.strerror}; set REQPATH_SPOOL to one of your own"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise SpoolError(f"the spool {directory} is not a directory; set REQPATH_SPOOL to one of your own")
    if found.st_uid != os.geteuid():
        raise SpoolError(
            f"the spool {directory} belongs to uid {found.st_uid}, this process is uid {os.geteuid()}; "
            "let both run as one user, or set REQPATH_SPOOL"
        )
    if found.st_mode & 0o077:
        raise SpoolError(f"the spool {directory} is open to other users: chmod 700 {directory}")


class SpoolWriter:
    """Appends records of one process to a spool; never waits, never raises.

    Threads share it: an append is one `write` to an `O_APPEND` descriptor, and a rotation puts the new file
    under the same descriptor with `dup2`, so an append beside it lands whole in either. After a fork the
    child writes a file of its own.
    """

    def __init__(
        self,
        directory: str,
        build_info: Callable[[str], WriterInfo],
        *,
        max_bytes: int,
        report: Callable[[str], None],
        retry_s: float = 1.0,
    ) -> None:
        """`build_info` takes the writer's id; `report` gets one message each time that the spool breaks."""
        self._directory = directory
        self._build_info = build_info
        self._max_bytes = max_bytes
        self._file_bytes = max(64 << 10, min(8 << 20, max_bytes // 8))
        self._report = report
        self._retry_ns = int(retry_s * 1e9)
        self._pid = 0
        self._fd = -1
        self._writer_id = ""
        self._files = itertools.count(1)
        self._sequences = itertools.count()
        self._size = 0
        self._broken_until_ns = 0
        self._lock = threading.Lock()
        #: Records of this process that did not reach the spool.
        self.dropped = 0

    def next_sequence(self) -> int:
        """Return the number of this process's next record, from 0; ask for it right before each `append`."""
        if self._pid != os.getpid():
            self._become_this_process()
        return next(self._sequences)

    def append(self, payload: bytes) -> bool:
        """Append one encoded record; return whether it is in the spool."""
        try:
            if (self._fd < 0 or self._size > self._file_bytes) and not self._rotate() and self._fd < 0:
                self.dropped += 1
                return False
            frame = len(payload).to_bytes(_LENGTH, "little") + payload
            if os.write(self._fd, frame) != len(frame):
                raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            self._break(error)
            return False
        self._size += len(frame)
        return True

    def close(self) -> None:
        """Close the file; the next append opens another."""
        if self._fd >= 0 and self._pid == os.getpid():
            os.close(self._fd)
        self._fd = -1

    def _become_this_process(self) -> None:
        """Forget what was inherited through a fork: the descriptor is the parent's."""
        with contextlib.suppress(OSError):
            if self._fd >= 0:
                os.close(self._fd)
        self._fd = -1
        self._lock = threading.Lock()
        self._writer_id = os.urandom(8).hex()
        self._files = itertools.count(1)
        self._sequences = itertools.count()
        self._broken_until_ns = 0
        self.dropped = 0
        self._pid = os.getpid()

    def _rotate(self) -> bool:
        """Put a new file under the descriptor; return False when it can't be had now."""
        # A thread that finds another one rotating goes on with the file that is there.
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._fd >= 0 and self._size <= self._file_bytes:
                return True
            if time.monotonic_ns() < self._broken_until_ns:
                return False
            try:
                fd = self._open_file()
            except (OSError, SpoolError) as error:
                self._broken_until_ns = time.monotonic_ns() + self._retry_ns
                self._report(str(error))
                return False
            if self._fd < 0:
                self._fd = fd
            else:
                os.dup2(fd, self._fd, inheritable=False)
                os.close(fd)
            self._size = 0
            self._evict()
            return True
        finally:
            self._lock.release()

    def _open_file(self) -> int:
        prepare_spool(self._directory)
        path = os.path.join(self._directory, f"{self._writer_id}-{next(self._files):06d}{SUFFIX}")
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        info = encode(self._build_info(self._writer_id))
        head = MAGIC + len(info).to_bytes(_LENGTH, "little") + info
        try:
            if os.write(fd, head) != len(head):
                raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        return fd

    def _break(self, error: OSError) -> None:
        """Count the loss; leave the file, whose tail may be torn, for a new one."""
        self.dropped += 1
        self._size = self._file_bytes + 1
        if time.monotonic_ns() >= self._broken_until_ns:
            self._broken_until_ns = time.monotonic_ns() + self._retry_ns
            self._report(f"can't write to the spool {self._directory}: {error.strerror}; records are dropped")

    def _evict(self) -> None:
        """Remove the oldest files until the spool is within its bound."""
        files = sorted(_spool_files(self._directory), key=lambda file: file.modified_ns)
        excess = sum(file.size for file in files) + self._file_bytes - self._max_bytes
        for file in files[:-1]:
            if excess <= 0:
                break
            with contextlib.suppress(OSError):
                records = _count_frames(file.path)
                os.unlink(file.path)
                excess -= file.size
                line = f"{os.path.basename(file.path)} {file.size} {records}\n"
                fd = os.open(
                    os.path.join(self._directory, EVICTED), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
                )
                try:
                    os.write(fd, line.encode())
                finally:
                    os.close(fd)


@dataclass(slots=True)
class SpoolLosses:
    """What a reader could not have; every figure counts from the start of the reading."""

    #: Records that their writers numbered and no file holds, evicted ones included.
    lost_records: int = 0
    #: Files removed by the spool's bound.
    evicted_files: int = 0
    evicted_records: int = 0
    #: Bytes after the last whole record of a file whose writer is gone, and after a broken frame.
    torn_bytes: int = 0
    #: Files that are no spool files, or of a newer format, by name and reason.
    foreign_files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _SpoolFile:
    path: str
    size: int
    modified_ns: int


class _Cursor:
    """A position in one spool file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.info: WriterInfo | None = None
        self.offset = 0
        self.size = 0
        #: Of the last record handed out, at first of the file's creation; files are read in this order.
        self.time_ns = 0
        self.broken = False


@dataclass(slots=True)
class _Sequences:
    """What was seen of one writer's numbers."""

    first: int
    last: int
    count: int


#: One writer's records in the order in which they were written.
Batch = tuple[WriterInfo, list[Record]]


class SpoolReader:
    """Reads a spool's records in batches, roughly in the order of time; can go on where it stopped.

    Batches of different files interleave such that none runs ahead of another by more than one batch, so a
    join needs to hold only as much.
    """

    def __init__(self, directory: str, *, batch_bytes: int = 1 << 18) -> None:
        """Raises: SpoolError when there is no such directory or it can't be read."""
        if not os.path.isdir(directory):
            raise SpoolError(
                f"there is no spool at {directory}; name the directory that the app writes to "
                "(REQPATH_SPOOL), or run `reqpath demo` for a first look"
            )
        try:
            os.listdir(directory)
        except OSError as error:
            raise SpoolError(
                f"can't read the spool {directory}: {error.strerror}; it belongs to the app's user, "
                "so run this as that user or as root"
            ) from error
        self.directory = directory
        self.losses = SpoolLosses()
        #: Whether a collector has written into this spool, as of the last `read`.
        self.has_nginx_lines = False
        self._batch_bytes = batch_bytes
        self._cursors: dict[str, _Cursor] = {}
        self._sequences: dict[str, _Sequences] = {}

    def read(self) -> Iterator[Batch]:
        """Yield what was added since the last call; at the first call, everything."""
        active = self._refresh()
        while active:
            cursor = min(active, key=lambda cursor: cursor.time_ns)
            records = self._read_batch(cursor)
            if not records:
                active.remove(cursor)
                continue
            assert cursor.info is not None
            cursor.time_ns = max(cursor.time_ns, finished_at_ns(records[-1]))
            self._note_sequences(cursor.info, records)
            yield cursor.info, records
        self._count_losses()

    def _refresh(self) -> list[_Cursor]:
        active = []
        present = set()
        for file in sorted(_spool_files(self.directory), key=lambda file: file.path):
            present.add(file.path)
            cursor = self._cursors.setdefault(file.path, _Cursor(file.path))
            cursor.size = file.size
            if cursor.info is None and not cursor.broken:
                self._read_head(cursor)
            if cursor.info is not None and cursor.info.kind == "nginx":
                self.has_nginx_lines = True
            if cursor.info is not None and not cursor.broken and cursor.offset < cursor.size:
                active.append(cursor)
        for path in set(self._cursors) - present:
            del self._cursors[path]
        return active

    def _read_batch(self, cursor: _Cursor) -> list[Record]:
        try:
            with open(cursor.path, "rb") as file:
                file.seek(cursor.offset)
                data = file.read(min(self._batch_bytes, cursor.size - cursor.offset))
                if len(data) >= _LENGTH:
                    need = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
                    if len(data) < need <= min(MAX_FRAME_BYTES, cursor.size - cursor.offset):
                        data += file.read(need - len(data))
        except FileNotFoundError:
            return []
        except OSError as error:
            self._give_up(cursor, error.strerror or "unreadable")
            return []
        records: list[Record] = []
        position, end = 0, len(data)
        try:
            while position + _LENGTH <= end:
                length = int.from_bytes(data[position : position + _LENGTH], "little")
                if length > MAX_FRAME_BYTES:
                    raise msgspec.DecodeError("the length is not one of a frame")
                frame_end = position + _LENGTH + length
                if frame_end > end:
                    break
                records.append(decode_record(data[position + _LENGTH : frame_end]))
                position = frame_end
        except msgspec.DecodeError:
            cursor.broken = True
        cursor.offset += position
        return records

    def _read_head(self, cursor: _Cursor) -> None:
        """Read `MAGIC` and the `WriterInfo`; leave the cursor as it is while they are not whole."""
        start = len(MAGIC) + _LENGTH
        try:
            with open(cursor.path, "rb") as file:
                head = file.read(start)
                length = int.from_bytes(head[len(MAGIC) :], "little")
                data = file.read(length) if length <= MAX_FRAME_BYTES else b""
        except FileNotFoundError:
            return
        except OSError as error:
            self._give_up(cursor, error.strerror or "unreadable")
            return
        if not MAGIC.startswith(head[: len(MAGIC)]) or length > MAX_FRAME_BYTES:
            self._give_up(cursor, "not a spool file")
            return
        if len(head) < start or len(data) < length:
            return
        try:
            info = decode_info(data)
        except msgspec.DecodeError as error:
            self._give_up(cursor, f"not a spool file: {error}")
            return
        if info.format_version > FORMAT_VERSION:
            self._give_up(cursor, f"written by reqpath {info.reqpath_version}; upgrade to read it")
            return
        cursor.info = info
        cursor.offset = start + length
        # A writer's later files wait until the earlier ones are read.
        cursor.time_ns = info.created_ns

    def _give_up(self, cursor: _Cursor, reason: str) -> None:
        cursor.broken = True
        self.losses.foreign_files[os.path.basename(cursor.path)] = reason

    def _note_sequences(self, info: WriterInfo, records: list[Record]) -> None:
        numbers = [record.sequence for record in records]
        seen = self._sequences.get(info.writer_id)
        if seen is None:
            self._sequences[info.writer_id] = _Sequences(min(numbers), max(numbers), len(numbers))
        else:
            seen.first = min(seen.first, *numbers)
            seen.last = max(seen.last, *numbers)
            seen.count += len(numbers)

    def _count_losses(self) -> None:
        self.losses.torn_bytes = sum(
            cursor.size - cursor.offset
            for cursor in self._cursors.values()
            if cursor.info is not None and cursor.offset < cursor.size
        )
        self.losses.evicted_files, self.losses.evicted_records, evicted = _read_evicted(self.directory)
        # A writer numbers from 0, so what precedes the first number seen was evicted, and what is missing
        # between first and last was torn, dropped, or evicted.
        gaps = sum(seen.last + 1 - seen.count for seen in self._sequences.values())
        vanished = sum(records for writer_id, records in evicted.items() if writer_id not in self._sequences)
        self.losses.lost_records = max(0, gaps) + vanished


def _spool_files(directory: str) -> list[_SpoolFile]:
    files = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if not entry.name.endswith(SUFFIX):
                    continue
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        files.append(_SpoolFile(entry.path, found.st_size, found.st_mtime_ns))
    except OSError:
        return []
    return files


def _count_frames(path: str) -> int:
    """Count the records of a spool file by hopping from length to length."""
    with open(path, "rb") as file:
        data = file.read(MAX_FRAME_BYTES * 2)
    position, count = len(MAGIC), -1  # the first frame is the WriterInfo
    while position + _LENGTH <= len(data):
        position += _LENGTH + int.from_bytes(data[position : position + _LENGTH], "little")
        if position > len(data):
            break
        count += 1
    return max(0, count)


def _read_evicted(directory: str) -> tuple[int, int, dict[str, int]]:
    """Return the number of files evicted, of records in them, and the records by writer."""
    files = records = 0
    by_writer: dict[str, int] = {}
    with (
        contextlib.suppress(OSError, UnicodeDecodeError),
        open(os.path.join(directory, EVICTED), encoding="ascii") as lines,
    ):
        for line in lines:
            words = line.split()
            if len(words) != 3 or not words[2].isdigit():
                continue
            files += 1
            records += int(words[2])
            writer_id = words[0].partition("-")[0]
            by_writer[writer_id] = by_writer.get(writer_id, 0) + int(words[2])
    return files, records, by_writer
