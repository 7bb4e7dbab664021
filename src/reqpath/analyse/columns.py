"""Columns of integers that grow: a few bytes a value, exact, and numpy arrays on the way out.

Each chunk is kept in the narrowest type that holds its values; nearly all durations fit 32 bits of ns, 2.1 s.
"""

from __future__ import annotations

from array import array
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: Stands for None in a column.
UNKNOWN: Final = -1
#: Values beyond, 146 years of ns, come from a broken record.
_LIMIT: Final = float(1 << 62)

IntArray = npt.NDArray[np.signedinteger[Any]]


class Column:
    """One column; values go in by way of floats, which are exact up to 104 days of ns."""

    __slots__ = ("_chunks", "_pending", "append")

    def __init__(self) -> None:
        self._pending = array("d")
        self._chunks: list[IntArray] = []
        #: Takes one value.
        self.append = self._pending.append

    def __len__(self) -> int:
        return sum(map(len, self._chunks)) + len(self._pending)

    def pack(self) -> None:
        """Put what was appended into a chunk."""
        if self._pending:
            values = np.array(self._pending)
            self._chunks.append(_narrow(values, float(values.min()), float(values.max())))
            del self._pending[:]

    def read(self) -> IntArray:
        """Return the whole column."""
        self.pack()
        return np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int32)


class Table:
    """Columns that are filled by rows; None and negative values are `UNKNOWN`."""

    __slots__ = ("_chunks", "rows")

    def __init__(self, width: int) -> None:
        #: Tuples of `width` values; append to it.
        self.rows: list[tuple[int | None, ...]] = []
        self._chunks: list[list[IntArray]] = [[] for _ in range(width)]

    def pack(self) -> None:
        """Put the rows into chunks."""
        if not self.rows:
            return
        # As a float None is NaN, which fmax takes for less than any number.
        table = np.fmax(np.array(self.rows, np.float64), UNKNOWN)
        self.rows.clear()
        low, high = table.min(axis=0).tolist(), table.max(axis=0).tolist()
        for i, chunks in enumerate(self._chunks):
            chunks.append(_narrow(table[:, i], low[i], high[i]))

    def read(self, i: int) -> IntArray:
        """Return column `i`; call `pack` before."""
        chunks = self._chunks[i]
        return np.concatenate(chunks) if chunks else np.zeros(0, np.int32)


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


def _narrow(values: npt.NDArray[np.float64], low: float, high: float) -> IntArray:
    if low == high and abs(low) < 1 << 31:
        # One value seen as many: a segment that is unknown or not there takes no room.
        return np.broadcast_to(np.int32(low), values.shape)
    if low >= -(1 << 31) and high < 1 << 31:
        return values.astype(np.int32)
    return np.clip(values, -_LIMIT, _LIMIT).astype(np.int64)
