"""The timings of many requests at once: what `tiers.measure` says of each, in arrays.

Nearly every request has all its stamps, in order. Those are split together, by the one definition, which is
in `tiers`, and from what their workers noted without making anything of it; the others one by one::

    batch = measure_batch(paths)
    batch.segments[INDEX["queue"]]      # ns of each request, NaN where unknown
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from reqpath.analyse.columns import FloatArray, to_floats
from reqpath.path import RequestPath
from reqpath.raw import FLASK_SEGMENTS, FLASK_START, SEGMENT_OF
from reqpath.record import NginxRecord
from reqpath.stamps import AFTER_MILLISECONDS, MAX_AGE_NS, MAX_FUTURE_NS, read_stamps
from reqpath.tiers import SEGMENTS, UWSGI_RESOLUTION_NS, WORKER_SEGMENTS, read_in_order, split_in_order
from reqpath.usual import FINE_NS, MARK_BYTES, UsualRecord

#: Of `BatchTiming.kind`: all stamps in order; the same, and nginx's end within its resolution before the
#: closing; any other.
IN_ORDER: Final = 0
ENDS_EARLY: Final = 1
ODD: Final = 2

#: Instants beyond are of a broken record.
_LAST_NS: Final = 1 << 62
_MARK: Final = np.dtype([("code", "u1"), ("tag", "u1"), ("ns", ">i8")])
_SEGMENT_OF: Final = np.array(SEGMENT_OF, np.intp)
_WORKER_SEGMENTS: Final = len(WORKER_SEGMENTS)
_BITS: Final = np.arange(_WORKER_SEGMENTS)[:, np.newaxis]
_OF_FLASK: Final = np.isin(_BITS, list(FLASK_SEGMENTS))
#: `1732371000.123456,1732371000.123498,1732371000123601,1732371000123633`: where its digits are.
_TEXT: Final = 69
_DIGITS: Final = np.r_[0:10, 11:17, 18:28, 29:35, 36:52, 53:69]
_POWERS: Final = 10 ** np.arange(15, -1, -1)

_Integers = npt.NDArray[np.int64]


class BatchTiming(NamedTuple):
    """The timings of some requests; durations are floats, ns, exact up to 104 days."""

    #: One row for each of `SEGMENTS`, one column for each request; NaN is unknown.
    segments: FloatArray
    total_ns: FloatArray
    residual_ns: FloatArray
    #: `IN_ORDER`, `ENDS_EARLY` or `ODD`.
    kind: npt.NDArray[np.int8]
    #: Which are in order and have a `UsualRecord`, by position.
    usual: list[int]
    #: The first start and the last end, ns since the epoch.
    first_ns: int
    last_ns: int


class _InOrder(NamedTuple):
    """Requests whose stamps are in order."""

    #: Their places in the batch.
    at: npt.NDArray[np.intp]
    #: `tiers.Stamps`: seven rows.
    stamps: _Integers
    #: One row for each of `WORKER_SEGMENTS`.
    exclusive_ns: Sequence[FloatArray]


def measure_batch(paths: Sequence[RequestPath]) -> BatchTiming:
    """Measure some requests, at least one."""
    usual = [
        at
        for at, path in enumerate(paths)
        if path.head.__class__ is UsualRecord
        and (line := path.nginx) is not None
        and len(line.attempts) <= 1
        and not path.retried_heads
        and 0 <= line.end_ns <= _LAST_NS
    ]
    segments = np.empty((len(SEGMENTS), len(paths)))
    total_ns = np.empty(len(paths))
    kind = np.full(len(paths), ODD, np.int8)
    bounds_ns: list[int] = []
    parts = []
    if usual:
        part = _read_usual([paths[at] for at in usual], np.array(usual))
        parts.append(part)
        usual = part.at.tolist()
    others = set(range(len(paths))).difference(usual)
    stamps, exclusive_ns, in_order = [], [], []
    for at in others:
        path = paths[at]
        worker = path.worker
        ordered = None if worker is None or path.retried_heads else read_in_order(worker, path.nginx)
        if worker is not None and ordered is not None:
            in_order.append(at)
            stamps.append(ordered)
            exclusive_ns.append(worker.exclusive_ns)
            continue
        timing = path.timing
        segments[:, at] = [np.nan if ns is None else ns for ns in timing.segments]
        total_ns[at] = timing.total_ns
        bounds_ns += (timing.start_ns, timing.start_ns + timing.total_ns)
    if in_order:
        columns = [to_floats(values) for values in zip(*exclusive_ns, strict=True)]
        parts.append(_InOrder(np.array(in_order), np.array(stamps, np.int64).T, columns))
    for part in parts:
        if not len(part.at):
            continue
        for row, values in zip(segments, split_in_order(part.stamps, part.exclusive_ns), strict=True):
            row[part.at] = values
        start_ns, closed_ns, end_ns = part.stamps[0], part.stamps[-2], part.stamps[-1]
        total_ns[part.at] = end_ns - start_ns
        kind[part.at] = np.where(end_ns < closed_ns, ENDS_EARLY, IN_ORDER)
        bounds_ns += (int(start_ns.min()), int(end_ns.max()))
    residual_ns = total_ns - np.nansum(segments, axis=0)
    return BatchTiming(segments, total_ns, residual_ns, kind, usual, min(bounds_ns), max(bounds_ns))


def _read_usual(paths: Sequence[RequestPath], at: npt.NDArray[np.intp]) -> _InOrder:
    """Return those of some requests, with usual heads and with lines, whose stamps are in order."""
    size = len(paths)
    records: list[Any] = [path.head for path in paths]
    lines: list[NginxRecord] = [path.nginx for path in paths if path.nginx is not None]
    resolution_ns = np.array([line.resolution_ns for line in lines])
    if "-" not in {record.environ[1][AFTER_MILLISECONDS] for record in records}:
        text = "".join([",".join(record.environ[1:3]) for record in records])
        characters = np.frombuffer(text.encode("ascii"), np.uint8).reshape(size, _TEXT)
        digits = (characters[:, _DIGITS] - ord("0")).reshape(size, 4, 16)
        start_ns, pass_ns, accept_ns, parsed_ns = (digits @ _POWERS).T * 1_000
        resolution_ns = np.maximum(resolution_ns, FINE_NS)
    else:
        resolution_ns = np.maximum(resolution_ns, [record.nginx_resolution_ns for record in records])
        # One that is not believed comes out of order.
        read = [read_stamps(record.environ, record.app_start_ns) for record in records]
        start_ns, pass_ns, accept_ns, parsed_ns = np.array(
            [[ns or 0 for ns in (*each[3:5], *each[6:8])] for each in read]
        ).T
    app_start_ns = np.array([record.app_start_ns for record in records])
    end_ns = np.array([line.end_ns for line in lines])

    packed = [bytes(record.packed_marks) for record in records]
    marks = np.frombuffer(b"".join([each[len(each) % MARK_BYTES :] for each in packed]), _MARK)
    counts = np.array([len(each) // MARK_BYTES for each in packed])
    lasts = np.cumsum(counts) - 1
    instants_ns = marks["ns"].astype(np.int64)
    durations_ns = np.empty_like(instants_ns)
    np.subtract(instants_ns[1:], instants_ns[:-1], out=durations_ns[:-1])
    durations_ns[lasts] = 0
    of_request = np.repeat(np.arange(size), counts)
    exclusive_ns = np.bincount(
        _SEGMENT_OF[marks["code"]] * size + of_request, durations_ns, _WORKER_SEGMENTS * size
    ).reshape(_WORKER_SEGMENTS, size)
    if any(bits := [record.unmeasured for record in records]):
        unmeasured = np.array(bits)
        # As `raw.complete_record` has it.
        in_flask = np.bincount(of_request, marks["code"] == FLASK_START, size) > 0
        unknown = (unmeasured >> _BITS & 1).astype(bool) & (exclusive_ns == 0) & ~(_OF_FLASK & in_flask)
        exclusive_ns[unknown] = np.nan
    closed_ns = app_start_ns + instants_ns[lasts] - instants_ns[lasts + 1 - counts]

    # As `tiers.order_stamps` and `stamps.read_stamps` have it.
    stamps = np.array([start_ns, pass_ns, accept_ns, parsed_ns, app_start_ns, closed_ns, end_ns])
    good = (stamps[1:-1] >= stamps[:-2]).all(axis=0)
    good &= end_ns >= np.minimum(
        closed_ns, np.maximum(start_ns, closed_ns - resolution_ns - UWSGI_RESOLUTION_NS)
    )
    good &= start_ns >= app_start_ns - MAX_AGE_NS
    good &= parsed_ns <= app_start_ns + MAX_FUTURE_NS
    if good.all():
        return _InOrder(at, stamps, list(exclusive_ns))
    return _InOrder(at[good], stamps[:, good], list(exclusive_ns[:, good]))
