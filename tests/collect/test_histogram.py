"""Counting durations into buckets."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from reqpath.collect.histogram import BATCH, BOUNDS_NS, EXPONENTIAL_NS, FIRST_EXPONENT, Histogram, Sample

durations_ns = st.lists(st.integers(0, 20_000_000_000), max_size=3 * BATCH)


@given(durations_ns, st.sampled_from([BOUNDS_NS, EXPONENTIAL_NS]))
def test_each_value_is_counted_in_the_bucket_whose_upper_bound_it_does_not_pass(
    values_ns: list[int], bounds_ns: tuple[int, ...]
) -> None:
    histogram = Histogram(bounds_ns)
    expected = [0] * (len(bounds_ns) + 1)
    for value_ns in values_ns:
        histogram.add(value_ns)
        expected[bisect_left(bounds_ns, value_ns)] += 1
    assert expected == histogram.counts()
    assert (len(values_ns), sum(values_ns)) == (histogram.count, histogram.sum_ns)
    if values_ns:
        assert (min(values_ns), max(values_ns)) == (histogram.min_ns, histogram.max_ns)


@given(st.integers(1, 4_000_000_000_000))
def test_an_exponential_bucket_has_the_bounds_that_its_index_says(value_ns: int) -> None:
    histogram = Histogram(EXPONENTIAL_NS)
    histogram.add(value_ns)
    exponent = FIRST_EXPONENT + histogram.counts()[1:].index(1)
    # Floats, so not to the last digit.
    assert 2 ** (exponent / 4) * 1e9 * 0.999_999 <= value_ns <= 2 ** ((exponent + 1) / 4) * 1e9 * 1.000_001


def test_zero_has_a_bucket_of_its_own_among_the_exponential_ones() -> None:
    histogram = Histogram(EXPONENTIAL_NS)
    histogram.add(0)
    histogram.add(1)
    assert [histogram.counts()[0], sum(histogram.counts()[1:])] == [1, 1]


def test_of_each_bucket_the_last_sample_stays_and_they_come_oldest_first() -> None:
    histogram = Histogram(BOUNDS_NS)
    early, late, other = Sample(1_000, 10, 1, 1), Sample(2_000, 30, 2, 2), Sample(5_000_000, 20, 3, 3)
    for sample in (early, late, other):
        histogram.sample(sample)
    assert [other, late] == histogram.take_samples()
    assert histogram.take_samples() == []
