"""The figures of the last seconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.analyse.live import KEPT_S, LiveFigures, LiveWindow
from reqpath.path import RequestPath
from tests.factories import NOW_NS, make_nginx_record, make_path, make_shop_paths
from tests.strategies import request_paths

MS = 1_000_000
S = 1_000_000_000


def build(paths: list[RequestPath], now_ns: int, seconds: int = 10) -> LiveFigures:
    window = LiveWindow()
    window.extend(paths, now_ns)
    return window.build(now_ns, seconds, history=5)


def test_the_figures_are_of_the_requests_that_ended_in_the_window() -> None:
    paths = [make_path(20 * MS, at_ns=i * 100 * MS, query_ns=5 * MS, number=i) for i in range(100)]
    figures = build(paths, NOW_NS + 10 * S, 5)
    assert (figures.total.requests, figures.total.p50_ns, figures.total.max_ns) == (50, 20 * MS, 20 * MS)
    assert {tier.name: (tier.requests, tier.mean_ns, tier.p99_ns) for tier in figures.tiers} == {
        "nginx": (50, MS, MS),
        "queue": (50, 2 * MS, 2 * MS),
        "uwsgi": (50, 1_600_000, 1_600_000),
        "flask": (50, 10_400_000, 10_400_000),
        "mysql": (50, 5 * MS, 5 * MS),
    }
    assert figures.total.waiting == pytest.approx(50 * 0.002 / 5)


def test_the_tiers_add_up_to_the_total() -> None:
    figures = build(make_shop_paths(1_000), NOW_NS + 5 * S)
    assert sum(tier.mean_ns for tier in figures.tiers) == pytest.approx(figures.total.mean_ns)
    assert sum(tier.share for tier in figures.tiers) == pytest.approx(1)
    assert sum(ns for _, ns in figures.parts) == pytest.approx(figures.total.mean_ns)


@given(st.lists(request_paths(), max_size=12))
def test_whatever_a_spool_holds_adds_up(paths: list[RequestPath]) -> None:
    figures = build(paths, NOW_NS + S)
    assert figures.total.requests == len(paths)
    total_ns = sum(path.timing.total_ns for path in paths)
    assert sum(tier.mean_ns for tier in figures.tiers) * len(paths) == pytest.approx(total_ns)


def test_a_worker_is_busy_from_accept_to_closed() -> None:
    # Each has the worker for 17 ms, and each of the two workers every other request.
    paths = [make_path(20 * MS, at_ns=i * 20 * MS, number=i) for i in range(500)]
    figures = build(paths, NOW_NS + 10 * S)
    assert [(worker.number, worker.host) for worker in figures.workers] == [("1", "web1"), ("2", "web1")]
    for worker in figures.workers:
        assert worker.busy_share == pytest.approx(17 / 40, rel=0.01)
        assert (worker.queue_ns, worker.gil_ns) == (2 * MS, MS)


def test_of_a_long_request_only_what_lies_in_the_window_counts() -> None:
    figures = build([make_path(30 * S)], NOW_NS + 30 * S, 5)
    assert figures.workers[0].busy_share == pytest.approx(1, abs=0.001)


def test_the_slowest_requests_are_named_and_their_longest_segment() -> None:
    paths = make_shop_paths(1_000)
    figures = build(paths, NOW_NS + 5 * S)
    expected = sorted(paths, key=lambda path: -path.timing.total_ns)[:10]
    assert [path.trace_id for path in figures.slowest[:10]] == [path.trace_id for path in expected]
    assert figures.slowest[0].timing.longest == ("mysql.query", 54 * MS)


def test_routes_have_their_errors_and_their_share_of_the_time() -> None:
    figures = build(make_shop_paths(1_000), NOW_NS + 5 * S)
    routes = {route.route: route for route in figures.routes}
    assert (routes["POST /orders"].requests, routes["POST /orders"].errors) == (10, 1)
    assert sum(route.share for route in figures.routes) == pytest.approx(1)
    assert figures.total.errors == 1


def test_history_has_each_second_s_mean() -> None:
    window = LiveWindow()
    window.extend(
        [make_path(20 * MS, at_ns=S), make_path(40 * MS, at_ns=3 * S, query_ns=20 * MS)], NOW_NS + 5 * S
    )
    tiers = {tier.name: tier.history_ns for tier in window.build(NOW_NS + 5 * S, 10, history=5).tiers}
    assert tiers["mysql"] == (None, 0, None, 20 * MS, None)


def test_what_is_older_than_a_minute_is_forgotten() -> None:
    window = LiveWindow()
    for minute in range(20):
        now_ns = NOW_NS + minute * 60 * S
        window.extend([make_path(at_ns=minute * 60 * S - 20 * MS, number=minute)], now_ns)
        assert len(window._seconds) <= 2
    assert window.build(now_ns, KEPT_S).total.requests == 1


def test_without_requests_there_are_no_figures() -> None:
    figures = build([], NOW_NS)
    assert (figures.total.requests, figures.tiers, figures.workers, figures.newest_ns) == (0, (), (), None)
    old = build([make_path()], NOW_NS + 3_600 * S)
    assert (old.total.requests, old.newest_ns) == (0, NOW_NS + 12 * MS)


def test_requests_of_nginx_alone_have_no_worker() -> None:
    figures = build([RequestPath(None, None, make_nginx_record())], NOW_NS + S)
    assert ([tier.name for tier in figures.tiers], figures.workers) == (["nginx"], ())
