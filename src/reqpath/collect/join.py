"""Join worker records and nginx lines into request paths, incrementally and with bounded memory.

The layer below is `spool.SpoolReader`, which delivers batches roughly in the order of time. The key is
(trace id, nginx's span id): a worker's `parent_id` is nginx's `span_id`, and the trace id alone may repeat
when a trusted client sends it with several requests::

    WorkerRecord(trace_id="a…", parent_id="b…") ┐
    NginxRecord(trace_id="a…", span_id="b…")    ┘→ RequestPath(worker, info, nginx)

Whatever finds no partner becomes a path by itself: a worker's record when there is no collector, nginx's
line when no worker was reached or none recorded the request.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Final

from reqpath.path import RequestPath
from reqpath.record import NginxRecord, WriterInfo
from reqpath.spool import SpoolReader
from reqpath.usual import AnyRecord, UsualRecord, WorkerHead, finished_at_ns

#: Records that wait for a partner at one time. At 1 to 2 KB each this bounds the join's memory; a spool of
#: 60 writers runs about 10,000 records ahead of its slowest one.
MAX_HELD: Final = 32_768
#: Small batches keep the writers of a spool close to each other, so that few records wait.
BATCH_BYTES: Final = 64 << 10

_Key = tuple[str, str]


class Joiner:
    """Pairs records as they come; holds those that wait for a partner, about `max_held` of them at most."""

    def __init__(self, *, max_held: int = MAX_HELD) -> None:
        #: False: no line of nginx is to be expected, so a worker's record is complete at once.
        self.expect_nginx = True
        self._max_held = max_held
        #: Paths that lack nginx's line.
        self._workers: dict[_Key, RequestPath] = {}
        #: Also those of retried requests whose workers are above: a further one may come.
        self._lines: dict[_Key, NginxRecord] = {}
        #: Those that waited at the last `release_aged`.
        self._aged: set[_Key] = set()

    @property
    def held(self) -> int:
        """How many requests wait for a partner."""
        return len(self._workers.keys() | self._lines.keys())

    def add(self, info: WriterInfo, records: list[AnyRecord]) -> list[RequestPath]:
        """Take a batch of one writer; return the paths that it completes."""
        paths: list[RequestPath] = []
        if info.kind == "nginx":
            self._add_lines(records, paths)
        else:
            self._add_workers(info, records, paths)
        while len(self._workers) > self._max_held:
            paths.append(self._take(next(iter(self._workers))))
        while len(self._lines) > self._max_held:
            paths.append(self._take(next(iter(self._lines))))
        return paths

    def read(self, reader: SpoolReader) -> Iterator[RequestPath]:
        """Take what a spool has had added since the last call; yield the paths that it completes."""
        return chain.from_iterable(self._read_batches(reader))

    def release(self, before_ns: int) -> list[RequestPath]:
        """Return what was finished before this instant and still waits: its partner is not coming."""
        late = {
            key
            for key, path in self._workers.items()
            if all(finished_at_ns(record) < before_ns for record in _heads_of(path))
        }
        late |= {
            key
            for key, line in self._lines.items()
            if line.end_ns < before_ns and (key in late or key not in self._workers)
        }
        return [self._take(key) for key in late]

    def release_aged(self) -> list[RequestPath]:
        """Return what waited at the last call too: called at intervals, it lets each wait for one to two."""
        held = self._workers.keys() | self._lines.keys()
        late = held & self._aged
        self._aged = held - late
        return [self._take(key) for key in late]

    def flush(self) -> Iterator[RequestPath]:
        """Yield everything that still waits."""
        for key in [*self._workers, *(key for key in self._lines if key not in self._workers)]:
            yield self._take(key)

    def _read_batches(self, reader: SpoolReader) -> Iterator[list[RequestPath]]:
        for info, records in reader.read():
            self.expect_nginx = reader.has_nginx_lines
            yield self.add(info, records)

    def _add_lines(self, records: list[AnyRecord], paths: list[RequestPath]) -> None:
        for line in records:
            if not isinstance(line, NginxRecord):
                continue
            attempts = len(line.attempts)
            if attempts == 0:
                # nginx answered by itself.
                paths.append(RequestPath(None, None, line))
                continue
            key = (line.trace_id, line.span_id)
            # A retried request waits: an earlier worker may still be at it, and its record come later.
            path = self._workers.pop(key, None) if attempts == 1 else None
            if path is None:
                if (same := self._lines.pop(key, None)) is not None:
                    # A log that is read twice.
                    paths.append(RequestPath(None, None, same))
                self._lines[key] = line
            else:
                path.nginx = line
                paths.append(path)

    def _add_workers(self, info: WriterInfo, records: list[AnyRecord], paths: list[RequestPath]) -> None:
        lines, workers = self._lines, self._workers
        for record in records:
            if isinstance(record, NginxRecord):
                continue
            if record.__class__ is UsualRecord:
                text = record.environ[0]
                key = (text[3:35], text[36:52])
            else:
                key = (record.trace_id, record.parent_id)
            line = lines.get(key)
            if line is not None and len(line.attempts) == 1:
                del lines[key]
                paths.append(RequestPath(record, info, line))
                continue
            path = RequestPath(record, info, None)
            if line is None and not (self.expect_nginx and record.parent_id):
                paths.append(path)
            elif (earlier := workers.setdefault(key, path)) is not path:
                workers[key] = _merge(earlier, record, info)

    def _take(self, key: _Key) -> RequestPath:
        path = self._workers.pop(key, None) or RequestPath(None, None, None)
        path.nginx = self._lines.pop(key, None)
        return path


def _heads_of(path: RequestPath) -> tuple[WorkerHead, ...]:
    return path.retried_heads if path.head is None else (*path.retried_heads, path.head)


def _merge(path: RequestPath, worker: WorkerHead, info: WriterInfo) -> RequestPath:
    """Add a worker to a path: nginx took its answer from the one whose application started last."""
    workers = _heads_of(path)
    if worker.app_start_ns >= workers[-1].app_start_ns:
        return RequestPath(worker, info, None, workers)
    retried = sorted((*path.retried_heads, worker), key=lambda each: each.app_start_ns)
    return RequestPath(path.head, path.info, None, tuple(retried))


def read_paths(reader: SpoolReader) -> Iterator[RequestPath]:
    """Read a spool to its end; yield its request paths, roughly in the order of time.

    Example::

        for path in read_paths(SpoolReader("/run/reqpath", batch_bytes=BATCH_BYTES)):
            print(path.route, path.timing.total_ns)
    """
    joiner = Joiner()
    return chain(joiner.read(reader), joiner.flush())
