"""The time of many requests as stacks: route, tier, segment, and in the database the statement.

What a flame graph is drawn of, here of wall time and with tiers for functions::

    >>> sum_stacks(paths)
    {("GET /items", "mysql", "mysql.query", "SELECT name FROM items"): 90_000_000, …}
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from reqpath.path import RequestPath
from reqpath.record import Operation
from reqpath.tiers import SEGMENTS

RESIDUAL: Final = "residual"
#: Stacks told apart; what comes later has no statement, and then no route: an app can build any statement.
MAX_STACKS: Final = 20_000
OTHERS: Final = "(others)"

#: Outermost first.
Stack = tuple[str, ...]


def sum_stacks(paths: Iterable[RequestPath]) -> dict[Stack, int]:
    """Sum up each stack's time, ns; all of them together are the total of the requests.

    The residual of a route can be negative, where segments overlap within their stamps' resolution.
    """
    sums: dict[Stack, int] = {}

    def add(stack: Stack, duration_ns: int) -> None:
        if stack not in sums and len(sums) >= MAX_STACKS:
            stack = (OTHERS, *stack[1:3])
        sums[stack] = sums.get(stack, 0) + duration_ns

    for path in paths:
        timing, route = path.timing, path.route
        calls = _sum_calls(path.worker.operations) if path.worker is not None else {}
        for segment, value in zip(SEGMENTS, timing.segments, strict=True):
            if not value:
                continue
            around = (
                (route, segment.tier) if segment.name == segment.tier else (route, segment.tier, segment.name)
            )
            rest_ns = value
            for what, duration_ns in calls.get(segment.name, {}).items():
                # Operations that ran beside each other took more together than the request waited.
                part_ns = min(duration_ns, rest_ns)
                if part_ns > 0:
                    add((*around, what), part_ns)
                    rest_ns -= part_ns
            if rest_ns:
                add(around, rest_ns)
        if timing.residual_ns:
            add((route, RESIDUAL), timing.residual_ns)
    return sums


def _sum_calls(operations: Iterable[Operation]) -> dict[str, dict[str, int]]:
    """Sum up by segment what was called in it, ns: a statement, or a part of connecting."""
    calls: dict[str, dict[str, int]] = {}

    def add(segment: str, what: str, duration_ns: int) -> None:
        by_what = calls.setdefault(segment, {})
        by_what[what] = by_what.get(what, 0) + duration_ns

    for operation in operations:
        if operation.concurrent:
            continue
        for name, duration_ns in operation.phases:
            add("mysql.connect", name.replace("_", " "), duration_ns)
        if operation.kind == "query" and operation.statement is not None:
            first_byte_ns = operation.first_byte_ns
            if first_byte_ns is None:
                first_byte_ns = operation.end_ns
            add("mysql.query", operation.statement, first_byte_ns - operation.start_ns)
            add("mysql.fetch", operation.statement, operation.fetch_ns or 0)
        elif operation.kind in ("commit", "rollback"):
            add("mysql.commit", operation.kind, operation.end_ns - operation.start_ns)
    return calls
