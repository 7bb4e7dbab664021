"""The time of many requests as stacks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.analyse import stacks
from reqpath.analyse.stacks import sum_stacks
from reqpath.path import RequestPath
from reqpath.record import Operation
from tests.factories import make_path
from tests.strategies import request_paths

MS = 1_000_000
ITEMS = "GET /items/<int:id>"
SELECT = "SELECT name FROM items WHERE id = ?"


def test_a_segment_is_a_frame_within_its_tier_within_its_route() -> None:
    assert sum_stacks([make_path(20 * MS, query_ns=5 * MS), make_path(20 * MS, query_ns=5 * MS)]) == {
        (ITEMS, "nginx", "nginx.receive"): 2 * 500_000,
        (ITEMS, "queue"): 2 * 2 * MS,
        (ITEMS, "uwsgi", "uwsgi.read"): 2 * 500_000,
        (ITEMS, "uwsgi", "uwsgi.gil"): 2 * MS,
        (ITEMS, "flask", "flask.framework"): 2 * 300_000,
        (ITEMS, "flask", "flask.view"): 2 * 10_100_000,
        (ITEMS, "mysql", "mysql.query", SELECT): 2 * 4_500_000,
        (ITEMS, "mysql", "mysql.fetch", SELECT): 2 * 500_000,
        (ITEMS, "uwsgi", "uwsgi.send"): 2 * 100_000,
        (ITEMS, "nginx", "nginx.send"): 2 * 500_000,
    }


@given(st.lists(request_paths(), max_size=5))
def test_all_stacks_together_are_the_total(paths: list[RequestPath]) -> None:
    assert sum(sum_stacks(paths).values()) == sum(path.timing.total_ns for path in paths)


def test_operations_beside_each_other_do_not_take_more_than_their_segment() -> None:
    path = make_path(20 * MS, query_ns=5 * MS)
    assert path.worker is not None
    path.worker.operations += [
        Operation("query", MS, 4 * MS, 4 * MS, "SELECT 2"),
        Operation("query", 0, 9 * MS, 9 * MS, "SELECT 3", concurrent=True),
    ]
    sums = sum_stacks([path])
    queries = {stack[3]: ns for stack, ns in sums.items() if stack[2:3] == ("mysql.query",)}
    assert queries == {SELECT: 4_500_000}


def test_connecting_is_told_by_its_parts() -> None:
    path = make_path(20 * MS, query_ns=5 * MS)
    assert path.worker is not None
    path.worker.exclusive_ns[5] = 3 * MS
    path.worker.operations.append(
        Operation("connect", 0, 3 * MS, phases=[("tls_context", MS), ("handshake", MS)])
    )
    sums = sum_stacks([path])
    assert {stack[3:]: ns for stack, ns in sums.items() if stack[2:3] == ("mysql.connect",)} == {
        ("tls context",): MS,
        ("handshake",): MS,
        (): MS,
    }


def test_the_number_of_stacks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "MAX_STACKS", 50)
    paths = [make_path(20 * MS, query_ns=5 * MS, statement=f"SELECT {i}", number=i) for i in range(100)]
    sums = sum_stacks(paths)
    assert len(sums) < 70
    assert sum(sums.values()) == 100 * 20 * MS
    assert sums[stacks.OTHERS, "mysql", "mysql.query"] > 50 * 4_500_000
