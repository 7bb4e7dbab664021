"""Appending to the spool, from the app's process: what can't be written is counted, and nothing waits."""

from __future__ import annotations

import bisect
import contextlib
import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Any, Final

from reqpath.errors import SpoolError
from reqpath.forks import NO_PROCESS, Mark, mark_process
from reqpath.raw import index_of
from reqpath.record import WriterInfo, encode, encode_into
from reqpath.spool.files import (
    FRAME_LENGTH,
    LENGTH_BYTES,
    MAGIC,
    MAX_FRAME_BYTES,
    SUFFIX,
    evict_file,
    list_files,
    prepare_spool,
)

#: What a usual record is far below.
PLAIN_BYTES: Final = 1 << 14
_SEQUENCE: Final = index_of("sequence")
_pack_length: Final = FRAME_LENGTH.pack_into


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
        encode_odd: Callable[[list[Any]], bytes] = encode,
    ) -> None:
        """`build_info` takes the writer's id; `report` gets one message each time that the spool breaks.

        `encode_odd` makes what can be kept of a record that can't be encoded or has more than `PLAIN_BYTES`.
        """
        self._directory = directory
        self._build_info = build_info
        self._max_bytes = max_bytes
        self._file_bytes = max(64 << 10, min(8 << 20, max_bytes // 8))
        # Several processes fill the spool, so each looks after the bound more often than it starts a file.
        self._step_bytes = self._file_bytes // 8
        self._report = report
        self._encode_odd = encode_odd
        self._retry_ns = int(retry_s * 1e9)
        self._process = _Process(0, NO_PROCESS)
        self._processes: dict[int, _Process] = {}

    @property
    def dropped(self) -> int:
        """Records of this process that did not reach the spool."""
        return self._process.dropped

    def next_sequence(self) -> int:
        """Return the number of this process's next record, from 0; ask for it right before each `append`."""
        process = self._process
        if not process.mark[0]:
            process = self._become_this_process()
        return next(process.sequences)

    def append_record(self, record: list[Any], now_ns: int) -> bool:
        """Number a record, encode and append it; return whether it is in the spool.

        `record` is the list of a `raw.RawRecord`, `now_ns` is the monotonic clock. This is each request's,
        so what `append` does is written out for a record and a file that are as nearly all are.
        """
        process = self._process
        if not process.mark[0]:
            process = self._become_this_process()
        record[_SEQUENCE] = next(process.sequences)
        try:
            frame = process.frames.pop()
        except IndexError:
            # At first, and while other threads have theirs in use.
            frame = bytearray(LENGTH_BYTES)
        try:
            encode_into(record, frame, LENGTH_BYTES)
        except (UnicodeEncodeError, TypeError, OverflowError):
            return self.append(self._encode_odd(record))
        size = len(frame)
        if size > PLAIN_BYTES:
            return self.append(self._encode_odd(record))
        if process.size > process.next_look or now_ns > process.look_at_ns:
            return self.append(frame[LENGTH_BYTES:])
        try:
            _pack_length(frame, 0, size - LENGTH_BYTES)
            if os.write(process.fd, frame) != size:
                raise process.cut_off()
        except Exception as error:
            self._lose(process, error)
            return False
        process.size += size
        process.frames.append(frame)
        return True

    def append(self, payload: bytes | bytearray) -> bool:
        """Append one encoded record; return whether it is in the spool."""
        process = self._process
        try:
            size = len(payload)
            if size > MAX_FRAME_BYTES:
                # No reader would take it, nor what follows it.
                process.dropped += 1
                return False
            frame = size.to_bytes(LENGTH_BYTES, "little") + payload
            now_ns = monotonic_ns()
            # Where there is no whole file to go on with, the size is `_FULL`.
            if process.size > process.next_look or now_ns > process.look_at_ns:
                self._look_after(process, now_ns)
                if process.fd < 0 or process.torn:
                    return self._append_alone(process, frame, now_ns)
            size += LENGTH_BYTES
            if os.write(process.fd, frame) != size:
                raise process.cut_off()
        except Exception as error:
            self._lose(process, error)
            return False
        process.size += size
        return True

    def append_all(self, payloads: Sequence[bytes]) -> int:
        """Append encoded records, if possible by one `write`; return how many of them are in the spool."""
        if not payloads:
            return 0
        process = self._process
        sizes = list(map(len, payloads))
        whole = 0
        try:
            now_ns = monotonic_ns()
            if process.size > process.next_look or now_ns > process.look_at_ns:
                self._look_after(process, now_ns)
            if process.fd < 0 or process.torn or max(sizes) > MAX_FRAME_BYTES:
                return sum(map(self.append, payloads))
            frames = [
                size.to_bytes(LENGTH_BYTES, "little") + payload
                for size, payload in zip(sizes, payloads, strict=True)
            ]
            written = os.write(process.fd, b"".join(frames))
            process.size += written
            ends = list(itertools.accumulate(map(len, frames)))
            whole = bisect.bisect_right(ends, written)
            if written == ends[-1]:
                return whole
            raise process.cut_off()
        except Exception as error:
            self._lose(process, error)
        # What follows the one that is lost may find room in another file.
        return whole + sum(map(self.append, payloads[whole + 1 :]))

    def close(self) -> None:
        """Close the file; the next append opens another."""
        process = self._process
        if process.fd >= 0 and process.mark[0]:
            os.close(process.fd)
        process.abandon_file()

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self.close()

    def _become_this_process(self) -> _Process:
        """Start anew after a fork: the descriptor, the numbers and perhaps a held lock are the parent's."""
        own = _Process(os.getpid(), mark_process())
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
            process.look_at_ns = now_ns + _LOOK_NS
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
                raise _no_space()
        finally:
            os.close(fd)
        return True

    def _open_file(self, process: _Process) -> tuple[str, int]:
        """Create a file with its head. Raises: OSError, SpoolError."""
        prepare_spool(self._directory)
        info = encode(self._build_info(process.writer_id))
        head = MAGIC + len(info).to_bytes(LENGTH_BYTES, "little") + info
        path = os.path.join(self._directory, f"{process.writer_id}-{next(process.files):06d}{SUFFIX}")
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, head) != len(head):
                raise _no_space()
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
        files = sorted(list_files(self._directory), key=lambda file: (file.modified_ns, file.path))
        excess = sum(file.size for file in files) + self._file_bytes - self._max_bytes
        for file in files:
            if excess <= 0:
                break
            if file.path == process.path:
                continue
            excess -= file.size
            # One that is not there was removed, and noted, by another process.
            with contextlib.suppress(OSError):
                evict_file(self._directory, file)


def _no_space() -> OSError:
    """Return what a `write` that was cut off means; the kernel says it at the next one."""
    return OSError(errno.ENOSPC, "No space left on device")


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
        "frames",
        "lock",
        "look_at_ns",
        "mark",
        "next_look",
        "path",
        "pid",
        "sequences",
        "size",
        "torn",
        "writer_id",
    )

    def __init__(self, pid: int, mark: Mark) -> None:
        self.pid = pid
        self.mark = mark
        self.writer_id = os.urandom(8).hex()
        self.files = itertools.count(1)
        self.sequences = itertools.count()
        #: To encode into: making one takes longer than what is written.
        self.frames: list[bytearray] = []
        self.lock = threading.Lock()
        self.dropped = 0
        self.look_at_ns = 0
        self.broken_until_ns = 0
        self.abandon_file()

    def cut_off(self) -> OSError:
        """Have nothing follow the frame that was not written whole; return why it was not."""
        self.torn = True
        return _no_space()

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
