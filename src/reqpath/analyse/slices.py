"""How far the mean of many requests can be trusted, when requests that follow each other are alike.

A cold cache or a busy neighbour slows down all requests of some seconds, so a thousand of them are not a
thousand observations. Their time is cut into slices, and a slice counts as one: what a figure would be
without each slice in turn, the *jackknife*, tells how far it is from chance::

    slices = cut_slices(starts, totals)           # 24 of equal length
    estimate(difference, without_each_first, without_each_second, slices.effective)

Where neighbouring slices still resemble each other they are too short, and are put together by twos. The
interval is Student's, with the degrees of freedom of the side that has fewer slices, which makes it rather
too wide than too narrow. Sources: Schmeiser, "Batch Size Effects in the Analysis of Simulation Output", 1982,
on 10 to 30 batches; Miller, "The Jackknife - a Review", 1974.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reqpath.analyse.columns import FloatArray, IntArray
from reqpath.analyse.estimate import ALPHA, Estimate

#: As many slices as there are at first; fewer where they would have less than so many requests on average.
SLICES: Final = 24
PER_SLICE: Final = 5
#: With fewer slices than this there is no interval.
LEAST_SLICES: Final = 6
#: Nor where requests are so uneven among them that they are worth fewer than this.
LEAST_EFFECTIVE: Final = 5
#: Fewer requests give no interval.
LEAST_REQUESTS: Final = LEAST_SLICES * PER_SLICE
#: Differences below, ns, are what floats leave over of equal figures.
_NOTHING_NS: Final = 1e-3
_SECOND_NS: Final = 1_000_000_000
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)


@dataclass(frozen=True, slots=True)
class Slices:
    """The slices of time that requests lie in."""

    #: Of each request, from 0.
    slice_of: npt.NDArray[np.int64]
    count: int
    #: How many there were before neighbours were put together.
    cut: int
    #: Wall clock, ns since the epoch: where the first one begins, and how long each is.
    first_ns: int
    width_ns: int
    #: How many equally full ones these are worth: n² over the sum of squares of their requests.
    effective: int


def cut_slices(start: IntArray, total: IntArray) -> Slices:
    """Cut the time of requests, given by their starts and their times, into slices."""
    requests = len(start)
    if not requests:
        return Slices(np.zeros(0, np.int64), 1, 1, 0, 1, 0)
    # A few requests whose clock is wrong must not press all others into one slice; they go to the outermost.
    low, high = (int(value) for value in np.quantile(start, (0.002, 0.998), method="nearest"))
    first, last = int(start.min()), int(start.max())
    if last - first <= 20 * max(high - low, _SECOND_NS):
        low, high = first, last
    count = cut = max(1, min(SLICES, requests // PER_SLICE))
    width_ns = -(-(high - low + 1) // count)
    slice_of = np.clip((start.astype(np.int64) - low) // width_ns, 0, count - 1)
    while (count + 1) // 2 >= LEAST_SLICES and _neighbours_resemble(slice_of, total):
        slice_of //= 2
        width_ns *= 2
        count = (count + 1) // 2
    return Slices(slice_of, count, cut, low, width_ns, count_effective(np.bincount(slice_of)))


def count_effective(requests: IntArray) -> int:
    """Return how many equally full slices those with so many `requests` are worth."""
    squares = sum(each * each for each in requests.tolist())
    return int(requests.sum()) ** 2 // squares if squares else 0


def estimate(value_ns: float, first_ns: FloatArray, second_ns: FloatArray, effective: int) -> Estimate:
    """Estimate how far from chance a figure of two sides is.

    `first_ns` are the figure without each slice of the first side in turn, `second_ns` of the second; NaN is
    a figure that is not there without one of them. `effective` is how many slices the poorer side is worth.
    """
    none = Estimate(max(effective, 0), value_ns, None, None, None, None)
    if effective < LEAST_EFFECTIVE:
        return none
    error_ns = math.sqrt(_jackknife(first_ns) + _jackknife(second_ns))
    if math.isnan(error_ns):
        return none
    freedom = effective - 1
    reach_ns = find_student_quantile(freedom) * error_ns
    if error_ns < _NOTHING_NS:
        p = float(abs(value_ns) < _NOTHING_NS)
    else:
        p = find_student_p(value_ns / error_ns, freedom)
    # As if both sides had so many slices.
    spread_ns = error_ns * math.sqrt(effective / 2)
    return Estimate(effective, value_ns, value_ns - reach_ns, value_ns + reach_ns, spread_ns, p)


def find_student_p(t: float, freedom: int) -> float:
    """Return how likely Student's t is as far from 0 as this, to either side."""
    return _integrate(math.atan(abs(t) / math.sqrt(freedom)), freedom) / _integrate(0.0, freedom)


@functools.cache
def find_student_quantile(freedom: int) -> float:
    """Return the t that is passed, to either side, with a chance of `ALPHA`."""
    low, high = 0.0, 1.0
    while find_student_p(high, freedom) > ALPHA:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if find_student_p(middle, freedom) > ALPHA else (low, middle)
    return high


def _integrate(low: float, freedom: int) -> float:
    """Integrate Student's density over t = tan(x) · √freedom, but for a constant, from x = `low` up."""
    half = (math.pi / 2 - low) / 2
    return float(half * np.sum(_WEIGHTS * np.cos(half * _NODES + low + half) ** (freedom - 1)))


def _jackknife(values: FloatArray) -> float:
    """Return the variance of a figure, of which `values` are what it is without each slice."""
    count = len(values)
    return float((count - 1) / count * np.sum((values - values.mean()) ** 2))


def _neighbours_resemble(slice_of: npt.NDArray[np.int64], total: npt.NDArray[Any]) -> bool:
    """Tell whether the means of neighbouring slices are closer than those of independent ones would be."""
    requests = np.bincount(slice_of)
    sums = np.bincount(slice_of, weights=total)
    means = sums[requests > 0] / requests[requests > 0]
    means -= means.mean()
    squares = float(np.sum(means**2))
    if len(means) < LEAST_SLICES or not squares:
        return False
    # Of independent ones the correlation has a standard error of 1/√n.
    return float(np.sum(means[1:] * means[:-1])) / squares > 2 / math.sqrt(len(means))
