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
from typing import Final

from reqpath.path import RequestPath
from reqpath.record import NginxRecord, Record, WorkerRecord, WriterInfo, finished_at_ns
from reqpath.spool import SpoolReader

#: Records that wait for a partner at one time. At 1 to 2 KB each this bounds the join's memory; a spool of
#: 60 writers runs about 10,000 records ahead of its slowest one.
MAX_HELD: Final = 32_768
#: Small batches keep the writers of a spool close to each other, so that few records wait.
BATCH_BYTES: Final = 64 << 10

_Key = tuple[str, str]


class _Held:
    """What is known so far of one request."""

    __slots__ = ("nginx", "workers")

    def __init__(self) -> None:
        self.nginx: NginxRecord | None = None
        self.workers: list[tuple[WorkerRecord, WriterInfo]] = []

    def build_path(self) -> RequestPath:
        """The worker whose application started last is the one that nginx took the answer from."""
        if not self.workers:
            return RequestPath(None, None, self.nginx)
        workers = sorted(self.workers, key=lambda pair: pair[0].app_start_ns)
        worker, info = workers[-1]
        return RequestPath(worker, info, self.nginx, tuple(record for record, _ in workers[:-1]))

    def finished_at_ns(self) -> int:
        """When the last of its writers was done."""
        records: list[Record] = [record for record, _ in self.workers]
        if self.nginx is not None:
            records.append(self.nginx)
        return max(map(finished_at_ns, records))


class Joiner:
    """Pairs records as they come; holds those that wait for a partner, the oldest `max_held` at most."""

    def __init__(self, *, max_held: int = MAX_HELD) -> None:
        #: False: no line of nginx is to be expected, so a worker's record is complete at once.
        self.expect_nginx = True
        self._max_held = max_held
        self._held: dict[_Key, _Held] = {}

    @property
    def held(self) -> int:
        """How many requests wait for a partner."""
        return len(self._held)

    def add(self, info: WriterInfo, records: list[Record]) -> Iterator[RequestPath]:
        """Take a batch of one writer; yield the paths that it completes."""
        held = self._held
        for record in records:
            if isinstance(record, NginxRecord):
                yield from self._add_nginx(record)
                continue
            key = (record.trace_id, record.parent_id)
            waiting = held.get(key)
            if waiting is None:
                if not record.parent_id or not self.expect_nginx:
                    yield RequestPath(record, info, None)
                    continue
                waiting = held[key] = _Held()
            elif waiting.nginx is not None and len(waiting.nginx.attempts) == 1 and not waiting.workers:
                del held[key]
                yield RequestPath(record, info, waiting.nginx)
                continue
            waiting.workers.append((record, info))
        while len(held) > self._max_held:
            yield held.pop(next(iter(held))).build_path()

    def _add_nginx(self, line: NginxRecord) -> Iterator[RequestPath]:
        attempts = len(line.attempts)
        if attempts == 0:
            # nginx answered by itself.
            yield RequestPath(None, None, line)
            return
        key = (line.trace_id, line.span_id)
        waiting = self._held.get(key)
        if waiting is None:
            self._held[key] = waiting = _Held()
        elif waiting.nginx is not None:
            # One line per request, so this one is a repetition of the log's.
            return
        elif attempts == 1:
            del self._held[key]
            waiting.nginx = line
            yield waiting.build_path()
            return
        # A retried request: an earlier worker may still be at it, and its record come later.
        waiting.nginx = line

    def release(self, before_ns: int) -> Iterator[RequestPath]:
        """Yield what was finished before this instant and still waits: its partner is not coming."""
        for key, waiting in list(self._held.items()):
            if waiting.finished_at_ns() < before_ns:
                del self._held[key]
                yield waiting.build_path()

    def flush(self) -> Iterator[RequestPath]:
        """Yield everything that still waits."""
        while self._held:
            yield self._held.pop(next(iter(self._held))).build_path()


def read_paths(reader: SpoolReader) -> Iterator[RequestPath]:
    """Read a spool to its end; yield its request paths, roughly in the order of time.

    Example::

        for path in read_paths(SpoolReader("/run/reqpath", batch_bytes=BATCH_BYTES)):
            print(path.route, path.timing.total_ns)
    """
    joiner = Joiner()
    for info, records in reader.read():
        joiner.expect_nginx = reader.has_nginx_lines
        yield from joiner.add(info, records)
    yield from joiner.flush()
