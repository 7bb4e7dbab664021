"""What can be said of two set-ups from the runs of several blocks.

A run is one value and a block gives one difference, so that what a whole run has in common (a cold cache, a
busy neighbour) never counts as many requests' evidence. The layer below is scipy::

    estimate([38_100.0, 41_000.0, …])  →  Estimate(value_ns=39_200.0, low_ns=33_900.0, high_ns=…, p=0.0039, …)

*Hodges-Lehmann*: the median of the means of all pairs of differences, which one odd block does not move. Its
95 % interval is the bootstrap's, over blocks, widened for their small number: with eight blocks the plain one
holds the truth in nine cases of ten. Source: Hesterberg, "What Teachers Should Know About the Bootstrap",
2014, section 4.2, the expanded percentile interval.

*Wilcoxon's signed-rank test*: exact. As blocks run their cells in random order, a difference between equal
set-ups is as likely as its negative, whatever drifts over the hours.

*Holm*: of many comparisons, none is called different by chance in 95 of 100 benchmarks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from reqpath.analyse.estimate import ALPHA, Estimate, adjust_holm

__all__ = [
    "ALPHA",
    "POWER",
    "Estimate",
    "adjust_holm",
    "blocks_needed",
    "bootstrap_interval",
    "estimate",
    "estimate_shift",
    "hodges_lehmann",
    "resolvable_ns",
    "wilcoxon_p",
]

#: Chance with which a difference as large as the resolvable one is found.
POWER: Final = 0.8
_RESAMPLES: Final = 2_000
_SIMULATIONS: Final = 2_000
#: Wilcoxon's exact distribution is near enough to the normal one beyond.
_MANY: Final = 50

_Array = npt.NDArray[np.float64]


def estimate(differences_ns: Sequence[float], comparisons: int = 1) -> Estimate:
    """Estimate what lies behind one difference for each block, of as many `comparisons`.

    Raises:
        ValueError: there is no difference.
    """
    values = np.asarray(differences_ns, np.float64)
    if not len(values):
        raise ValueError("nothing was compared")
    low_ns = high_ns = None
    if len(values) >= blocks_needed(1):
        low_ns, high_ns = bootstrap_interval(values)
    return Estimate(
        len(values),
        hodges_lehmann(values),
        low_ns,
        high_ns,
        float(np.std(values, ddof=1)) if len(values) > 1 else None,
        wilcoxon_p(values) if len(values) >= blocks_needed(comparisons) else None,
    )


def estimate_shift(first_ns: Sequence[float], second_ns: Sequence[float], comparisons: int = 1) -> Estimate:
    """Estimate by how much the second runs differ from the first, which belong to no common blocks.

    The p is Mann and Whitney's; of both counts of runs, `blocks` is the smaller.

    Raises:
        ValueError: there is nothing on one side.
    """
    first, second = np.asarray(first_ns, np.float64), np.asarray(second_ns, np.float64)
    blocks = min(len(first), len(second))
    if not blocks:
        raise ValueError("nothing was compared")
    low_ns = high_ns = spread_ns = p = None
    if blocks > 1:
        spread_ns = float(np.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2))
    # As likely as this the most extreme order comes about by chance.
    least_p = 2 / math.comb(len(first) + len(second), len(first))
    if blocks > 1 and least_p <= ALPHA:
        low_ns, high_ns = _bootstrap((first, second), _shift, blocks, 1 - ALPHA)
    if least_p <= ALPHA / max(1, comparisons):
        p = float(stats.mannwhitneyu(first, second).pvalue)
    return Estimate(blocks, float(_shift(first, second)), low_ns, high_ns, spread_ns, p)


def hodges_lehmann(values: Sequence[float] | _Array) -> float:
    """Return the median of the means of all pairs of values, each with itself too."""
    return float(_hodges_lehmann(np.asarray(values, np.float64)))


def bootstrap_interval(
    values: Sequence[float] | _Array, confidence: float = 1 - ALPHA
) -> tuple[float, float]:
    """Return the interval of `hodges_lehmann` over at least two values; the same values give the same."""
    data = np.asarray(values, np.float64)
    count = len(data)
    if np.ptp(data) == 0:
        return float(data[0]), float(data[0])
    return _bootstrap((data,), _hodges_lehmann, count, confidence)


def wilcoxon_p(values: Sequence[float] | _Array) -> float:
    """Return how likely differences are this far to one side when there is none."""
    data = np.asarray(values, np.float64)
    if not data.any():
        return 1.0
    return float(stats.wilcoxon(data, zero_method="zsplit").pvalue)


def blocks_needed(comparisons: int) -> int:
    """Return the fewest blocks with which one of so many comparisons can be called different.

    With n blocks that all say the same, chance alone does so in 2 of 2ⁿ cases.
    """
    blocks = 2
    while 2.0 ** (1 - blocks) > ALPHA / max(1, comparisons):
        blocks += 1
    return blocks


def resolvable_ns(spread_ns: float, blocks: int, comparisons: int) -> float | None:
    """Return the difference that would be found with 80 % chance; None when none would be.

    For differences between blocks that scatter normally by `spread_ns`, which is itself only estimated.
    """
    factor = _resolvable_factor(blocks, comparisons)
    return None if factor is None else factor * spread_ns


@functools.cache
def _resolvable_factor(blocks: int, comparisons: int) -> float | None:
    """Return the resolvable difference in standard deviations between blocks."""
    if blocks < blocks_needed(comparisons):
        return None
    noise = np.random.default_rng(1).standard_normal((_SIMULATIONS, blocks))
    critical = _critical_rank_sum(blocks, ALPHA / max(1, comparisons))
    low, high = 0.0, 64.0
    for _ in range(24):
        middle = (low + high) / 2
        values = noise + middle
        ranks = stats.rankdata(np.abs(values), axis=1)
        # A shift upwards leaves few ranks below 0.
        found = np.mean((ranks * (values < 0)).sum(axis=1) <= critical)
        low, high = (low, middle) if found >= POWER else (middle, high)
    return high


def _critical_rank_sum(blocks: int, alpha: float) -> float:
    """Return the largest sum of the ranks of one sign that the two-sided test calls different."""
    if blocks > _MANY:
        mean, variance = blocks * (blocks + 1) / 4, blocks * (blocks + 1) * (2 * blocks + 1) / 24
        return float(mean - stats.norm.isf(alpha / 2) * np.sqrt(variance))
    # How many of the 2ⁿ sets of ranks have each sum: rank after rank is in it or not.
    counts = np.zeros(blocks * (blocks + 1) // 2 + 1)
    counts[0] = 1
    for rank in range(1, blocks + 1):
        counts[rank:] += counts[:-rank].copy()
    within = np.cumsum(counts) / 2.0**blocks * 2 <= alpha
    return float(np.flatnonzero(within)[-1])


def _bootstrap(
    samples: tuple[_Array, ...], statistic: Callable[..., _Array], count: int, confidence: float
) -> tuple[float, float]:
    # Where the bootstrap's normal quantile would be, Student's, and the n - 1 that a sample's variance lacks.
    quantile = stats.t.ppf((1 + confidence) / 2, count - 1) * np.sqrt(count / (count - 1))
    interval = stats.bootstrap(
        samples,
        statistic,
        n_resamples=_RESAMPLES,
        confidence_level=1 - 2 * stats.norm.sf(quantile),
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(1),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _shift(first: _Array, second: _Array, axis: int = -1) -> _Array:
    first, second = np.moveaxis(first, axis, -1), np.moveaxis(second, axis, -1)
    pairs = second[..., :, None] - first[..., None, :]
    return np.asarray(np.median(pairs.reshape(*pairs.shape[:-2], -1), axis=-1), np.float64)


def _hodges_lehmann(values: _Array, axis: int = -1) -> _Array:
    first, second = np.triu_indices(values.shape[axis])
    values = np.moveaxis(values, axis, -1)
    return np.asarray(np.median((values[..., first] + values[..., second]) / 2, axis=-1), np.float64)
