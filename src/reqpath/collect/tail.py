"""Follows a spool while it grows: joins its records, judges the paths, and keeps account of every record.

The layer below is `spool.SpoolReader` and `join.Joiner`; `keep.Keeper` judges; `export` takes the paths that
are kept and says when they are done::

    tail.step(until_ns)          the collector's loop: reads on, for some milliseconds
    kept = tail.take()           the exporting thread: waits for paths that are kept
    tail.done(kept)              … the backend has them, and the spool remembers it

A record is open from when it is read until its path is done, and the checkpoint holds the places of all that
are open. As long as the exporting thread has enough to do, nothing more is read: the spool holds the rest.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Final, Protocol, cast

from reqpath.collect.checkpoint import (
    Checkpoint,
    KeptPath,
    Place,
    build_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from reqpath.collect.clocks import ClockOffset, ClockOffsets, shift_nginx
from reqpath.collect.join import BATCH_BYTES, Joiner
from reqpath.collect.keep import Keeper
from reqpath.path import RequestPath
from reqpath.record import NginxRecord, WorkerRecord, WriterInfo
from reqpath.spool import Batch, SpoolReader
from reqpath.spool.files import read_evicted
from reqpath.usual import AnyRecord, UsualRecord, WorkerHead

#: Paths that are kept and not yet done; beyond, the spool is read no further.
MAX_PENDING: Final = 1_024
#: The exporting thread takes paths of about so many spans, so that no request is large.
_BATCH_SPANS: Final = 2_000
#: It waits until so many paths are there, or for so long.
_LINGER_PATHS: Final = 100
LINGER_S: Final = 2.0
_NEVER_NS: Final = 1 << 62
#: How often the checkpoint is written when nothing is exported.
_CHECKPOINT_NS: Final = 1_000_000_000


class Observer(Protocol):
    """Sees each path, kept or not."""

    def __call__(self, path: RequestPath, *, kept: bool) -> None:
        """Take one path."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A path to export."""

    #: In one clock.
    path: RequestPath
    reason: str
    offset: ClockOffset | None
    #: Where its records are, for the checkpoint.
    places: KeptPath

    @property
    def spans(self) -> int:
        """About how many spans it will be."""
        operations = len(self.path.worker.operations) if self.path.worker else 0
        return 8 + 2 * operations


class Tail:
    """Follows one spool; `step` and `finish` are for one thread, `take` and `done` for another."""

    def __init__(
        self,
        directory: str,
        keeper: Keeper,
        *,
        wait_s: float,
        expect_nginx: bool,
        from_start: bool = False,
        max_pending: int = MAX_PENDING,
        linger_s: float = LINGER_S,
        observe: Observer | None = None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`expect_nginx`: lines may come though the spool has none yet, so records wait for the first.

        `from_start` forgets what was exported before.

        Raises: SpoolError when the spool or its checkpoint can't be read.
        """
        checkpoint = None if from_start else read_checkpoint(directory)
        self.keeper = keeper
        self.clocks = ClockOffsets()
        self.reader = SpoolReader(directory, batch_bytes=BATCH_BYTES)
        #: Paths put together, those that are kept included.
        self.joined = 0
        self._directory = directory
        self._wait_ns = int(wait_s * 1e9)
        self._expect_nginx = expect_nginx
        self._max_pending = max_pending
        self._linger_s = linger_s
        self._observe = observe
        self._monotonic_ns = monotonic_ns
        self._joiner = Joiner()
        self._reading: Iterator[Batch] | None = None
        self._changed = threading.Condition()
        self._ending = False
        #: The records that wait, by their identity, which is their own as long as they are held here.
        self._waiting: dict[int, tuple[AnyRecord, Place]] = {}
        self._pending: deque[Kept] = deque()
        self._taken: list[Kept] = []
        self._start_ns = self._aged_ns = self._saved_ns = self._pass_ns = monotonic_ns()
        self._unsaved = False
        #: Records that a collector before this one held, whose files are gone.
        self._evicted_open = 0
        if checkpoint is not None:
            with self._changed:
                self._restore(checkpoint)
        else:
            # What was gone before there was a collector is none of its losses.
            self._evicted_before = read_evicted(directory)[1]

    @property
    def waiting(self) -> int:
        """Requests that wait for a partner."""
        return self._joiner.held

    @property
    def pending(self) -> int:
        """Paths that are kept and not yet done."""
        return len(self._pending) + len(self._taken)

    @property
    def is_full(self) -> bool:
        """Whether so many paths are pending that no more is read."""
        return self.pending >= self._max_pending

    @property
    def missed(self) -> int:
        """Records that are gone and were not exported: evicted, torn, or dropped by their writers.

        As of the latest time that the spool was read to its end.
        """
        return max(0, self.reader.losses.lost_records - self._evicted_before) + self._evicted_open

    def step(self, until_ns: int) -> bool:
        """Read on until a monotonic instant; return whether there is more to read at once."""
        while True:
            with self._changed:
                if self.is_full:
                    return False
                if self._reading is None:
                    self._reading = self.reader.read()
                    self._pass_ns = self._monotonic_ns()
                batch = next(self._reading, None)
                if batch is None:
                    self._reading = None
                    self._end_pass()
                    return False
                self._take_in(*batch)
            if self._monotonic_ns() >= until_ns:
                return True

    def finish(self) -> bool:
        """Read the spool to its end and wait no longer for any partner; False: too many paths are pending."""
        if self._reading is not None:
            self.step(_NEVER_NS)
        # Another pass, for what has come since that one began.
        self.step(_NEVER_NS)
        if self.is_full:
            return False
        with self._changed:
            self._judge(list(self._joiner.flush()))
        return True

    def end(self) -> None:
        """Have `take` wait no longer."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def wait_for_end(self, timeout_s: float) -> bool:
        """Wait until `end` was called, or for so long; return whether it was."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ending, timeout_s)

    def wait_for_progress(self, timeout_s: float) -> None:
        """Wait until paths are done, or for so long."""
        with self._changed:
            self._changed.wait(timeout_s)

    def take(self) -> list[Kept]:
        """Wait for paths that are kept and return some; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._ending)
            self._changed.wait_for(
                lambda: self._ending or len(self._pending) >= _LINGER_PATHS, self._linger_s
            )
            batch: list[Kept] = []
            spans = 0
            while self._pending and spans < _BATCH_SPANS:
                kept = self._pending.popleft()
                spans += kept.spans
                batch.append(kept)
            self._taken += batch
            return batch

    def done(self, batch: list[Kept]) -> None:
        """Close the records of paths that `take` returned, and remember that. Raises: OSError."""
        with self._changed:
            finished = set(map(id, batch))
            self._taken = [kept for kept in self._taken if id(kept) not in finished]
            self._changed.notify_all()
            self._save()

    def put_back(self, batch: list[Kept]) -> None:
        """Put paths that `take` returned behind the others."""
        with self._changed:
            returned = set(map(id, batch))
            self._taken = [kept for kept in self._taken if id(kept) not in returned]
            self._pending += batch

    def save(self) -> None:
        """Write the checkpoint. Raises: OSError."""
        with self._changed:
            self._save()

    def save_if_due(self) -> None:
        """Write the checkpoint when something was read and the last one is a second old. Raises: OSError."""
        if self._unsaved and self._monotonic_ns() - self._saved_ns >= _CHECKPOINT_NS:
            self.save()

    def _take_in(self, info: WriterInfo, records: list[AnyRecord]) -> None:
        # No bytecode for each record, of which there are two per request.
        name, offset = self.reader.place
        places = zip(repeat(name), repeat(offset), range(len(records)))
        self._waiting.update(zip(map(id, records), zip(records, places, strict=True), strict=True))
        kinds = (NginxRecord,) if info.kind == "nginx" else (UsualRecord, WorkerRecord)
        if not set(map(type, records)).issubset(kinds):
            # The join takes none of the other kind.
            for record in records:
                if not isinstance(record, kinds):
                    del self._waiting[id(record)]
        self._unsaved = True
        # Without any line after the first wait nginx sends none, so that records need not wait.
        self._joiner.expect_nginx = self.reader.has_nginx_lines or (
            self._expect_nginx and self._monotonic_ns() - self._start_ns < self._wait_ns
        )
        self._judge(self._joiner.add(info, records))

    def _end_pass(self) -> None:
        # Only here, since what waits may have its partner in what was not read yet: this pass has read all
        # that was there when it began.
        if self._pass_ns - self._aged_ns >= self._wait_ns:
            self._aged_ns = self._monotonic_ns()
            self._judge(self._joiner.release_aged())

    def _judge(self, paths: list[RequestPath]) -> None:
        decide, correct, observe = self.keeper.decide, self.clocks.correct, self._observe
        close = self._close
        pending = len(self._pending)
        self.joined += len(paths)
        for original in paths:
            path, offset = correct(original)
            reason = decide(path)
            if observe is not None:
                observe(path, kept=reason is not None)
            worker = None if original.head is None else close(original.head)
            nginx = None if original.nginx is None else close(original.nginx)
            retried = list(map(close, original.retried_heads))
            if reason is not None:
                places = KeptPath(reason, worker, nginx, retried, offset)
                self._pending.append(Kept(path, reason, offset, places))
        # The exporting thread waits for a first path, then for many; waking it for each costs both threads.
        if pending == 0 < len(self._pending) or pending < _LINGER_PATHS <= len(self._pending):
            self._changed.notify_all()

    def _close(self, record: AnyRecord) -> Place:
        """Return the place of a record that waits no more, and forget it."""
        return self._waiting.pop(id(record))[1]

    def _save(self) -> None:
        waiting: dict[tuple[str, int], list[int]] = {}
        for _record, (name, offset, number) in self._waiting.values():
            waiting.setdefault((name, offset), []).append(number)
        kept = [one.places for one in (*self._taken, *self._pending)]
        self._saved_ns = self._monotonic_ns()
        self._unsaved = False
        write_checkpoint(
            self._directory, build_checkpoint(self.reader.bookmark(), waiting, kept, self._evicted_before)
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Go on where another collector was."""
        self.reader.resume(checkpoint.bookmark)
        self._evicted_before = checkpoint.evicted_before
        wanted: dict[tuple[str, int], set[int]] = {}
        for name, offset, numbers in checkpoint.waiting:
            wanted.setdefault((name, offset), set()).update(numbers)
        for kept in checkpoint.kept:
            for name, offset, number in _places(kept):
                wanted.setdefault((name, offset), set()).add(number)
        found: dict[Place, tuple[AnyRecord, WriterInfo]] = {}
        for (name, offset), numbers_wanted in wanted.items():
            found.update(self._read_again(name, offset, numbers_wanted))
        self._evicted_open = sum(map(len, wanted.values())) - len(found)
        for kept in checkpoint.kept:
            # What is left of a path whose other half is gone is judged anew, with the records that wait.
            if all(place in found for place in _places(kept)):
                self._restore_kept(kept, found)
        self._joiner.expect_nginx = True
        for place, (record, info) in found.items():
            self._waiting[id(record)] = record, place
            self._judge(self._joiner.add(info, [record]))

    def _read_again(
        self, name: str, offset: int, numbers: set[int]
    ) -> Iterator[tuple[Place, tuple[AnyRecord, WriterInfo]]]:
        number, last = 0, max(numbers)
        for info, records in self.reader.read_at(name, offset):
            for record in records:
                if number in numbers:
                    yield (name, offset, number), (record, info)
                number += 1
            if number > last:
                return

    def _restore_kept(self, kept: KeptPath, found: dict[Place, tuple[AnyRecord, WriterInfo]]) -> None:
        """Put a path together as it was, so that sent once more it is the same."""
        worker, info = found.pop(kept.worker) if kept.worker else (None, None)
        nginx = found.pop(kept.nginx)[0] if kept.nginx else None
        retried = tuple(found.pop(place)[0] for place in kept.retried)
        # The kinds are those that were written down, so the checker can be told.
        original = RequestPath(
            cast(WorkerHead | None, worker),
            info,
            cast(NginxRecord | None, nginx),
            cast(tuple[WorkerHead, ...], retried),
        )
        offset = None if kept.offset is None else ClockOffset(*kept.offset)
        path = original if offset is None else shift_nginx(original, offset.correction_ns)
        self._pending.append(Kept(path, kept.reason, offset, kept))


def _places(kept: KeptPath) -> Iterator[Place]:
    if kept.worker is not None:
        yield kept.worker
    if kept.nginx is not None:
        yield kept.nginx
    yield from kept.retried
