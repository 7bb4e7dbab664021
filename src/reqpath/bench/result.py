"""The result of a benchmark: what was run, where, and what each run measured (docs/bench-json.md).

One run's record holds the whole histogram of what its clients waited, and the sums of each segment's time
over its requests, so that every figure can be made again from the file. While a benchmark runs, its *journal*
grows by one line for each finished run, which is on the disk before the next one begins; at the end it is
sealed into the result::

    with Journal.create("bench.jsonl", head) as journal:
        journal.append(run)
    result = read_result("bench.jsonl")     # a journal or a sealed result, also one that was interrupted
    write_result("bench.json", result)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from typing import Final

import msgspec

from reqpath.bench.plan import Plan
from reqpath.errors import ResultError
from reqpath.tiers import NAMES

#: Of this format: bumped when a field goes or changes its meaning; new fields come without.
VERSION: Final = 1
FORMAT: Final = "reqpath bench"

#: What a client waited for, in the order in which a request meets it; these add up to its latency. Beside the
#: segments of a request path: `client.lag`, from the planned send to the true one; `client.network`, from
#: there to the answer's last byte, less what nginx had of it; `residual`, what no segment of the path has.
CLIENT_SEGMENTS: Final = ("client.lag", "client.network", *NAMES, "residual")


class Reason(msgspec.Struct, frozen=True):
    """Why a run is invalid, or what limits it."""

    #: `generator lag`: the same for all of its kind.
    name: str
    #: In words, with the figures: "the generator's p99 lag is 210 µs, 31 % of the median latency".
    text: str


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over some of a run's requests: those answered well whose path is known."""

    requests: int
    #: From the planned send to the last byte; the sum of `segments_ns`.
    client_ns: int
    #: Of `CLIENT_SEGMENTS`; one that is not there is 0.
    segments_ns: dict[str, int]
    #: Segment → requests that don't know it; their time is in the residual.
    unknown: dict[str, int] = {}
    #: Requests whose worker's time is known as CPU, run queue and blocked.
    lens_requests: int = 0
    #: Over those: `cpu`, `run queue`, `calls`, `other`; the last two are blocked, see docs/tiers.md.
    lens_ns: dict[str, int] = {}


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    """One run of one cell: what was sent, what came back, how long it took and what speaks against it."""

    #: Key of the cell.
    cell: str
    twin: bool
    block: int
    order: int
    seed: int
    #: Wall clock of what is measured: after the warm-up, until the last answer.
    start_ns: int
    end_ns: int
    warm_up_requests: int
    rate_per_s: float
    #: Arrivals after the warm-up: planned = answered + failures + dropped.
    planned: int
    answered: int
    #: Kind → requests: `status 502`, `timeout`, `connection refused`.
    failures: dict[str, int]
    #: Arrivals that were never sent, as too many requests were under way.
    dropped: int
    #: ns from the planned send to the last byte, of the answered: a histogram of `bench.histogram`.
    latency: str
    #: ns from the planned send to the true one, of all that were sent.
    lag: str
    #: All that were answered and joined with their path.
    whole: Slice
    #: Of these the hundredth with the longest latency, at least one.
    slowest: Slice
    #: Requests under way, the mean of samples; None without samples.
    in_flight: float | None
    #: By Little's law, the arrival rate times the mean time under way; None when nothing was answered.
    in_flight_expected: float | None
    #: Connections that a full listen queue did not take; None: not known.
    listen_overflows: int | None
    #: Of the machine's CPU time: taken by other guests, not idle, and used by the generator.
    steal_share: float | None
    cpu_share: float | None
    generator_share: float | None
    #: How good nginx's stamps are.
    resolution_ns: int
    #: `listen_overflows` by server, where each listening socket is known by itself; empty: it is not.
    listen_queues: dict[str, int] = {}
    #: Mean latency of what was planned in each tenth of the measured time; None: nothing of it was answered.
    tenths_ns: tuple[int | None, ...] = ()
    #: The cell could not keep up with what it was sent: its times are those of the queue, not of the cell.
    saturated: bool = False
    #: Not empty: the run counts for nothing.
    invalid: tuple[Reason, ...] = ()
    #: What is to be known beside its figures, such as cores that the client shares with the servers.
    limits: tuple[Reason, ...] = ()

    @property
    def seconds_s(self) -> float:
        """How long it was measured."""
        return (self.end_ns - self.start_ns) / 1e9

    @property
    def failed(self) -> int:
        """Arrivals without a good answer: failures and dropped ones."""
        return sum(self.failures.values()) + self.dropped

    @property
    def is_valid(self) -> bool:
        """Whether its times may be compared."""
        return not self.invalid and not self.saturated and self.whole.requests > 0


class CapacityStep(msgspec.Struct, frozen=True):
    """A closed loop at one concurrency."""

    concurrency: int
    requests_per_s: float
    errors: int


class Capacity(msgspec.Struct, frozen=True, kw_only=True, tag="capacity"):
    """How much a cell can do."""

    #: Key of the cell.
    cell: str
    #: The most of any step.
    requests_per_s: float
    steps: tuple[CapacityStep, ...]
    #: `wrk 4.1.0`.
    tool: str


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Where it ran. What is not known is empty or None."""

    #: Tells machines apart without naming them.
    identity: str
    kernel: str
    cpu_model: str
    cores: int
    #: Of the CPU's frequency: `performance`.
    governor: str
    memory_bytes: int
    somaxconn: int | None
    #: `nginx`, `uwsgi`, `python`, `database`, `reqpath` → version.
    versions: dict[str, str]


class Configuration(msgspec.Struct, frozen=True, kw_only=True, tag="configuration"):
    """The rendered configuration of a cell."""

    #: Key of the cell.
    cell: str
    #: `nginx.conf`, `uwsgi.ini`, `database options` → text.
    files: dict[str, str]


class Head(msgspec.Struct, frozen=True, kw_only=True, tag="head"):
    """What is known before the first run."""

    plan: Plan
    host: Host
    created_ns: int
    #: The command that makes it again.
    command: str = ""
    format: str = FORMAT
    version: int = VERSION


class Rates(msgspec.Struct, frozen=True, tag="rates"):
    """What each workload is sent, in requests per second."""

    by_workload: dict[str, float]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All of a benchmark."""

    plan: Plan
    host: Host
    created_ns: int
    command: str = ""
    format: str = FORMAT
    version: int = VERSION
    #: Workload → requests per second.
    rates: dict[str, float] = {}
    capacities: tuple[Capacity, ...] = ()
    configurations: tuple[Configuration, ...] = ()
    runs: tuple[RunRecord, ...] = ()

    @property
    def made(self) -> int:
        """How many runs of the plan were made, once or more often."""
        return len({(run.block, run.cell, run.twin) for run in self.runs})

    @property
    def complete(self) -> bool:
        """Whether every run of the plan was made."""
        return self.made >= self.plan.blocks * (len(self.plan.cells) + 1)


Entry = Head | Rates | Capacity | Configuration | RunRecord


class Journal:
    """The file to which a benchmark appends what it has; a context manager.

    As long as it is open nobody else can open it to write; reading it is free.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        """Use `create` or `resume`."""
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def create(cls, path: str, head: Head) -> Journal:
        """Begin a journal. Raises: ResultError when there is such a file, or it can't be written."""
        with _telling(path):
            journal = cls(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644))
        try:
            _lock(path, journal._descriptor)
            journal.append(head)
        except ResultError:
            journal.close()
            raise
        return journal

    @classmethod
    def resume(cls, path: str) -> tuple[Journal, Result]:
        """Go on with a journal: return it, and what it has. A line that was cut short is cut off.

        Raises: ResultError when it can't be read or written, is none, or another process goes on with it.
        """
        with _telling(path):
            journal = cls(path, os.open(path, os.O_WRONLY | os.O_APPEND))
        try:
            _lock(path, journal._descriptor)
            # Read behind the lock: nobody has a line under way.
            data = _read_bytes(path)
            result = _read_journal(path, data)
            with _telling(path):
                os.ftruncate(journal._descriptor, data.rfind(b"\n") + 1)
        except ResultError:
            journal.close()
            raise
        return journal, result

    def append(self, entry: Entry) -> None:
        """Append one line; when this returns it is on the disk. Raises: ResultError when it can't be."""
        line = msgspec.json.encode(entry) + b"\n"
        size = os.fstat(self._descriptor).st_size
        with _telling(self.path):
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
                os.fsync(self._descriptor)
            except OSError:
                # Half a line on a full disk would hide what comes after it.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, size)
                raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_result(path: str) -> Result:
    """Read a sealed result, or the journal of one that is not.

    Raises:
        ResultError: it can't be read, is something else, or of another version.
    """
    data = _read_bytes(path)
    first = data.split(b"\n", 1)[0]
    try:
        head = msgspec.json.decode(first, type=_Start)
    except msgspec.DecodeError:
        head = None
    if head is not None and head.type == "head":
        return _read_journal(path, data)
    _check_version(path, data)
    try:
        return msgspec.json.decode(data, type=Result)
    except msgspec.DecodeError as error:
        raise ResultError(f"{path} is not a whole result of reqpath bench: {error}") from error


def write_result(path: str, result: Result) -> None:
    """Write a result; the file is there whole or not at all. Raises: ResultError."""
    with _telling(path):
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".reqpath-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


class _Start(msgspec.Struct):
    """What tells a result from another file."""

    format: str = ""
    version: int | None = None
    type: str = ""


def _check_version(path: str, data: bytes) -> None:
    try:
        start = msgspec.json.decode(data, type=_Start)
    except msgspec.DecodeError as error:
        raise ResultError(f"{path} is not a result of reqpath bench: {error}") from error
    if start.format != FORMAT:
        raise ResultError(f"{path} is not a result of reqpath bench")
    if start.version != VERSION:
        raise ResultError(
            f"{path} has version {start.version} of the format and this reqpath reads version {VERSION}; "
            "read it with the reqpath that wrote it"
        )


def _read_journal(path: str, data: bytes) -> Result:
    lines = data.split(b"\n")
    # After the last newline is nothing, or a line that was cut short.
    torn = lines.pop()
    if not lines:
        raise ResultError(f"{path} is not a result of reqpath bench{': it is cut short' if torn else ''}")
    _check_version(path, lines[0])
    decoder = msgspec.json.Decoder(Entry)
    head: Head | None = None
    rates: dict[str, float] = {}
    capacities: list[Capacity] = []
    configurations: list[Configuration] = []
    runs: list[RunRecord] = []
    for number, line in enumerate(lines, 1):
        try:
            entry = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise ResultError(f"{path}, line {number}: {error}") from error
        match entry:
            case Head():
                head = entry
            case Rates():
                rates = entry.by_workload
            case Capacity():
                capacities.append(entry)
            case Configuration():
                configurations.append(entry)
            case RunRecord():
                runs.append(entry)
    if head is None:
        raise ResultError(f"{path} has no head")
    return Result(
        plan=head.plan,
        host=head.host,
        created_ns=head.created_ns,
        command=head.command,
        rates=rates,
        capacities=tuple(capacities),
        configurations=tuple(configurations),
        runs=tuple(runs),
    )


def _read_bytes(path: str) -> bytes:
    with _telling(path), open(path, "rb") as file:
        return file.read()


def _lock(path: str, descriptor: int) -> None:
    """Keep other processes from writing until the descriptor is closed. Raises: ResultError when one does."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ResultError(f"another reqpath bench is writing {path}; wait for its end") from error
    except OSError:
        # Some network file systems have no locks; then nobody is kept out.
        return
    if not os.fstat(descriptor).st_nlink:
        raise ResultError(f"another reqpath bench has ended {path} this moment; its result is beside it")


@contextlib.contextmanager
def _telling(path: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise ResultError(f"{path} is there already; name another file, or go on with --resume") from error
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from error
