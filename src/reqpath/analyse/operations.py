"""The times of database operations, by statement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, repeat
from operator import sub
from typing import Any, Final

import numpy as np

from reqpath.analyse.columns import Column, to_floats
from reqpath.analyse.figures import StatementFigures
from reqpath.analyse.group import _ranks
from reqpath.raw import STATEMENT_ITEMS
from reqpath.record import Operation, operation_time_ns

#: Statements told apart; what comes later is added to one named "(others)": an app can build any statement.
MAX_STATEMENTS: Final = 5_000
OTHERS: Final = "(others)"


class OperationTable:
    """Each database operation's time, by statement."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str | None, str | None], int] = {}
        self._keys: list[tuple[str, str | None, str | None]] = []
        self._number_of, self._time = Column(), Column()
        #: Of those not yet in the columns.
        self._pending_numbers: list[int] = []
        self._pending_times: list[int] = []
        self._append_number, self._append_time = self._pending_numbers.append, self._pending_times.append
        self._errors: Counter[int] = Counter()
        self._by_route: dict[int, int] = {}
        #: By row, ns: the TLS contexts that were built in it. Few requests connect.
        self.tls_contexts: Counter[int] = Counter()

    def add(self, row: int, route: int, operations: list[Operation]) -> None:
        """Add the operations of the request in a row; `pack` from time to time."""
        numbers = self._numbers
        append_number, append_time = self._append_number, self._append_time
        count = len(operations)
        for operation in operations:
            key = (operation.kind, operation.statement, operation.transport)
            number = numbers.get(key)
            if number is None:
                if operation.kind == "ping":
                    count -= 1
                    continue
                number = self._number(key)
            append_number(number)
            append_time(operation_time_ns(operation))
            if operation.error is not None:
                self._errors[number] += 1
            if operation.phases:
                self.tls_contexts[row] += sum(ns for name, ns in operation.phases if name == "tls_context")
        self._by_route[route] = self._by_route.get(route, 0) + count

    def add_statements(self, routes: Sequence[int], statements: Sequence[list[Any]]) -> None:
        """Add the queries in `RawRecord.statements` of some requests, whose routes these are.

        Raises: TypeError, IndexError for what no worker writes; then none of them was added.
        """
        flat = list(chain.from_iterable(statements))
        # Nothing is done between two fetches of such a query.
        times_ns = list(map(sub, flat[1::STATEMENT_ITEMS], flat[::STATEMENT_ITEMS]))
        transports = [link[0] for link in flat[4::STATEMENT_ITEMS]]
        find, learn = self._numbers.get, self._number
        self._pending_numbers += [
            learn(key) if (number := find(key)) is None else number
            for key in zip(repeat("query"), flat[2::STATEMENT_ITEMS], transports)
        ]
        self._pending_times += times_ns
        for route, own in zip(routes, statements, strict=True):
            self._by_route[route] = self._by_route.get(route, 0) + len(own) // STATEMENT_ITEMS

    def pack(self) -> None:
        """Put what was added into columns."""
        self._number_of.add(to_floats(self._pending_numbers))
        self._time.add(to_floats(self._pending_times))
        self._pending_numbers.clear()
        self._pending_times.clear()

    def absorb(self, other: OperationTable, offset: int, routes: list[int]) -> None:
        """Add another table's packed operations; its rows begin at `offset`, `routes` are its routes here."""
        numbers = []
        for key in other._keys:
            number = self._numbers.get(key)
            numbers.append(self._number(key) if number is None else number)
        self._number_of.extend(other._number_of, np.array(numbers, np.int32))
        self._time.extend(other._time)
        for number, count in other._errors.items():
            self._errors[numbers[number]] += count
        for route, count in other._by_route.items():
            self._by_route[routes[route]] = self._by_route.get(routes[route], 0) + count
        for row, tls_ns in other.tls_contexts.items():
            self.tls_contexts[offset + row] += tls_ns

    def _number(self, key: tuple[str, str | None, str | None]) -> int:
        if len(self._keys) >= MAX_STATEMENTS:
            key = (key[0], OTHERS, key[2])
            if key in self._numbers:
                return self._numbers[key]
        number = self._numbers[key] = len(self._keys)
        self._keys.append(key)
        return number

    def count(self, route: int | None) -> int:
        """How many operations a route had; None: all of them."""
        return sum(self._by_route.values()) if route is None else self._by_route.get(route, 0)

    def transports(self) -> dict[str | None, int]:
        """Count the operations by transport; None is unknown."""
        counts = np.bincount(self._number_of.read(), minlength=len(self._keys))
        transports: Counter[str | None] = Counter()
        for (_, _, transport), count in zip(self._keys, counts.tolist(), strict=True):
            if count:
                transports[transport] += count
        return dict(transports)

    def build(self) -> tuple[StatementFigures, ...]:
        """Build the figures by kind and statement, the one with the most time first."""
        # One statement over two transports is one statement.
        merged: dict[tuple[str, str | None], int] = {}
        numbers = [merged.setdefault(key[:2], len(merged)) for key in self._keys]
        errors: Counter[int] = Counter()
        for number, count in self._errors.items():
            errors[numbers[number]] += count
        # So narrow that numpy sorts it by radix.
        column = np.array(numbers, np.int16)[self._number_of.read()]
        order = np.argsort(column, kind="stable")
        times = self._time.read()[order]
        figures = []
        start = 0
        for number, ((kind, statement), count) in enumerate(
            zip(merged, np.bincount(column, minlength=len(merged)).tolist(), strict=True)
        ):
            if not count:
                # Of an interrupted batch.
                continue
            part = times[start : start + count]
            start += count
            total_ns = int(part.sum(dtype=np.int64))
            figures.append(
                StatementFigures(
                    kind, statement, count, total_ns, total_ns / count, _ranks(part, 0.99)[0], errors[number]
                )
            )
        figures.sort(key=lambda figure: (-figure.total_ns, figure.kind, figure.statement or ""))
        return tuple(figures)
