"""Columns of integers that grow: a few bytes a value, exact, and numpy arrays on the way out.

Each chunk is kept in the narrowest type that holds its values; nearly all durations fit 32 bits of ns, 2.1 s.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: Stands for None in a column.
UNKNOWN: Final = -1
#: Values beyond, 146 years of ns, come from a broken record.
_LIMIT: Final = float(1 << 62)

IntArray = npt.NDArray[np.signedinteger[Any]]
FloatArray = npt.NDArray[np.float64]


def to_floats(values: Sequence[int | None]) -> FloatArray:
    """Return `values` as floats, which are exact up to 104 days of ns; None becomes NaN."""
    try:
        # A third of the time that numpy takes to look at each.
        return np.frombuffer(struct.pack(f"{len(values)}q", *values), np.int64).astype(np.float64)
    except struct.error:
        return np.array(values, np.float64)


def order_stably(values: IntArray) -> npt.NDArray[np.int64]:
    """Return the rows in the order of their values, which are not negative; equal ones as they are."""
    bits = len(values).bit_length()
    if not len(values) or int(values.max()) >> (63 - bits):
        return np.argsort(values, kind="stable")
    # With its row below it each value is another, and plain numbers are sorted in a tenth of the time.
    keys = (values.astype(np.int64) << bits) + np.arange(len(values))
    keys.sort()
    return keys & ((1 << bits) - 1)


class Column:
    """One column, which grows by chunks."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: list[IntArray] = []

    def add(self, values: FloatArray) -> None:
        """Add whole numbers."""
        if len(values):
            self._chunks.append(_narrow(values, float(values.min()), float(values.max())))

    def extend(self, other: Column, numbers: IntArray | None = None) -> None:
        """Add another column's values, or what each of them is the place of in `numbers`."""
        self._chunks += other._chunks if numbers is None else [numbers[chunk] for chunk in other._chunks]

    def read(self) -> IntArray:
        """Return the whole column."""
        return np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int32)


class Names:
    """Numbers names from 0, up to a bound, beyond which all are one."""

    def __init__(self, limit: int, others: str) -> None:
        """`others` is the name of those beyond the bound."""
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._limit = limit
        self._others = others

    def number(self, name: str) -> int:
        """Return the name's number."""
        number = self._numbers.get(name)
        if number is None:
            if len(self.names) >= self._limit and name != self._others:
                return self.number(self._others)
            number = self._numbers[name] = len(self.names)
            self.names.append(name)
        return number


def _narrow(values: FloatArray, low: float, high: float) -> IntArray:
    if low == high and abs(low) < 1 << 31:
        # One value seen as many: a segment that is unknown or not there takes no room.
        return np.broadcast_to(np.int32(low), values.shape)
    if low >= -(1 << 31) and high < 1 << 31:
        return values.astype(np.int32)
    return np.clip(values, -_LIMIT, _LIMIT).astype(np.int64)
