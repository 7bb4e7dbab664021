"""How far the mean of requests that are alike can be trusted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from reqpath.analyse.slices import (
    LEAST_EFFECTIVE,
    SLICES,
    Slices,
    count_effective,
    cut_slices,
    estimate,
    find_student_p,
    find_student_quantile,
)
from tests.factories import NOW_NS

_SECOND_NS = 1_000_000_000
Integers = npt.NDArray[np.int64]


def make_traffic(
    random: np.random.Generator, *, alike: float, requests: int = 3_000
) -> tuple[Integers, Integers]:
    """Return starts over a minute, and times of 10 ms, of whose noise each second has `alike` in common."""
    start = np.sort(random.integers(0, 60 * _SECOND_NS, requests))
    common = np.zeros(61)
    for second in range(1, 61):
        common[second] = 0.5 * common[second - 1] + random.normal(0, 1)
    noise = alike * common[start // _SECOND_NS] + (1 - alike) * random.normal(0, 1, requests)
    return start + NOW_NS, (10_000_000 + 2_000_000 * noise).astype(np.int64)


def without_each(cut: Slices, total: Integers) -> npt.NDArray[np.float64]:
    requests = np.bincount(cut.slice_of)
    sums = np.bincount(cut.slice_of, weights=total)
    filled = requests > 0
    found: npt.NDArray[np.float64] = (sums.sum() - sums[filled]) / (requests.sum() - requests[filled])
    return found


def is_told(random: np.random.Generator, *, alike: float, shift_ns: int = 0) -> tuple[bool, bool]:
    """Return whether two stretches of traffic are told apart: by slices; as if requests were independent."""
    sides = [make_traffic(random, alike=alike) for _ in range(2)]
    totals = [sides[0][1], sides[1][1] + shift_ns]
    cuts = [cut_slices(start, total) for (start, _), total in zip(sides, totals, strict=True)]
    found = estimate(
        float(totals[1].mean() - totals[0].mean()),
        totals[1].mean() - without_each(cuts[0], totals[0]),
        without_each(cuts[1], totals[1]) - totals[0].mean(),
        min(cut.effective for cut in cuts),
    )
    return found.excludes_zero, bool(stats.ttest_ind(*totals).pvalue < 0.05)


@pytest.mark.parametrize("freedom", [*range(LEAST_EFFECTIVE - 1, SLICES)])
def test_students_distribution_is_scipys(freedom: int) -> None:
    assert find_student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)
    for t in (0.0, 0.1, -2.0, 3.5, 20.0):
        assert find_student_p(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-6)


def test_requests_that_are_alike_are_not_taken_for_many_observations() -> None:
    random = np.random.default_rng(5)
    told = [is_told(random, alike=0.5) for _ in range(300)]
    by_slices, by_requests = (sum(column) / len(told) for column in zip(*told, strict=True))
    # One in twenty may be; taken one by one, requests tell of a difference nearly always.
    assert by_slices < 0.09
    assert by_requests > 0.5


def test_a_difference_is_found() -> None:
    random = np.random.default_rng(6)
    told = [is_told(random, alike=0.2, shift_ns=1_000_000)[0] for _ in range(50)]
    assert sum(told) == 50


def test_requests_that_are_not_alike_have_all_their_slices() -> None:
    random = np.random.default_rng(7)
    cuts = [cut_slices(*make_traffic(random, alike=0.0)) for _ in range(50)]
    assert sum(cut.count == SLICES for cut in cuts) > 45
    assert min(cut.effective for cut in cuts if cut.count == SLICES) >= 22


def test_slices_that_resemble_their_neighbours_are_put_together() -> None:
    start = NOW_NS + np.arange(2_400) * 1_000_000
    drift = 10_000_000 + np.arange(2_400) * 1_000
    cut = cut_slices(start, drift)
    assert (cut.cut, cut.count) == (24, 6)
    assert cut.width_ns * cut.count >= 2_399_000_000
    assert np.bincount(cut.slice_of).tolist() == [400] * 6


def test_few_requests_have_fewer_slices_and_then_no_interval() -> None:
    start = NOW_NS + np.arange(50) * 1_000_000
    assert cut_slices(start, np.ones(50, np.int64)).count == 10
    few = cut_slices(start[:20], np.ones(20, np.int64))
    assert few.count == 4
    assert estimate(1.0, np.zeros(4), np.ones(4), few.effective).p is None
    nothing = cut_slices(start[:0], start[:0])
    assert (nothing.count, nothing.effective) == (1, 0)


def test_one_wrong_clock_does_not_make_all_others_one_slice() -> None:
    start = NOW_NS + np.arange(1_000) * 1_000_000
    start[0] = 0
    assert cut_slices(start, np.ones(1_000, np.int64)).effective > 20


def test_a_burst_is_worth_few_slices() -> None:
    start = NOW_NS + np.concatenate([np.arange(24) * _SECOND_NS, np.arange(1_000) * 1_000])
    assert cut_slices(start, np.ones(len(start), np.int64)).effective == 1


def test_equal_figures_have_no_difference_and_unequal_ones_without_scatter_have_one() -> None:
    same = np.full(24, 7.0)
    assert estimate(0.0, same, same, 24).p == 1.0
    apart = estimate(5.0, same, same, 24)
    assert (apart.p, apart.low_ns, apart.high_ns) == (0.0, 5.0, 5.0)


def test_a_figure_that_one_slice_alone_makes_has_no_interval() -> None:
    values = np.array([1.0, 2.0, np.nan, 1.0, 2.0, 1.0])
    assert estimate(1.0, values, np.ones(6), 6).low_ns is None


@given(st.lists(st.integers(0, 1_000), min_size=1, max_size=30))
def test_slices_are_worth_at_most_as_many_as_have_requests(requests: list[int]) -> None:
    filled = sum(count > 0 for count in requests)
    assert min(filled, 1) <= count_effective(np.array(requests)) <= filled
