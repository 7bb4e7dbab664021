"""What can be said of two set-ups from a few blocks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqpath.bench.statistics import (
    ALPHA,
    adjust_holm,
    blocks_needed,
    bootstrap_interval,
    estimate,
    estimate_shift,
    hodges_lehmann,
    resolvable_ns,
    wilcoxon_p,
)

# The bootstrap takes milliseconds, and among equal values Wilcoxon's test tries all signs.
slow = settings(max_examples=20)
VALUES = st.lists(st.floats(-1e9, 1e9), min_size=6, max_size=12)


def test_the_estimate_is_not_moved_by_one_odd_block() -> None:
    calm = [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0]
    assert hodges_lehmann(calm) == 13.0
    assert abs(hodges_lehmann([*calm, 10_000.0]) - 13.0) < 2


@slow
@given(VALUES)
def test_the_estimate_lies_within_its_interval_and_the_interval_within_the_values(
    values: list[float],
) -> None:
    found = estimate(values)
    assert found.low_ns is not None
    assert found.high_ns is not None
    slack = 1e-6 * max(map(abs, values))
    assert min(values) - slack <= found.low_ns <= found.value_ns + slack
    assert found.value_ns - slack <= found.high_ns <= max(values) + slack


@slow
@given(VALUES)
def test_a_difference_the_other_way_is_the_same_with_its_sign_changed(values: list[float]) -> None:
    there, back = estimate(values), estimate([-value for value in values])
    assert there.value_ns == pytest.approx(-back.value_ns, rel=1e-9, abs=1e-6)
    assert there.p == back.p


def scatter(random: np.random.Generator, shape: str, size: int) -> list[float]:
    if shape == "normal":
        return list(random.normal(0, 1, size))
    if shape == "heavy":
        return list(random.standard_t(3, size))
    return list(random.exponential(1, size))


@pytest.mark.parametrize(("shape", "blocks"), [("normal", 8), ("heavy", 8), ("skewed", 8), ("normal", 16)])
def test_the_interval_holds_the_truth_in_19_of_20(shape: str, blocks: int) -> None:
    random = np.random.default_rng(blocks)
    truth = hodges_lehmann(scatter(random, shape, 1_500)) if shape == "skewed" else 0.0
    held = 0
    for _ in range(200):
        low, high = bootstrap_interval(scatter(random, shape, blocks))
        held += low <= truth <= high
    # Of 200 where 0.95 is true, fewer than this has a chance of one in a thousand.
    assert held >= 180


def test_too_few_blocks_have_no_interval_and_no_p() -> None:
    alone = estimate([5.0])
    assert (alone.blocks, alone.value_ns, alone.low_ns, alone.high_ns, alone.p) == (1, 5.0, None, None, None)
    assert alone.bound_ns is None
    assert not alone.excludes_zero
    # Of six blocks, the range holds the truth in 31 cases of 32; of five, in 15 of 16.
    few = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (few.value_ns, few.low_ns, few.high_ns, few.p) == (3.0, None, None, None)
    assert few.spread_ns is not None
    assert estimate([5.0] * 6).p is not None
    assert estimate([5.0] * 6, comparisons=2).p is None


@pytest.mark.parametrize("blocks", range(2, 9))
def test_the_p_is_that_of_all_signs_that_the_blocks_could_have_had(blocks: int) -> None:
    values = np.random.default_rng(blocks).normal(0.5, 1, blocks)
    ranks = np.argsort(np.argsort(np.abs(values))) + 1
    middle = ranks.sum() / 2
    found = abs(ranks[values > 0].sum() - middle)
    sums = [
        abs(sum(itertools.compress(ranks, signs)) - middle)
        for signs in itertools.product((0, 1), repeat=blocks)
    ]
    assert wilcoxon_p(values) == pytest.approx(np.mean([one >= found for one in sums]))


def test_equal_values_are_no_difference() -> None:
    assert wilcoxon_p([0.0] * 8) == 1.0
    same = estimate([0.0] * 8)
    assert (same.low_ns, same.high_ns) == (0.0, 0.0)


@settings(max_examples=20)
@given(st.integers(1, 60))
def test_the_blocks_needed_are_the_fewest_that_can_find_anything(comparisons: int) -> None:
    def smallest(blocks: int) -> float:
        return wilcoxon_p([float(number) for number in range(1, blocks + 1)])

    needed = blocks_needed(comparisons)
    assert smallest(needed) <= ALPHA / comparisons < smallest(needed - 1)


def test_among_many_the_smallest_p_counts_as_many_times() -> None:
    assert adjust_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_holm([0.5, 0.9]) == [1.0, 1.0]
    assert adjust_holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_no_p_becomes_smaller_and_their_order_stays(ps: list[float]) -> None:
    adjusted = adjust_holm(ps)
    assert all(before <= after <= 1 for before, after in zip(ps, adjusted, strict=True))
    order = sorted(range(len(ps)), key=lambda number: ps[number])
    assert sorted(adjusted) == [adjusted[number] for number in order]


@pytest.mark.parametrize(("blocks", "comparisons"), [(6, 1), (8, 3), (10, 7), (60, 7)])
def test_what_can_be_resolved_is_found_in_four_of_five(blocks: int, comparisons: int) -> None:
    random = np.random.default_rng(7)
    shift = resolvable_ns(1.0, blocks, comparisons)
    assert shift is not None
    found = [wilcoxon_p(random.normal(shift, 1, blocks)) <= ALPHA / comparisons for _ in range(300)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.08)


def test_too_few_blocks_resolve_nothing() -> None:
    assert resolvable_ns(1.0, 5, 1) is None
    assert resolvable_ns(1.0, 1, 1) is None


def test_a_shift_between_runs_without_blocks_is_found() -> None:
    first = [100.0, 101.0, 102.0, 103.0, 104.0, 105.0]
    shifted = estimate_shift(first, [value + 40 for value in first])
    assert shifted.value_ns == 40.0
    assert shifted.low_ns is not None
    assert shifted.low_ns > 30
    assert shifted.p == pytest.approx(2 / 924)
    few = estimate_shift([1.0, 2.0], [3.0, 4.0])
    assert (few.value_ns, few.low_ns, few.p) == (2.0, None, None)


def test_nothing_can_be_said_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing was compared"):
        estimate([])
    with pytest.raises(ValueError, match="nothing was compared"):
        estimate_shift([], [1.0])


@pytest.mark.parametrize(("first", "second"), [(1, 60), (60, 1), (2, 12), (4, 4), (3, 40)])
def test_a_shift_between_unequal_numbers_of_runs_has_a_finite_interval_or_none(
    first: int, second: int
) -> None:
    random = np.random.default_rng(1)
    shifted = estimate_shift(list(random.normal(0, 1, first)), list(random.normal(9, 1, second)))
    assert (shifted.low_ns is None) == (min(first, second) == 1)
    if shifted.low_ns is not None:
        assert shifted.high_ns is not None
        assert 0 < shifted.low_ns <= shifted.value_ns <= shifted.high_ns
