"""An exporting collector: follows a spool, keeps the paths worth keeping, sends them to a backend.

The layers below are `tail`, which reads and judges, and `export`, whose thread sends. `receiver` calls `work`
between two looks at its sockets, so that nginx's lines never wait for a backend::

    with Collector(settings, target, report=print) as collector:
        Receiver(settings, sources, report=print, work=collector.work).run()
    print(collector.status())

`export_spool` does the same to a spool that somebody has saved, from its start to its end.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from reqpath.collect.checkpoint import hold_spool
from reqpath.collect.export import Delivery, Sender, Target, build_sender
from reqpath.collect.keep import Keeper
from reqpath.collect.metrics import MetricsExport, metrics_wanted
from reqpath.collect.tail import LINGER_S, Kept, Tail
from reqpath.errors import ReqPathError, SpoolError
from reqpath.settings import Settings

if TYPE_CHECKING:
    from reqpath.collect.spans import PathSpan

#: The longest that the receiver waits for its turn; a socket's buffer bridges much more.
_SLICE_NS: Final = 20_000_000
#: Between two looks at the spool's files.
_INTERVAL_NS: Final = 1_000_000_000
#: Between two tries to begin.
_BEGIN_NS: Final = 5_000_000_000
#: At the end: to read what the spool has got meanwhile, and to send what is kept.
_END_READ_NS: Final = 2_000_000_000
_END_SEND_S: Final = 5.0
#: A backend that takes nothing for so long ends the export of a saved spool.
_PATIENCE_S: Final = 60.0
#: Objects made between two collections of cycles: spans have none, and 700 is but one path's.
_GC_THRESHOLD: Final = 50_000


@dataclass(frozen=True, slots=True)
class Status:
    """What a collector has done with the spool since it began."""

    #: Paths put together, and of them those that are kept, by the reason.
    joined: int
    kept: dict[str, int]
    not_kept: int
    #: Paths that the backend has, and their spans.
    exported: int
    spans: int
    #: Paths that the backend did not want.
    refused: int
    #: Spans that the backend rejected while it took others of their request.
    rejected_spans: int
    #: Paths that are kept and not yet with the backend.
    pending: int
    #: Requests that wait for nginx's line or for a worker's record.
    waiting: int
    #: Records that were gone before they could be exported.
    missed: int
    #: By worker's host: what nginx's stamps were moved by, ns, where the clocks differ for sure.
    clocks: dict[str, int]


class Collector:
    """The exporting part of a collector; all but its delivery's thread is in one thread."""

    def __init__(
        self,
        settings: Settings,
        target: Target,
        *,
        report: Callable[[str], None],
        expect_nginx: bool = True,
        from_start: bool = False,
    ) -> None:
        """`report` gets one message for each trouble; `from_start` forgets what was exported before."""
        self._settings = settings
        self._target = target
        self._report = report
        self._expect_nginx = expect_nginx
        self._from_start = from_start
        self._held = contextlib.ExitStack()
        self._tail: Tail | None = None
        self._delivery: Delivery | None = None
        self._metrics: MetricsExport | None = None
        self._more = False
        self._next_ns = 0
        self._missed_told = False
        self._said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self) -> None:
        """Go on where the collector before this one was.

        Raises: MissingExtraError; ConfigurationError; SpoolError, also when another collector exports this
        spool.
        """
        with contextlib.ExitStack() as stack:
            directory = self._settings.spool_directory
            if not stack.enter_context(hold_spool(directory)):
                raise SpoolError(f"another collector exports the spool {directory}; one is enough")
            metrics = self._build_metrics()
            tail = Tail(
                directory,
                Keeper(
                    everything=self._settings.keep == "all",
                    slower_ns=int(self._settings.keep_slower_s * 1e9),
                    per_second=self._settings.keep_per_second,
                ),
                wait_s=self._settings.join_wait_s,
                expect_nginx=self._expect_nginx,
                from_start=self._from_start,
                linger_s=LINGER_S,
                observe=metrics.add if metrics else None,
            )
            sender = build_sender(self._target)
            # From here on all is well, and `end` closes it.
            stack.callback(gc.set_threshold, *gc.get_threshold())
            gc.set_threshold(_GC_THRESHOLD, *gc.get_threshold()[1:])
            self._held = stack.pop_all()
        self._tail = tail
        self._delivery = self._start_delivery(tail, sender)
        if metrics is not None:
            self._metrics = metrics
            metrics.start()

    def work(self) -> int:
        """Read and judge for some milliseconds at most; return in how many ms there is more to do."""
        now_ns = time.monotonic_ns()
        if not self._more and now_ns < self._next_ns:
            return (self._next_ns - now_ns) // 1_000_000 + 1
        if self._tail is None:
            self._try_to_begin()
        else:
            self._more = self._tail.step(now_ns + _SLICE_NS)
            self._save(self._tail)
            self._tell_missed(self._tail)
        if self._more:
            return 0
        self._next_ns = now_ns + (_INTERVAL_NS if self._tail else _BEGIN_NS)
        return (self._next_ns - now_ns) // 1_000_000

    def finish(self) -> bool:
        """Read to the end, wait for no partner, and send all; return whether the backend has it all.

        The backend may take nothing for a minute before this gives up.
        """
        tail, delivery = self._tail, self._delivery
        assert tail is not None
        assert delivery is not None
        finished = False
        done, since_ns = -1, time.monotonic_ns()
        while not (finished and not tail.pending):
            finished = finished or tail.finish()
            if finished:
                tail.end()
            self._save(tail)
            tail.wait_for_progress(0.1)
            if delivery.done != done:
                done, since_ns = delivery.done, time.monotonic_ns()
            elif time.monotonic_ns() - since_ns > _PATIENCE_S * 1e9:
                return False
        return True

    def end(self) -> None:
        """Send what there is, within a few seconds, and stop; what was not sent waits in the spool."""
        tail, delivery = self._tail, self._delivery
        if tail is not None and delivery is not None:
            limit_ns = time.monotonic_ns() + _END_READ_NS
            while not tail.step(limit_ns) and tail.is_full and time.monotonic_ns() < limit_ns:
                tail.wait_for_progress(0.05)
            if not delivery.stop(_END_SEND_S):
                self._report(
                    f"{tail.pending:,} paths could not be exported before the end; the spool holds them for "
                    "the next start"
                )
            self._tell_missed(tail)
            if delivery.rejected_spans:
                self._report(f"{self._target} has rejected {delivery.rejected_spans:,} spans in all")
            with contextlib.suppress(OSError):
                tail.save()
        if self._metrics is not None:
            self._metrics.close()
        self._held.close()

    def status(self) -> Status | None:
        """Return what was done so far; None before it began."""
        tail, delivery = self._tail, self._delivery
        if tail is None or delivery is None:
            return None
        counts = tail.keeper.counts
        return Status(
            joined=tail.joined,
            kept={reason: number for reason, number in sorted(counts.items(), key=str) if reason},
            not_kept=counts[None],
            exported=delivery.exported,
            spans=delivery.spans,
            refused=delivery.refused,
            rejected_spans=delivery.rejected_spans,
            pending=tail.pending,
            waiting=tail.waiting,
            missed=tail.missed,
            clocks={host: offset.correction_ns for host, offset in tail.clocks if offset.correction_ns},
        )

    def _build_metrics(self) -> MetricsExport | None:
        if not metrics_wanted():
            return None
        settings = self._settings
        return MetricsExport.from_environment(
            settings.service_name or "app",
            endpoint=settings.otlp or None,
            protocol=settings.otlp_protocol or None,
        )

    def _start_delivery(self, tail: Tail, sender: Sender) -> Delivery:
        # The SDK is loaded here and not with this module.
        from reqpath.collect.spans import build_spans

        service_name = self._settings.service_name or "app"

        def build(kept: Kept) -> list[PathSpan]:
            return build_spans(kept.path, service_name=service_name, kept=kept.reason, offset=kept.offset)

        delivery = Delivery(tail, sender, build, report=self._report, backend=str(self._target))
        delivery.start()
        return delivery

    def _try_to_begin(self) -> None:
        try:
            self.begin()
        except ReqPathError as error:
            # It may be put right, and nginx's lines are collected meanwhile.
            if str(error) != self._said:
                self._said = str(error)
                self._report(f"not exporting: {error}")

    def _save(self, tail: Tail) -> None:
        try:
            tail.save_if_due()
        except OSError as error:
            if str(error) != self._said:
                self._said = str(error)
                self._report(f"can't write into the spool: {error}; after a restart paths may arrive twice")

    def _tell_missed(self, tail: Tail) -> None:
        if tail.missed and not self._missed_told:
            self._missed_told = True
            self._report(
                f"{tail.missed:,} records were gone from the spool before they could be exported: "
                "let it hold more (REQPATH_SPOOL_MAX_BYTES); further ones are counted"
            )
