"""A request path: everything that is known about one request, joined.

`collect.join` builds them from a spool's records; `analyse` and `render` read them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from reqpath.record import NginxRecord, WorkerRecord, WriterInfo
from reqpath.tiers import Timing, measure
from reqpath.usual import WorkerHead, complete, read_head_in_order

#: Methods that are told apart. Source: RFC 9110 and RFC 5789, as OpenTelemetry's HTTP semantic conventions
#: list them.
METHODS: Final = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE", "QUERY")
)


class RequestPath(msgspec.Struct, eq=False, gc=False):
    """One request: the worker's record, nginx's line, or both; a struct because reports make a million."""

    #: What the worker left, with `WorkerRecord`'s names for what many requests are asked for.
    head: WorkerHead | None
    #: Of the worker's process; None when there is no worker record.
    info: WriterInfo | None
    nginx: NginxRecord | None
    #: Of earlier attempts at the same request, which nginx took to another worker.
    retried_heads: tuple[WorkerHead, ...] = ()
    _worker: WorkerRecord | None = None
    _timing: Timing | None = None

    @property
    def worker(self) -> WorkerRecord | None:
        """The worker's record, completed when it is first asked for."""
        worker = self._worker
        if worker is None and self.head is not None:
            worker = self._worker = complete(self.head)
        return worker

    @property
    def retried(self) -> tuple[WorkerRecord, ...]:
        """The records of earlier attempts, in their order."""
        return tuple(map(complete, self.retried_heads))

    @property
    def timing(self) -> Timing:
        """The time of this request, split into `tiers.SEGMENTS`."""
        timing = self._timing
        if timing is None:
            timing = self._timing = measure(self.worker, self.nginx)
        return timing

    @property
    def extent(self) -> tuple[int, int]:
        """When this request began, ns since the epoch, and how long it took, as `timing` has them.

        For who judges many requests and splits few: it asks for no segment where all stamps are in order.
        """
        timing, head = self._timing, self.head
        if timing is None and head is not None:
            stamps = read_head_in_order(head, self.nginx)
            if stamps is not None:
                return stamps[0], stamps[-1] - stamps[0]
        return self.timing[:2]

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        return self.head.trace_id if self.head else self._line.trace_id

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.head.method if self.head else self._line.method

    @property
    def url_path(self) -> str:
        """The path without query string."""
        return self.head.path if self.head else self._line.path

    @property
    def route(self) -> str:
        """Method and route, `GET /items/<int:id>`; `GET (no route)` where no rule matched.

        Never the path itself, nor a method that a client made up: what is unbounded must not become an
        unbounded number of routes. Source of `_OTHER`: OpenTelemetry's HTTP semantic conventions.
        """
        method = self.method
        if method not in METHODS:
            method = "_OTHER"
        if self.head is not None:
            return f"{method} {self.head.route or '(no route)'}"
        return f"{method} (no worker record)" if self._line.attempts else f"{method} (nginx alone)"

    @property
    def status(self) -> int | None:
        """What the client got, when nginx's line is there; else what the app answered."""
        if self.nginx is not None and self.nginx.status is not None:
            return self.nginx.status
        return self.head.status if self.head else None

    @property
    def _line(self) -> NginxRecord:
        if self.nginx is None:
            raise ValueError("a path needs a worker's record or nginx's line")
        return self.nginx
