"""Reading the spool: every whole record, once, and an exact count of what is missing."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from reqpath.errors import SpoolError
from reqpath.record import (
    FORMAT_VERSION,
    WriterInfo,
    decode_info,
)
from reqpath.spool.files import (
    FRAME_LENGTH,
    LENGTH_BYTES,
    MAGIC,
    MAX_FRAME_BYTES,
    SpoolFile,
    list_files,
    read_evicted,
)
from reqpath.usual import AnyRecord, UsualRecord, complete, finished_at_ns, is_usual

#: What damaged bytes raise: not msgpack, text that is not UTF-8, and lists in lists without end.
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_decode_frame = msgspec.msgpack.Decoder(AnyRecord).decode
#: The beginning of a frame as nearly all have it: of a line of nginx's, and of a worker's record with nginx's
#: stamps. It ends with the trace id.
_TRACE_ID = re.compile(
    rb"\xdc..(?:\x02\xd9\x20|\x04\xcf.{8}[\x99\x9d]\xd9\x3700-(?=.{32}-(?!0{16})[0-9a-f]{16}-0[01]))"
    rb"(?!0{32})[0-9a-f]{32}",
    re.DOTALL,
).match


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


class _Sequences(msgspec.Struct, array_like=True):
    """What was seen of one writer's numbers."""

    first: int
    last: int
    count: int


class Bookmark(msgspec.Struct, array_like=True):
    """How far a reader is, for another one to go on from."""

    #: By file: the offset, and the instant that its records have reached.
    files: dict[str, tuple[int, int]] = {}
    writers: dict[str, _Sequences] = {}


#: One writer's records in the order in which they were written.
Batch = tuple[WriterInfo, list[AnyRecord]]


class SpoolReader:
    """Reads a spool's records in batches, roughly in the order of time; can go on where it stopped.

    Batches of different files interleave such that none runs ahead of another by more than one batch, so a
    join needs to hold only as much.
    """

    def __init__(
        self,
        directory: str,
        *,
        batch_bytes: int = 1 << 18,
        files: Sequence[SpoolFile] | None = None,
        half: int | None = None,
    ) -> None:
        """`files` are read as far as is said here, at each `read`; None: what there is by then.

        `half` is 0 or 1: only the records of that half of the traces are read, so that two processes can
        share the work, and `losses` are right when this has taken in the other's `bookmark`, by `absorb`.

        Raises: SpoolError when there is no such directory or it can't be read.
        """
        try:
            os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SpoolError(
                f"there is no spool at {directory}; name the directory that the app writes to "
                "(REQPATH_SPOOL), or run `reqpath demo` for a first look"
            ) from error
        except OSError as error:
            raise SpoolError(
                f"can't read the spool {directory}: {error.strerror}; it belongs to the app's user, "
                "so run this as that user or as root"
            ) from error
        self.directory = directory
        self.losses = SpoolLosses()
        #: Whether a collector has written into this spool, as of the last `read`.
        self.has_nginx_lines = False
        #: File and offset at which the batch that `read` yielded last begins.
        self.place = ("", 0)
        self._batch_bytes = batch_bytes
        self._files = files
        self._half = half
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
            self.place = (os.path.basename(cursor.path), offset)
            yield cursor.info, records
        self._count_losses()

    def bookmark(self) -> Bookmark:
        """Return how far this reader is; between two batches of a `read` too."""
        files = {
            os.path.basename(path): (cursor.offset, cursor.time_ns)
            for path, cursor in self._cursors.items()
            if cursor.info is not None
        }
        return Bookmark(files, self._sequences)

    def resume(self, bookmark: Bookmark) -> None:
        """Go on from there; to be called before the first `read`."""
        self._sequences = bookmark.writers
        for name, (offset, time_ns) in bookmark.files.items():
            cursor = _Cursor(os.path.join(self.directory, name))
            self._read_head(cursor)
            if cursor.info is not None:
                cursor.offset, cursor.time_ns = max(cursor.offset, offset), time_ns
                self._cursors[cursor.path] = cursor

    def absorb(self, other: Bookmark) -> None:
        """Take in what the reader of the other half of the traces has seen of the same files."""
        for writer_id, seen in other.writers.items():
            self._merge_sequences(writer_id, seen)
        self._count_losses()

    def skip(self, before_ns: int) -> None:
        """Leave out what the files hold that were last written to before an instant; before the first `read`.

        It counts as read, so it is not lost; what is added to them is read.
        """
        for file in sorted(list_files(self.directory), key=lambda file: file.path):
            cursor = _Cursor(file.path)
            if file.modified_ns < before_ns:
                self._read_head(cursor)
            if cursor.info is None:
                continue
            cursor.size = file.size
            records = self._read_last(cursor)
            self._cursors[file.path] = cursor
            # Without a record, at least the writer is known.
            last = records[-1].sequence if records else -1
            seen = self._sequences.setdefault(cursor.info.writer_id, _Sequences(0, -1, 0))
            seen.last = max(seen.last, last)
            seen.count = seen.last + 1

    def read_at(self, name: str, offset: int) -> Iterator[Batch]:
        """Yield the batches of one file from a `place` on, again; nothing when it is not there any more."""
        cursor = _Cursor(os.path.join(self.directory, name))
        self._read_head(cursor)
        if cursor.info is None:
            return
        with contextlib.suppress(FileNotFoundError):
            cursor.size = os.stat(cursor.path).st_size
        cursor.offset = max(cursor.offset, offset)
        before = -1
        while cursor.offset != before:
            before = cursor.offset
            if records := self._read_batch(cursor):
                yield cursor.info, records

    def _refresh(self) -> list[_Cursor]:
        active = []
        present = set()
        files = list_files(self.directory) if self._files is None else self._files
        for file in sorted(files, key=lambda file: file.path):
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

    def _read_batch(self, cursor: _Cursor) -> list[AnyRecord]:
        try:
            with open(cursor.path, "rb") as file:
                file.seek(cursor.offset)
                data = file.read(min(self._batch_bytes, cursor.size - cursor.offset))
                if len(data) >= LENGTH_BYTES:
                    need = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
                    if len(data) < need <= min(MAX_FRAME_BYTES, cursor.size - cursor.offset):
                        data += file.read(need - len(data))
        except FileNotFoundError:
            return []
        except OSError as error:
            self._give_up(cursor, error.strerror or "unreadable")
            return []
        records: list[AnyRecord] = []
        append, unpack_length, half = records.append, FRAME_LENGTH.unpack_from, self._half
        writer_id = "" if cursor.info is None else cursor.info.writer_id
        position, end = 0, len(data)
        try:
            while position + LENGTH_BYTES <= end:
                (length,) = unpack_length(data, position)
                if length > MAX_FRAME_BYTES:
                    raise msgspec.DecodeError("the length is not one of a frame")
                start = position + LENGTH_BYTES
                frame_end = start + length
                if frame_end > end:
                    break
                trace_id = None if half is None else _TRACE_ID(data, start, frame_end)
                if trace_id is not None and data[trace_id.end() - 1] & 1 != half:
                    position = frame_end
                    continue
                try:
                    record = _decode_frame(data[start:frame_end])
                    if record.__class__ is UsualRecord and not is_usual(record):
                        record = complete(record, writer_id)
                    if half is None or trace_id is not None or ord(record.trace_id[-1:] or "0") & 1 == half:
                        append(record)
                except msgspec.ValidationError:
                    # A frame that is msgpack but not a record, of a newer reqpath say, is lost alone.
                    pass
                position = frame_end
        except _UNDECODABLE:
            cursor.broken = True
        cursor.offset += position
        return records

    def _read_last(self, cursor: _Cursor) -> list[AnyRecord]:
        """Go to the end of the file, from length to length; return its last record."""
        try:
            with open(cursor.path, "rb") as file:
                data = file.read(cursor.size)
        except OSError:
            return []
        position = cursor.offset
        while position + LENGTH_BYTES <= len(data):
            (length,) = FRAME_LENGTH.unpack_from(data, position)
            if position + LENGTH_BYTES + length > len(data):
                break
            cursor.offset = position
            position += LENGTH_BYTES + length
        return self._read_batch(cursor)

    def _read_head(self, cursor: _Cursor) -> None:
        """Read `MAGIC` and the `WriterInfo`; leave the cursor as it is while they are not whole."""
        start = len(MAGIC) + LENGTH_BYTES
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

    def _note_sequences(self, info: WriterInfo, records: list[AnyRecord]) -> None:
        numbers = [record.sequence for record in records]
        self._merge_sequences(info.writer_id, _Sequences(min(numbers), max(numbers), len(numbers)))

    def _merge_sequences(self, writer_id: str, more: _Sequences) -> None:
        seen = self._sequences.setdefault(writer_id, more)
        if seen is not more:
            seen.first = min(seen.first, more.first)
            seen.last = max(seen.last, more.last)
            seen.count += more.count

    def _count_losses(self) -> None:
        self.losses.torn_bytes = sum(
            cursor.size - cursor.offset
            for cursor in self._cursors.values()
            if cursor.info is not None and cursor.offset < cursor.size
        )
        self.losses.evicted_files, self.losses.evicted_records, evicted = read_evicted(self.directory)
        # A writer numbers from 0, so what precedes the first number seen was evicted, and what is missing
        # between first and last was torn, dropped, or evicted.
        gaps = sum(max(0, seen.last + 1 - seen.count) for seen in self._sequences.values())
        vanished = sum(records for writer_id, records in evicted.items() if writer_id not in self._sequences)
        self.losses.lost_records = gaps + vanished
