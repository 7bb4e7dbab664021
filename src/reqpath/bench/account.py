"""Splits what the clients of one run waited: the generator's times joined with the recorded request paths.

A request's latency runs from its planned send to its answer's last byte. Of it the generator's own lag is
`client.lag`, the recorded path has its segments and its residual, and what lies between client and nginx is
`client.network`; so they add up, for each request and in sum::

    account(outcome, paths, warm_up_ns=2_000_000_000).whole
      →  Slice(requests=2391, client_ns=984_120_113, segments_ns={'client.lag': 27_001_880, …}, …)

The last one can be negative for one request: a client that is woken at once has read the answer before nginx
has taken its last stamp. The layers below are `generator` and `reqpath.path`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from reqpath.bench.generator import BROKEN, DROPPED, SLICE_NS, TIMED_OUT, Outcome, Row
from reqpath.bench.histogram import encode_histogram, make_histogram
from reqpath.bench.result import CLIENT_SEGMENTS, Slice
from reqpath.path import RequestPath
from reqpath.record import WorkerRecord
from reqpath.tiers import INDEX, NAMES, STAMPS, WORKER_SEGMENTS

#: Parts of the measured time whose latencies are told one by one.
PARTS: Final = 10
#: What a worker sleeps in that is a call of its own.
_CALLS = frozenset(("mysql.connect", "mysql.query", "mysql.commit", "uwsgi.send"))
_KINDS = {BROKEN: "connection broken", TIMED_OUT: "timeout"}


class Joined(NamedTuple):
    """A request that was answered, as its client saw it and as it was recorded."""

    row: Row
    path: RequestPath


@dataclass(frozen=True, slots=True)
class Account:
    """What one run measured, without what the machine did meanwhile."""

    #: Wall clock of the first instant after the warm-up, and of the last answer.
    start_ns: int
    end_ns: int
    warm_up_requests: int
    #: Arrivals after the warm-up: planned = answered + failures + dropped.
    planned: int
    answered: int
    failures: dict[str, int]
    dropped: int
    #: Encoded histograms, as in `result.RunRecord`.
    latency: str
    lag: str
    whole: Slice
    slowest: Slice
    #: As in `result.RunRecord`.
    tenths_ns: tuple[int | None, ...]
    #: Mean number of requests under way in each slice of the measured time.
    in_flight_slices: tuple[float, ...]
    #: As Little's law has it: the arrival rate times the mean time under way; None when nothing was answered.
    in_flight_expected: float | None

    @property
    def in_flight(self) -> float | None:
        """The mean over the slices; None when the time was too short for one."""
        slices = self.in_flight_slices
        return sum(slices) / len(slices) if slices else None

    @property
    def unrecorded(self) -> int:
        """Requests that were answered and of which no path is known."""
        return self.answered - self.whole.requests


def account(outcome: Outcome, paths: Mapping[str, RequestPath], *, warm_up_ns: int) -> Account:
    """Count and split what was planned `warm_up_ns` after the start or later; `paths` are by trace id."""
    start_ns = outcome.start_ns + warm_up_ns
    rows = [row for row in outcome.rows if row.planned_ns >= start_ns]
    sent = [row for row in rows if row.status != DROPPED]
    answered = [row for row in sent if not row.is_failure]
    joined = [Joined(row, path) for row in answered if (path := paths.get(row.trace_id)) is not None]
    joined.sort(key=lambda one: one.row.latency_ns)
    window_ns = round(outcome.traffic.seconds_s * 1e9) - warm_up_ns
    return Account(
        start_ns=start_ns,
        end_ns=max([start_ns + window_ns, *(row.planned_ns + row.latency_ns for row in sent)]),
        warm_up_requests=len(outcome.statuses) // outcome.status_codes.itemsize - len(rows),
        planned=len(rows),
        answered=len(answered),
        failures=dict(Counter(_name_failure(row.status) for row in sent if row.is_failure)),
        dropped=len(rows) - len(sent),
        latency=encode_histogram(make_histogram(row.latency_ns for row in answered)),
        lag=encode_histogram(make_histogram(row.lag_ns for row in sent)),
        whole=sum_up(joined),
        slowest=sum_up(joined[-math.ceil(len(joined) / 100) :] if joined else []),
        tenths_ns=_average_parts(answered, start_ns, window_ns),
        in_flight_slices=outcome.in_flight[-(-warm_up_ns // SLICE_NS) : (warm_up_ns + window_ns) // SLICE_NS],
        in_flight_expected=sum(row.latency_ns - row.lag_ns for row in sent) / window_ns if answered else None,
    )


def sum_up(joined: Iterable[Joined]) -> Slice:
    """Sum up requests by segment; `client_ns` is the sum of them all."""
    requests = client_ns = lens_requests = 0
    segments: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    lens: Counter[str] = Counter()
    for row, path in joined:
        requests += 1
        client_ns += row.latency_ns
        timing = path.timing
        segments["client.lag"] += row.lag_ns
        segments["client.network"] += row.latency_ns - row.lag_ns - timing.total_ns
        segments["residual"] += timing.residual_ns
        for name, value_ns in zip(NAMES, timing.segments, strict=True):
            segments[name] += value_ns or 0
        # Not those that such a request has not: a query where there is no database.
        lost = {name for stamp in timing.missing for name in STAMPS[stamp][0]} | set(timing.skewed)
        unknown.update(name for name in lost if timing.segments[INDEX[name]] is None)
        if path.worker is not None and (parts := _look_through_lens(path.worker)) is not None:
            lens_requests += 1
            lens.update(parts)
    return Slice(
        requests=requests,
        client_ns=client_ns,
        segments_ns={name: segments[name] for name in CLIENT_SEGMENTS if segments[name]},
        unknown=dict(unknown),
        lens_requests=lens_requests,
        lens_ns=dict(lens),
    )


def _look_through_lens(worker: WorkerRecord) -> dict[str, int] | None:
    """Return what the worker's thread did, as docs/tiers.md has it; None where it is not known."""
    if worker.cpu_ns is None or worker.run_queue_ns is None:
        return None
    known = dict(zip(WORKER_SEGMENTS, worker.exclusive_ns, strict=True))
    blocked_ns = max(0, sum(filter(None, known.values())) - worker.cpu_ns - worker.run_queue_ns)
    # Making a TLS context is a connect's, but computes.
    computed_ns = sum(
        duration_ns
        for operation in worker.operations
        for name, duration_ns in operation.phases
        if name == "tls_context"
    )
    calls_ns = min(max(0, sum(known.get(name) or 0 for name in _CALLS) - computed_ns), blocked_ns)
    return {
        "cpu": worker.cpu_ns,
        "run queue": worker.run_queue_ns,
        "calls": calls_ns,
        "other": blocked_ns - calls_ns,
    }


def _average_parts(answered: Iterable[Row], start_ns: int, window_ns: int) -> tuple[int | None, ...]:
    """Return the mean latency of each tenth of the measured time, by when the requests were planned."""
    parts: list[list[int]] = [[] for _ in range(PARTS)]
    for row in answered:
        part = (row.planned_ns - start_ns) * PARTS // max(1, window_ns)
        parts[min(part, PARTS - 1)].append(row.latency_ns)
    return tuple(round(sum(part) / len(part)) if part else None for part in parts)


def _name_failure(status: int) -> str:
    return _KINDS.get(status, f"status {status}")
