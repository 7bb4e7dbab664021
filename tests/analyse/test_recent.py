"""The requests of the last minutes: the figures of a report over them, however they came."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.analyse.breakdown import build_breakdown
from reqpath.analyse.cube import Cube, CubeBuilder
from reqpath.analyse.figures import Breakdown
from reqpath.analyse.recent import RecentWindow
from reqpath.path import RequestPath
from reqpath.spool import SpoolLosses
from tests.factories import NOW_NS, make_nginx_record, make_path, make_shop_paths
from tests.strategies import request_paths

MS = 1_000_000
S = 1_000_000_000
MINUTE = 60 * S


def build_at_once(paths: list[RequestPath]) -> tuple[Breakdown, Cube]:
    builder = CubeBuilder()
    breakdown = build_breakdown(builder.watch(paths))
    return breakdown, builder.build(breakdown)


def end_of(path: RequestPath) -> int:
    return path.timing.start_ns + path.timing.total_ns


@pytest.mark.parametrize("batch", [1, 37, 5_000])
def test_its_figures_are_those_of_a_report_over_the_same_requests(batch: int) -> None:
    paths = sorted(make_shop_paths(2_000), key=end_of)
    window = RecentWindow(MINUTE)
    for first in range(0, len(paths), batch):
        window.extend(paths[first : first + batch], NOW_NS + 12 * S)
    assert window.requests == 2_000
    assert len(window._parts) > 5
    breakdown, cube = window.build()
    expected, expected_cube = build_at_once(paths)
    assert breakdown == expected
    assert (cube.grid, cube.cells, cube.slices) == (
        expected_cube.grid,
        expected_cube.cells,
        expected_cube.slices,
    )
    assert (cube.routes, cube.statements, cube.attributes) == (
        expected_cube.routes,
        expected_cube.statements,
        expected_cube.attributes,
    )
    slowest = sorted(paths, key=lambda path: -path.timing.total_ns)[:20]
    assert list(cube.samples[:20]) == slowest


@given(st.lists(request_paths(), min_size=1, max_size=12), st.integers(1, 4))
def test_whatever_a_spool_holds_comes_out_as_in_a_report(paths: list[RequestPath], batch: int) -> None:
    paths.sort(key=end_of)
    window = RecentWindow(MINUTE)
    for first in range(0, len(paths), batch):
        window.extend(paths[first : first + batch], NOW_NS + S)
    assert window.build() == build_at_once(paths)


def test_names_that_came_in_another_order_are_the_same_names() -> None:
    routes = ["/a", "/b", "/c"]
    window = RecentWindow(MINUTE)
    paths = []
    for second in range(6):
        for turn in range(3):
            number = second * 3 + turn
            route = routes[(second + turn) % 3]
            path = make_path(
                (10 + number) * MS,
                at_ns=second * S + number * MS,
                query_ns=MS,
                number=number,
                route=route,
                statement=f"SELECT {route}",
                status=200 + (second + turn) % 2,
            )
            paths.append(path)
            window.extend([path], NOW_NS + 10 * S)
    breakdown, cube = window.build()
    expected, expected_cube = build_at_once(paths)
    assert breakdown == expected
    assert (cube.routes, cube.statements, cube.attributes) == (
        expected_cube.routes,
        expected_cube.statements,
        expected_cube.attributes,
    )


def test_what_is_older_than_the_window_is_forgotten() -> None:
    window = RecentWindow(MINUTE)
    for second in range(600):
        now_ns = NOW_NS + second * S
        window.extend([make_path(20 * MS, at_ns=second * S - 100 * MS, number=second)], now_ns)
        assert window.requests <= 60
        assert len(window._parts) <= 60
    breakdown, _ = window.build()
    assert breakdown.whole.requests == window.requests == 59
    assert breakdown.first_ns == NOW_NS + (600 - 59) * S - 100 * MS
    assert not window.cut
    version = window.version
    window.forget(now_ns + MINUTE)
    assert window.requests == 0
    assert window.version > version
    assert window.newest_ns == NOW_NS + 599 * S - 80 * MS


def test_a_request_that_comes_too_late_is_left_out() -> None:
    window = RecentWindow(MINUTE)
    window.extend([make_path()], NOW_NS + 2 * MINUTE)
    assert (window.requests, window.version) == (0, 0)
    assert window.newest_ns == NOW_NS + 12 * MS


def test_no_more_are_held_than_may_be_and_it_says_so() -> None:
    window = RecentWindow(MINUTE, max_requests=240)
    for second in range(20):
        paths = [make_path(20 * MS, at_ns=second * S - 100 * MS, number=100 * second + n) for n in range(100)]
        window.extend(paths, NOW_NS + second * S)
        assert window.requests <= 240
    assert window.cut
    breakdown, _ = window.build()
    assert breakdown.whole.requests == window.requests >= 100
    # The newest are kept.
    assert breakdown.last_ns == NOW_NS + 19 * S - 80 * MS
    for second in range(20, 120):
        path = make_path(20 * MS, at_ns=second * S - 100 * MS, number=second)
        window.extend([path], NOW_NS + second * S)
    assert not window.cut


def test_a_clock_that_is_ahead_keeps_no_request_for_longer() -> None:
    window = RecentWindow(MINUTE)
    window.extend([make_path(at_ns=3_600 * S)], NOW_NS)
    assert window.requests == 1
    window.forget(NOW_NS + MINUTE)
    assert window.requests == 0


def test_the_spool_s_losses_are_handed_on() -> None:
    window = RecentWindow(MINUTE)
    window.extend([RequestPath(None, None, make_nginx_record())], NOW_NS + S)
    breakdown, _ = window.build(SpoolLosses(lost_records=3))
    assert breakdown.losses.lost_records == 3
