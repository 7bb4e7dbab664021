"""A difference with its interval, and what many of them together are worth; loads nothing.

`bench.statistics` estimates differences from the runs of blocks, `analyse.slices` from slices of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Chance that a comparison without any difference tells of one.
ALPHA: Final = 0.05


@dataclass(frozen=True, slots=True)
class Estimate:
    """A difference over blocks, ns."""

    blocks: int
    value_ns: float
    #: The 95 % interval; None with too few blocks to have one, whatever they say.
    low_ns: float | None
    high_ns: float | None
    #: Standard deviation between the blocks; None with fewer than two.
    spread_ns: float | None
    #: That equal set-ups differ by so much; None with too few blocks to find anything.
    p: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low_ns is not None and self.high_ns is not None and (self.low_ns > 0 or self.high_ns < 0)

    @property
    def bound_ns(self) -> float | None:
        """The largest difference, either way, that the interval holds; None without an interval."""
        return None if self.low_ns is None or self.high_ns is None else max(-self.low_ns, self.high_ns)


def adjust_holm(ps: Sequence[float]) -> list[float]:
    """Return each p as it counts among all of them."""
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for rank, number in enumerate(sorted(range(len(ps)), key=lambda number: ps[number])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[number]))
        adjusted[number] = largest
    return adjusted
