"""The collector's loop: takes nginx's log lines from sockets or files into the spool.

The layer below is the kernel's socket, whose buffer bridges the times in which the collector does not run;
`nginx.parse_line` makes the record, `spool.SpoolWriter` appends it.

A UDP socket on the loopback is the default. Its buffer is bounded in bytes: some 300 lines on a stock kernel,
thousands where it may be raised. A Unix datagram socket holds `net.unix.max_dgram_qlen` lines, 10 on a stock
kernel, whatever its buffer. At 2,000 lines a second beside four busy processes on two CPUs, the Unix socket
lost 1.9 % of the lines and UDP none. Nothing resends: nginx drops a line that it can't hand over at once.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Final, Protocol

import reqpath
from reqpath.collect.nginx import Rejection, parse_line
from reqpath.configuration import Listen
from reqpath.errors import ConfigurationError
from reqpath.record import FORMAT_VERSION, WriterInfo, encode
from reqpath.settings import Settings
from reqpath.spool import SpoolWriter, prepare_spool

#: Asked for; without CAP_NET_ADMIN the kernel gives at most `net.core.rmem_max`.
_BUFFER_BYTES: Final = 8 << 20
_MAX_DATAGRAM_BYTES: Final = 65_536
#: A line of a file that is longer is of no format of ours.
_MAX_LINE_BYTES: Final = 65_536
#: Lines taken from one source before the others get their turn.
_BATCH: Final = 256
#: How often the kernel is asked for its drops.
_CHECK_MS: Final = 1_000
#: The same while the end is near.
_END_CHECK_MS: Final = 20
#: Between two looks at a socket that holds many lines: to be woken for each takes the CPU from the very
#: workers that are measured, and more of it than the lines do. The socket's buffer has to last so long at
#: `_MOST_LINES_S`; an unprivileged one, of 332 lines, for 20 ms.
_GATHER_S: Final = 0.1
_MOST_LINES_S: Final = 16_000
#: Of the kernel's buffer for one line.
_BUFFERED_BYTES: Final = 1_280
#: The end is when nothing came for so long: nginx logs a request a little after its worker is done with it.
_SETTLE_MS: Final = 50
_SETTLE_LIMIT_NS: Final = 1_000_000_000
# Linux's numbers, which Python's socket module does not name. Source: include/uapi/asm-generic/socket.h
_SO_RCVBUFFORCE: Final = 33
_SO_MEMINFO: Final = 55
#: Of `SO_MEMINFO`: nine 32-bit numbers, the last is the drops. Source: include/uapi/linux/sock_diag.h
_MEMINFO: Final = struct.Struct("=32xI")
_DROPS: Final = struct.Struct("=I")


@dataclass(slots=True)
class Counts:
    """What happened to the lines since the start."""

    recorded: int = 0
    #: Lines that are no record, by reason.
    rejected: Counter[Rejection] = field(default_factory=Counter)
    #: Lines that the kernel had no room for. Excludes those that nginx could not hand to a Unix socket.
    kernel_dropped: int = 0
    #: Records that did not fit into the spool, or that it could not take.
    spool_dropped: int = 0

    @property
    def received(self) -> int:
        """Lines that reached the collector."""
        return self.recorded + self.spool_dropped + self.rejected.total()


class Source(Protocol):
    """Something that brings lines."""

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when there are lines."""

    def read_lines(self) -> list[bytes] | None:
        """Return at most a batch of what is there, without waiting; None at the end."""

    def take_drops(self) -> int:
        """Return how many lines were dropped on the way to this source since the last call."""

    def close(self) -> None:
        """Give up the descriptor."""


class DatagramSource:
    """A bound UDP or Unix datagram socket; it may be bound in one process and read in its children."""

    def __init__(self, listen: Listen, *, mode: int = 0o666, keep_path: bool = False) -> None:
        """Bind; `mode` is of a Unix socket, where nginx's workers, another user, must be able to write.

        `keep_path` leaves the path of a Unix socket there when this is closed.

        Raises: ConfigurationError when it can't be had.
        """
        self._path = "" if keep_path else listen.path
        # Shared with the children, so that no drop is counted by two of them.
        self._drops = mmap.mmap(-1, _DROPS.size)
        if listen.is_unix:
            _remove_stale(listen.path)
            family = socket.AF_UNIX
        else:
            family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            self._socket.bind(listen.path or (listen.host, listen.port))
            if listen.is_unix:
                os.chmod(listen.path, mode)
                self._inode = os.lstat(listen.path).st_ino
            buffer_bytes = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        except OSError as error:
            self._socket.close()
            raise ConfigurationError(_explain_bind(listen, error)) from error
        lasts_s = buffer_bytes / (_BUFFERED_BYTES * _MOST_LINES_S)
        #: How long lines may gather in it. A Unix socket holds 10 of them, whatever its buffer.
        self.gather_s = 0.0 if listen.is_unix else min(_GATHER_S, lasts_s)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def read_lines(self) -> list[bytes] | None:
        """Return at most a batch of the datagrams that are there."""
        lines: list[bytes] = []
        # ECONNREFUSED and the like tell of other datagrams; those that are there come with the next call.
        with contextlib.suppress(OSError):
            while len(lines) < _BATCH:
                lines.append(self._socket.recv(_MAX_DATAGRAM_BYTES))
        return lines

    def take_drops(self) -> int:
        """Return how many datagrams did not fit into the kernel's buffer since the last call."""
        try:
            (drops,) = _MEMINFO.unpack(self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
        except (OSError, struct.error):
            return 0
        (taken,) = _DROPS.unpack_from(self._drops)
        _DROPS.pack_into(self._drops, 0, drops)
        return int(drops - taken) % (1 << 32)

    def close(self) -> None:
        """Close the socket, and remove its path unless another collector has taken it."""
        self._socket.close()
        self._drops.close()
        if self._path:
            with contextlib.suppress(OSError):
                if os.lstat(self._path).st_ino == self._inode:
                    os.unlink(self._path)


class FileSource:
    """A log file, from its start to its end; `-` is the standard input, a pipe from `tail -F` say."""

    def __init__(self, path: str) -> None:
        """Raises: ConfigurationError when it can't be read."""
        try:
            self._fd = (
                os.dup(sys.stdin.fileno()) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            )
            if stat.S_ISDIR(os.fstat(self._fd).st_mode):
                os.close(self._fd)
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        except OSError as error:
            raise ConfigurationError(f"can't read the log {path}: {error.strerror}") from error
        self._rest = b""
        self._ended = False

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._fd

    def read_lines(self) -> list[bytes] | None:
        """Return the next whole lines, and at the end what is left without a newline."""
        if self._ended:
            return None
        data = os.read(self._fd, _MAX_LINE_BYTES)
        if not data:
            self._ended = True
            return [self._rest] if self._rest else None
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        return [line for line in lines if line]

    def take_drops(self) -> int:
        """Return 0: nothing is lost in a file."""
        return 0

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


class Receiver:
    """Takes lines from its sources into a spool until it is told to stop, or all sources have ended.

    The sources stay the caller's to close.
    """

    def __init__(
        self,
        settings: Settings,
        sources: Sequence[Source],
        *,
        report: Callable[[str], None],
        work: Callable[[], int] | None = None,
    ) -> None:
        """`report` gets one message for each kind of trouble.

        `work` is called between two looks at the sources, for some milliseconds at most, and returns in how
        many ms it wants to be called again.

        Raises: SpoolError when the spool can't be written.
        """
        prepare_spool(settings.spool_directory)
        self.counts = Counts()
        self._settings = settings
        self._sources = list(sources)
        self._report = report
        self._work = work
        self._writer = SpoolWriter(
            settings.spool_directory, self._build_info, max_bytes=settings.spool_max_bytes, report=report
        )
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._stopping = False
        self._may_stop: Callable[[], bool] | None = None

    def stop(self, when: Callable[[], bool] | None = None) -> None:
        """Have `run` end after what the kernel holds; may be called from a signal handler or a thread.

        With `when` it goes on until that returns True.
        """
        self._may_stop = when
        self._stopping = True
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def run(self) -> Counts:
        """Receive until the end and return the counts; to be called once."""
        poller = select.poll()
        active = {source.fileno(): source for source in self._sources}
        # poll and not epoll, which takes no regular files.
        for descriptor in (self._wake.fileno(), *active):
            poller.register(descriptor, select.POLLIN)
        try:
            while active and not self._is_over():
                wait_ms = _END_CHECK_MS if self._stopping else _CHECK_MS
                if self._work is not None:
                    wait_ms = min(wait_ms, self._work())
                ready = poller.poll(wait_ms)
                for descriptor, _ in ready:
                    if descriptor in active and not self._take_batch(active[descriptor]):
                        poller.unregister(descriptor)
                        del active[descriptor]
                    elif descriptor == self._wake.fileno():
                        self._wake.recv(64)
                self._note_drops()
                if ready and wait_ms and not self._stopping:
                    time.sleep(min(map(_gather_s, active.values()), default=0.0))
            self._settle([source for source in active.values() if isinstance(source, DatagramSource)])
            self._note_drops()
        finally:
            self._writer.close()
            self._wake.close()
            self._waker.close()
        return self.counts

    def _is_over(self) -> bool:
        return self._stopping and (self._may_stop is None or self._may_stop())

    def _settle(self, sources: list[DatagramSource]) -> None:
        """Take what the kernel holds and what is on its way, and not what goes on coming."""
        poller = select.poll()
        for source in sources:
            poller.register(source.fileno(), select.POLLIN)
        limit_ns = time.monotonic_ns() + _SETTLE_LIMIT_NS
        while sources and poller.poll(_SETTLE_MS) and time.monotonic_ns() < limit_ns:
            for source in sources:
                self._take_batch(source)

    def _take_batch(self, source: Source) -> bool:
        try:
            lines = source.read_lines()
        except OSError as error:
            self._report(f"can't read on: {error.strerror}")
            return False
        if lines is None:
            return False
        self._record(lines)
        return True

    def _record(self, lines: list[bytes]) -> None:
        counts = self.counts
        next_sequence = self._writer.next_sequence
        payloads: list[bytes] = []
        for line in lines:
            record = parse_line(line)
            if isinstance(record, Rejection):
                counts.rejected[record] += 1
                if counts.rejected[record] == 1:
                    self._report(
                        f"a line was no record, {record.value}: {line[:120]!r}; "
                        "does nginx log it in the format of `reqpath config nginx`? Further ones are counted"
                    )
                continue
            record.sequence = next_sequence()
            payloads.append(encode(record))
        recorded = self._writer.append_all(payloads)
        counts.recorded += recorded
        counts.spool_dropped += len(payloads) - recorded

    def _note_drops(self) -> None:
        """Count what the kernel dropped, and leave out as many numbers, so that a reader counts them lost."""
        for source in self._sources:
            dropped = source.take_drops()
            if not dropped:
                continue
            if not self.counts.kernel_dropped:
                self._report("the kernel dropped lines: they come faster than the collector gets CPU time")
            self.counts.kernel_dropped += dropped
            for _ in range(dropped):
                self._writer.next_sequence()

    def _build_info(self, writer_id: str) -> WriterInfo:
        return WriterInfo(
            FORMAT_VERSION,
            writer_id,
            "nginx",
            self._settings.service_name or "nginx",
            socket.gethostname(),
            os.getpid(),
            time.time_ns(),
            reqpath.__version__,
            server="nginx",
        )


def _gather_s(source: Source) -> float:
    return source.gather_s if isinstance(source, DatagramSource) else 0.0


@contextlib.contextmanager
def stopped_by_signals(receiver: Receiver) -> Iterator[None]:
    """Have SIGTERM and SIGINT stop the receiver; call it in the main thread."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        receiver.stop()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _remove_stale(path: str) -> None:
    """Remove the socket that a killed collector left.

    Raises: ConfigurationError when something else is there.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"can't listen on {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigurationError(f"can't listen on {path}: it is there and no socket; choose another path")
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        raise ConfigurationError(
            f"can't listen on {path}: the socket belongs to uid {found.st_uid}, "
            f"this process is uid {os.geteuid()}; remove it, or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            # Nobody has it open.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as error:
            raise ConfigurationError(f"can't listen on {path}: {error.strerror}") from error
        else:
            raise ConfigurationError(
                f"can't listen on {path}: a collector listens there already; stop it, or choose another path"
            )


def _explain_bind(listen: Listen, error: OSError) -> str:
    advice = {
        errno.EADDRINUSE: "something listens there already, another collector say; "
        "stop it, or choose another port for --listen (REQPATH_LISTEN) and for nginx",
        errno.EADDRNOTAVAIL: "this machine has no such address",
        errno.EACCES: "this user may not; choose a port above 1023, or a directory of your own",
        errno.ENOENT: "there is no such directory",
    }.get(error.errno or 0, error.strerror or "unknown error")
    return f"can't listen on {listen}: {advice}"
