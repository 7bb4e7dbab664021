"""Counts durations into buckets, cheaply and with a sample of each bucket; `metrics` is made of these.

Values are sorted and counted a batch at a time, which takes a third of what each alone does. One structure
serves both of OpenTelemetry's kinds, explicit and exponential buckets: only the bounds differ.

Example::

    >>> histogram = Histogram((1_000, 2_000))
    >>> for value_ns in (0, 1_000, 1_001, 5_000):
    ...     histogram.add(value_ns)
    >>> histogram.counts()
    [2, 1, 1]
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

#: Three to a decade, from what a quick segment takes to what a hanging request does: 10 µs to 10 s.
BOUNDS_NS: Final = (
    *(10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
    *(1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000),
    *(100_000_000, 250_000_000, 500_000_000, 1_000_000_000, 2_500_000_000, 5_000_000_000, 10_000_000_000),
)
#: Source: OpenTelemetry's HTTP metric semantic conventions, `http.server.request.duration`.
HTTP_BOUNDS_NS: Final = tuple(
    1_000_000 * bound_ms
    for bound_ms in (5, 10, 25, 50, 75, 100, 250, 500, 750, 1_000, 2_500, 5_000, 7_500, 10_000)
)

#: Exponential buckets: four to each doubling, so a quantile is good to ±9 %, from 1 ns to 2^12 s.
#: Source: OpenTelemetry's metrics data model, "ExponentialHistogram".
SCALE: Final = 2
FIRST_EXPONENT: Final = -120
_LAST_EXPONENT: Final = 48
#: The first bucket is that of the zeros, the next ends at 2^((FIRST_EXPONENT + 1) / 4) s.
EXPONENTIAL_NS: Final = (
    0,
    *(math.floor(2 ** (i / 4) * 1e9) for i in range(FIRST_EXPONENT + 1, _LAST_EXPONENT + 1)),
)
#: Values counted at a time.
BATCH: Final = 64


class Sample(NamedTuple):
    """What becomes an exemplar: one value of a kept path."""

    value_ns: int
    time_ns: int
    span_id: int
    trace_id: int


class Histogram:
    """Counts of durations between bounds, ns: bucket i is above bound i-1 and up to bound i."""

    __slots__ = ("_bounds", "_counts", "_pending", "_samples", "count", "max_ns", "min_ns", "sum_ns")

    def __init__(self, bounds_ns: Sequence[int]) -> None:
        self._bounds = bounds_ns
        self._counts = [0] * (len(bounds_ns) + 1)
        self._pending: list[int] = []
        self._samples: dict[int, Sample] = {}
        self.count = self.sum_ns = self.max_ns = 0
        self.min_ns = 0

    def add(self, value_ns: int) -> None:
        """Take one duration."""
        self._pending.append(value_ns)
        if len(self._pending) >= BATCH:
            self.counts()

    def add_all(self, values_ns: list[int]) -> None:
        """Take many durations, which are sorted in place."""
        values_ns.sort()
        bounds, counts = self._bounds, self._counts
        last, done = bisect_left(bounds, values_ns[-1]), 0
        for i in range(bisect_left(bounds, values_ns[0]), last):
            upto = bisect_right(values_ns, bounds[i], done)
            counts[i] += upto - done
            done = upto
        counts[last] += len(values_ns) - done
        self.min_ns = min(self.min_ns, values_ns[0]) if self.count else values_ns[0]
        self.max_ns = max(self.max_ns, values_ns[-1])
        self.count += len(values_ns)
        self.sum_ns += sum(values_ns)

    def sample(self, sample: Sample) -> None:
        """Remember one value and its trace; of each bucket the last one stays."""
        self._samples[bisect_left(self._bounds, sample.value_ns)] = sample

    def counts(self) -> list[int]:
        """Return the count of each bucket."""
        if self._pending:
            self.add_all(self._pending)
            self._pending = []
        return self._counts

    def take_samples(self) -> list[Sample]:
        """Return the samples since the last call, oldest first: Prometheus drops those out of order."""
        samples = sorted(self._samples.values(), key=lambda sample: sample.time_ns)
        self._samples = {}
        return samples
