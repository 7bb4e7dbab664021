"""Columns of integers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reqpath.analyse.columns import UNKNOWN, Column, Names, Table

EXACT = st.integers(-(1 << 53), 1 << 53)


@given(st.lists(st.lists(EXACT, max_size=5), max_size=5))
def test_a_column_gives_back_what_went_in_however_it_is_packed(chunks: list[list[int]]) -> None:
    column = Column()
    for chunk in chunks:
        for value in chunk:
            column.append(value)
        column.pack()
    assert column.read().tolist() == [value for chunk in chunks for value in chunk]


@given(st.lists(st.tuples(*[st.none() | st.integers(0, 1 << 53)] * 3), max_size=20), st.integers(1, 7))
def test_a_table_gives_back_its_columns_with_none_as_unknown(
    rows: list[tuple[int | None, ...]], every: int
) -> None:
    table = Table(3)
    for number, row in enumerate(rows, 1):
        table.rows.append(row)
        if number % every == 0:
            table.pack()
    table.pack()
    for i in range(3):
        assert table.read(i).tolist() == [UNKNOWN if row[i] is None else row[i] for row in rows]


def test_values_of_a_broken_record_do_not_overflow() -> None:
    column = Column()
    column.append(1 << 64)
    assert column.read().tolist() == [1 << 62]


def test_a_column_of_one_value_takes_no_room() -> None:
    column = Column()
    for _ in range(1000):
        column.append(7)
    column.pack()
    assert column._chunks[0].strides == (0,)


def test_names_beyond_the_bound_are_one() -> None:
    names = Names(2, "(others)")
    assert [names.number(name) for name in "abcda"] == [0, 1, 2, 2, 0]
    assert names.names == ["a", "b", "(others)"]
