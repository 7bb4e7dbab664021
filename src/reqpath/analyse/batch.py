"""The timings of many requests at once: what `tiers.measure` says of each, in arrays.

Nearly every request has all its stamps, in order. Those are split together, by the one definition, which is
in `tiers`; the others one by one::

    batch = Batch()
    batch.stamps.append(pack_stamps(*read_in_order(worker, line)))
    batch.exclusive_ns.append(worker.exclusive_ns)
    batch.add_odd(measure(other_worker, other_line))
    batch.measure().segments[INDEX["queue"]]      # ns of each request, NaN where unknown
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np

from reqpath.analyse.columns import FloatArray, to_floats
from reqpath.tiers import SEGMENTS, Timing, split_in_order

#: Packs what `tiers.read_in_order` returns.
pack_stamps: Final = struct.Struct("7q").pack


class BatchTiming(NamedTuple):
    """The timings of some requests; durations are floats, ns, exact up to 104 days."""

    #: One row for each of `SEGMENTS`, one column for each request; NaN is unknown.
    segments: FloatArray
    total_ns: FloatArray
    residual_ns: FloatArray
    #: The first start and the last end, ns since the epoch.
    first_ns: int
    last_ns: int


class Batch:
    """What is needed of requests to measure them, so that they need not be kept."""

    __slots__ = ("_odd", "exclusive_ns", "stamps")

    def __init__(self) -> None:
        #: Of each request in order; append to both.
        self.stamps: list[bytes] = []
        self.exclusive_ns: list[list[int | None]] = []
        #: By position.
        self._odd: dict[int, Timing] = {}

    def __len__(self) -> int:
        return len(self.stamps) + len(self._odd)

    def add_odd(self, timing: Timing) -> None:
        """Add any other request."""
        self._odd[len(self)] = timing

    def measure(self) -> BatchTiming:
        """Measure what was added, at least one request."""
        odd, timings = list(self._odd), self._odd.values()
        segments = np.empty((len(SEGMENTS), len(self)))
        total_ns = np.empty(len(self))
        ends_ns = []
        if self.stamps:
            usual = np.delete(np.arange(len(self)), odd) if odd else slice(None)
            stamps = np.frombuffer(b"".join(self.stamps), np.int64).reshape(-1, 7).T
            exclusive_ns = [to_floats(values) for values in zip(*self.exclusive_ns, strict=True)]
            for row, values in zip(segments, split_in_order(stamps, exclusive_ns), strict=True):
                row[usual] = values
            start_ns, end_ns = stamps[0], stamps[-1]
            total_ns[usual] = end_ns - start_ns
            ends_ns += [int(start_ns.min()), int(end_ns.max())]
        if odd:
            segments[:, odd] = np.array([timing.segments for timing in timings], np.float64).T
            total_ns[odd] = [timing.total_ns for timing in timings]
            for timing in timings:
                ends_ns += [timing.start_ns, timing.start_ns + timing.total_ns]
        residual_ns = total_ns - np.nansum(segments, axis=0)
        return BatchTiming(segments, total_ns, residual_ns, min(ends_ns), max(ends_ns))
