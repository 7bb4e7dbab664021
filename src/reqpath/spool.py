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
import struct
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
_FRAME = struct.Struct("<I")
#: What damaged bytes raise: not msgpack, text that is not UTF-8, and lists in lists without end.
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def prepare_spool(directory: str) -> None:
    """Create the spool's directory, for its owner only, or check the one that is there.

    Raises: SpoolError when it is no directory, another user's, or open to others.
    """
    try:
        # Whatever is there is looked at below.
        with contextlib.suppress(FileExistsError):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        found = os.lstat(directory)
    except OSError as error:
        raise SpoolError(
            f"can't create the spool {directory}: {error.strerror}; set REQPATH_SPOOL to one of your own"
        ) from error
    if stat.S_ISLNK(found.st_mode):
        raise SpoolError(f"the spool {directory} is a symbolic link; set REQPATH_SPOOL to where it leads")
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
        # Several processes fill the spool, so each looks after the bound more often than it starts a file.
        self._step_bytes = self._file_bytes // 8
        self._report = report
        self._retry_ns = int(retry_s * 1e9)
        self._process = _Process(0)
        self._processes: dict[int, _Process] = {}

    @property
    def dropped(self) -> int:
        """Records of this process that did not reach the spool."""
        return self._process.dropped

    def next_sequence(self) -> int:
        """Return the number of this process's next record, from 0; ask for it right before each `append`."""
        process = self._process
        if process.pid != os.getpid():
            process = self._become_this_process()
        return next(process.sequences)

    def append(self, payload: bytes) -> bool:
        """Append one encoded record; return whether it is in the spool."""
        process = self._process
        try:
            if len(payload) > MAX_FRAME_BYTES:
                # No reader would take it, nor what follows it.
                process.dropped += 1
                return False
            frame = len(payload).to_bytes(_LENGTH, "little") + payload
            now_ns = time.monotonic_ns()
            if process.size > process.next_look or now_ns - process.seen_ns > _LOOK_NS:
                self._look_after(process, now_ns)
            if process.fd < 0 or process.torn:
                return self._append_alone(process, frame, now_ns)
            written = os.write(process.fd, frame)
            if written != len(frame):
                process.torn = True
                raise OSError(errno.ENOSPC, "No space left on device")
        except Exception as error:
            self._lose(process, error)
            return False
        process.size += written
        return True

    def close(self) -> None:
        """Close the file; the next append opens another."""
        process = self._process
        if process.fd >= 0 and process.pid == os.getpid():
            os.close(process.fd)
        process.abandon_file()

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self.close()

    def _become_this_process(self) -> _Process:
        """Start anew after a fork: the descriptor, the numbers and perhaps a held lock are the parent's."""
        own = _Process(os.getpid())
        parent = self._process
        # Of several threads that get here at once one is first, and the others take what it made.
        process = self._processes.setdefault(own.pid, own)
        if process is own:
            self._processes = {own.pid: own}
            with contextlib.suppress(OSError):
                if parent.fd >= 0:
                    os.close(parent.fd)
        self._process = process
        return process

    def _look_after(self, process: _Process, now_ns: int) -> None:
        """Start a file where one is due, and keep the spool within its bound."""
        # A thread that finds another one at it goes on with the file that is there.
        if not process.lock.acquire(blocking=False):
            return
        try:
            process.seen_ns = now_ns
            # Another process may have evicted this file, which then has no name by which to read it.
            if process.fd >= 0 and os.fstat(process.fd).st_nlink == 0:
                process.size = _FULL
                process.torn = True
                # As long as it is open it takes its room, which on a full disk the next file needs.
                with open(os.devnull, "wb") as nothing:
                    os.dup2(nothing.fileno(), process.fd, inheritable=False)
            if process.size > self._file_bytes:
                if now_ns < process.broken_until_ns:
                    return
                self._start_file(process)
            elif process.size > process.next_look:
                process.next_look = process.size + self._step_bytes
                self._evict(process)
        finally:
            process.lock.release()

    def _start_file(self, process: _Process) -> None:
        path, fd = self._open_file(process)
        if process.fd in (-1, fd):
            process.fd = fd
        else:
            os.dup2(fd, process.fd, inheritable=False)
            os.close(fd)
        process.path = path
        process.size = 0
        process.torn = False
        process.next_look = self._step_bytes
        self._evict(process)

    def _append_alone(self, process: _Process, frame: bytes, now_ns: int) -> bool:
        """Append to a file of the record's own: another thread is starting the process's file right now."""
        if now_ns < process.broken_until_ns:
            process.dropped += 1
            return False
        _, fd = self._open_file(process)
        try:
            if os.write(fd, frame) != len(frame):
                raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            os.close(fd)
        return True

    def _open_file(self, process: _Process) -> tuple[str, int]:
        """Create a file with its head. Raises: OSError, SpoolError."""
        prepare_spool(self._directory)
        info = encode(self._build_info(process.writer_id))
        head = MAGIC + len(info).to_bytes(_LENGTH, "little") + info
        path = os.path.join(self._directory, f"{process.writer_id}-{next(process.files):06d}{SUFFIX}")
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, head) != len(head):
                raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        return path, fd

    def _lose(self, process: _Process, error: Exception) -> None:
        """Count the loss; ask for a new file, and meanwhile try the old one if its tail is whole."""
        process.dropped += 1
        process.size = _FULL
        now_ns = time.monotonic_ns()
        if now_ns >= process.broken_until_ns:
            process.broken_until_ns = now_ns + self._retry_ns
            if isinstance(error, SpoolError):
                self._report(f"{error}; records are dropped")
            else:
                reason = getattr(error, "strerror", None) or repr(error)
                self._report(f"can't write to the spool {self._directory}: {reason}; records are dropped")

    def _evict(self, process: _Process) -> None:
        """Remove the oldest files, of dead writers and others, until the spool is within its bound."""
        files = sorted(_spool_files(self._directory), key=lambda file: (file.modified_ns, file.path))
        excess = sum(file.size for file in files) + self._file_bytes - self._max_bytes
        for file in files:
            if excess <= 0:
                break
            if file.path == process.path:
                continue
            excess -= file.size
            # One that is not there was removed, and noted, by another process.
            with contextlib.suppress(OSError):
                _evict_file(self._directory, file)


#: How long a writer may go on with a file that another process has evicted.
_LOOK_NS = 1_000_000_000
#: More than the size of any file: the next append needs a new one.
_FULL = 1 << 62


class _Process:
    """The state of a `SpoolWriter` in one process."""

    __slots__ = (
        "broken_until_ns",
        "dropped",
        "fd",
        "files",
        "lock",
        "next_look",
        "path",
        "pid",
        "seen_ns",
        "sequences",
        "size",
        "torn",
        "writer_id",
    )

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.writer_id = os.urandom(8).hex()
        self.files = itertools.count(1)
        self.sequences = itertools.count()
        self.lock = threading.Lock()
        self.dropped = 0
        self.seen_ns = 0
        self.broken_until_ns = 0
        self.abandon_file()

    def abandon_file(self) -> None:
        """Have no file: the next append starts one."""
        self.fd = -1
        self.path = ""
        #: Bytes written to the file by this process, nearly: threads add to it side by side.
        self.size = _FULL
        #: The size at which to look after the bound again.
        self.next_look = 0
        #: The last frame was cut off, or the file has no name any more: nothing may follow.
        self.torn = False


def _evict_file(directory: str, file: _SpoolFile) -> None:
    """Remove a spool file and note what it held. Raises: OSError."""
    with open(file.path, "rb") as evicted:
        os.unlink(file.path)
        # Counted afterwards: its writer may have added to it until now.
        records = _count_frames(evicted.read(MAX_FRAME_BYTES * 2))
    line = f"{os.path.basename(file.path)} {file.size} {records}\n"
    fd = os.open(
        os.path.join(directory, EVICTED), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
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
            offset = cursor.offset
            records = self._read_batch(cursor)
            if not records:
                if cursor.offset == offset:
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
        append, unpack_length = records.append, _FRAME.unpack_from
        position, end = 0, len(data)
        try:
            while position + _LENGTH <= end:
                (length,) = unpack_length(data, position)
                if length > MAX_FRAME_BYTES:
                    raise msgspec.DecodeError("the length is not one of a frame")
                start = position + _LENGTH
                frame_end = start + length
                if frame_end > end:
                    break
                try:  # noqa: SIM105 - suppress() would take a third of the loop's time
                    append(decode_record(data[start:frame_end]))
                except msgspec.ValidationError:
                    # A frame that is msgpack but not a record, of a newer reqpath say, is lost alone.
                    pass
                position = frame_end
        except _UNDECODABLE:
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
        except _UNDECODABLE as error:
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
        gaps = sum(max(0, seen.last + 1 - seen.count) for seen in self._sequences.values())
        vanished = sum(records for writer_id, records in evicted.items() if writer_id not in self._sequences)
        self.losses.lost_records = gaps + vanished


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


def _count_frames(data: bytes) -> int:
    """Count the records of a spool file by hopping from length to length."""
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
