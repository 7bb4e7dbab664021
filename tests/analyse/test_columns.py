"""Columns of integers."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reqpath.analyse.columns import Column, Names, order_stably, to_floats

EXACT = st.integers(-(1 << 53), 1 << 53)


@given(st.lists(st.lists(EXACT, max_size=5), max_size=5))
def test_a_column_gives_back_what_went_in_however_it_is_cut(chunks: list[list[int]]) -> None:
    column = Column()
    for chunk in chunks:
        column.add(to_floats(chunk))
    assert column.read().tolist() == [value for chunk in chunks for value in chunk]


@given(st.lists(st.none() | EXACT))
def test_none_is_no_number(values: list[int | None]) -> None:
    assert [None if math.isnan(value) else int(value) for value in to_floats(values)] == values


def test_values_of_a_broken_record_do_not_overflow() -> None:
    column = Column()
    column.add(to_floats([1 << 64]))
    assert column.read().tolist() == [1 << 62]


def test_a_column_of_one_value_takes_no_room() -> None:
    column = Column()
    column.add(to_floats([7] * 1000))
    assert column._chunks[0].strides == (0,)


@given(st.lists(st.integers(0, 3) | st.integers(0, 1 << 62)))
def test_equal_values_stay_in_their_order(values: list[int]) -> None:
    expected = sorted(range(len(values)), key=values.__getitem__)
    assert order_stably(np.array(values, np.int64)).tolist() == expected


def test_names_beyond_the_bound_are_one() -> None:
    names = Names(2, "(others)")
    assert [names.number(name) for name in "abcda"] == [0, 1, 2, 2, 0]
    assert names.names == ["a", "b", "(others)"]
