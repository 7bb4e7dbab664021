"""The figures of a breakdown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.analyse.breakdown import MAX_ROUTES, BreakdownBuilder, build_breakdown
from reqpath.analyse.figures import Breakdown, SegmentFigures
from reqpath.analyse.operations import OTHERS
from reqpath.path import RequestPath
from reqpath.record import Operation
from reqpath.spool import SpoolLosses
from reqpath.tiers import INDEX, NAMES
from tests.factories import (
    make_nginx_record,
    make_path,
    make_shop_paths,
    make_worker_record,
    make_writer_info,
)


def segment(breakdown: Breakdown, name: str) -> SegmentFigures:
    return breakdown.whole.segments[INDEX[name]]


def rank(values: list[int], share: float) -> int:
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


def test_no_requests_are_a_breakdown_too() -> None:
    breakdown = build_breakdown([])
    assert breakdown.whole.requests == 0
    assert breakdown.rate_per_s is None
    assert (breakdown.routes, breakdown.statements, breakdown.slowest) == ((), (), ())


def test_one_request_is_its_own_median_and_slowest() -> None:
    whole = build_breakdown([make_path(20_000_000, query_ns=5_000_000)]).whole
    assert (whole.median.requests, whole.slowest.requests) == (1, 1)
    assert whole.total.p50_ns == whole.total.p99_ns == whole.total.max_ns == 20_000_000
    assert sum(segment.median_ns or 0 for segment in whole.segments) + whole.residual.median_ns == 20_000_000


@given(st.lists(st.integers(6_000_000, 5_000_000_000), min_size=1, max_size=150))
def test_percentiles_are_those_of_the_nearest_rank(totals: list[int]) -> None:
    total = build_breakdown(make_path(total, number=i) for i, total in enumerate(totals)).whole.total
    assert (total.p50_ns, total.p90_ns, total.p99_ns, total.max_ns) == (
        rank(totals, 0.5),
        rank(totals, 0.9),
        rank(totals, 0.99),
        max(totals),
    )
    assert total.mean_ns == pytest.approx(mean(totals))


@given(st.lists(st.sampled_from(["full", "worker", "nginx", "refused", "skewed"]), min_size=1, max_size=60))
def test_segments_and_residual_add_up_in_every_slice_whatever_is_missing(kinds: list[str]) -> None:
    paths = []
    for number, kind in enumerate(kinds):
        path = make_path(10_000_000 + number * 1_000_000, query_ns=1_000_000, number=number)
        if kind == "worker":
            path = RequestPath(path.worker, path.info, None)
        elif kind == "nginx":
            path = RequestPath(None, None, path.nginx)
        elif kind == "refused":
            path = RequestPath(None, None, make_nginx_record(status=413))
        elif kind == "skewed" and path.nginx is not None:
            path.nginx.end_ns -= 9_000_000
        paths.append(path)
    breakdown = build_breakdown(paths)
    for group in (breakdown.whole, *breakdown.routes):
        median = sum(figures.median_ns or 0 for figures in group.segments) + group.residual.median_ns
        slowest = sum(figures.slowest_ns or 0 for figures in group.segments) + group.residual.slowest_ns
        shares = sum(figures.share for figures in group.segments) + group.residual.share
        assert median == pytest.approx(group.median.mean_ns)
        assert slowest == pytest.approx(group.slowest.mean_ns)
        assert shares == pytest.approx(1)
        assert 0 <= group.attributed_share <= 1
    assert sum(group.requests for group in breakdown.routes) == breakdown.whole.requests == len(kinds)


def test_a_segment_is_averaged_over_the_requests_that_know_it() -> None:
    complete = make_path(20_000_000)
    alone = RequestPath(make_worker_record(), make_writer_info(), None)
    figures = segment(build_breakdown([complete, alone]), "queue")
    assert (figures.known, figures.mean_ns, figures.p50_ns) == (1, 2_000_000, 2_000_000)
    assert segment(build_breakdown([alone]), "queue").mean_ns is None


def test_missing_stamps_are_counted_by_name() -> None:
    alone = RequestPath(make_worker_record(), make_writer_info(), None)
    missing = build_breakdown([alone, alone, make_path()]).whole.missing_stamps
    assert missing == dict.fromkeys(("nginx_start", "nginx_pass", "accept", "parsed", "nginx_end"), 2)


def test_slices_are_of_neighbouring_totals() -> None:
    whole = build_breakdown(make_shop_paths(1_000)).whole
    assert (whole.median.requests, whole.slowest.requests) == (100, 10)
    assert whole.slowest.mean_ns == pytest.approx(84_920_000)
    query = whole.segments[INDEX["mysql.query"]]
    assert query.slowest_ns == pytest.approx(54_000_000)
    assert (query.slowest_route, query.slowest_route_share) == ("POST /orders", 1.0)


def test_routes_are_apart_and_the_one_with_the_most_time_is_first() -> None:
    breakdown = build_breakdown(make_shop_paths(300))
    assert [(group.route, group.requests) for group in breakdown.routes] == [
        ("GET /items/<int:id>", 198),
        ("GET /about", 99),
        ("POST /orders", 3),
    ]
    assert breakdown.routes[2].statuses == {201: 2, 500: 1}
    assert breakdown.routes[2].errors == breakdown.whole.errors == 1


def test_what_was_blocked_is_at_most_the_calls_and_at_least_something_else() -> None:
    path = make_path(14_500_000, query_ns=5_000_000)
    lens = build_breakdown([path]).whole.lens
    # 10 ms in the worker, 0.1 of it sending; the query waited 4.5, the fetch of 0.5 is the thread's own work.
    assert {part.name: part.mean_ns for part in lens.parts} == {
        "wall": 10_000_000,
        "cpu": 4_000_000,
        "run queue": 50_000,
        "blocked": 5_950_000,
        "calls": 4_600_000,
        "other": 1_350_000,
    }
    assert lens.known == 1


def test_the_tls_context_of_a_connect_is_no_wait() -> None:
    path = make_path(20_000_000)
    assert path.worker is not None
    path.worker.exclusive_ns[INDEX["mysql.connect"] - INDEX["flask.middleware"]] = 3_000_000
    path.worker.operations = [
        Operation("connect", 0, 3_000_000, phases=[("tls_context", 2_500_000), ("socket", 500_000)])
    ]
    lens = build_breakdown([make_path(), path]).whole.lens
    assert {part.name: part.slowest_ns for part in lens.parts}["calls"] == 600_000


def test_what_was_added_before_an_interrupt_can_be_built() -> None:
    path = make_path(20_000_000)
    assert path.worker is not None
    path.worker.operations = [Operation("connect", 0, 3_000_000, phases=[("tls_context", 2_500_000)])]

    def read() -> Iterator[RequestPath]:
        yield path
        raise KeyboardInterrupt

    builder = BreakdownBuilder()
    builder.extend([make_path()])
    before = builder.build().whole
    with pytest.raises(KeyboardInterrupt):
        builder.extend(read())
    whole = builder.build().whole
    assert whole.requests == 1
    assert (whole.total, whole.lens) == (before.total, before.lens)


def test_under_greenlets_there_is_no_lens() -> None:
    assert build_breakdown([make_path(cpu_ns=None, run_queue_ns=None)]).whole.lens.known == 0


def test_workers_are_busy_for_the_time_from_accept_to_closed() -> None:
    # Two workers in turn; each request is with its worker from 2.5 ms on and until 0.5 ms before its end.
    breakdown = build_breakdown([make_path(10_000_000, number=n, at_ns=n * 5_000_000) for n in range(100)])
    span_ns = 99 * 5_000_000 + 10_000_000
    assert [(worker.worker, worker.requests, worker.pids) for worker in breakdown.workers] == [
        (1, 50, (4711,)),
        (2, 50, (4712,)),
    ]
    assert breakdown.workers[0].busy_share == pytest.approx(50 * 7_000_000 / span_ns)


def test_a_worker_that_was_replaced_is_one_worker() -> None:
    old, new = make_path(number=0), make_path(number=2)
    new.info = make_writer_info(writer_id="b" * 16, worker=1, pid=5000)
    (worker,) = build_breakdown([old, new]).workers
    assert (worker.requests, worker.pids) == (2, (4711, 5000))


def test_statements_are_ranked_by_their_time_and_pings_are_none() -> None:
    path = make_path(90_000_000, query_ns=10_000_000)
    assert path.worker is not None
    path.worker.operations += [
        Operation("ping", 0, 50_000_000),
        Operation("commit", 0, 20_000_000, transport="tcp"),
        Operation(
            "query", 0, 1_000_000, statement="DELETE FROM t", error="OperationalError: 1205", transport="unix"
        ),
    ]
    breakdown = build_breakdown([path])
    assert [(each.kind, each.statement, each.total_ns, each.errors) for each in breakdown.statements] == [
        ("commit", None, 20_000_000, 0),
        ("query", "SELECT name FROM items WHERE id = ?", 10_000_000, 0),
        ("query", "DELETE FROM t", 1_000_000, 1),
    ]
    assert breakdown.whole.operations_mean == 3
    assert breakdown.database_transports == {"unix": 2, "tcp": 1}


def test_an_unbuffered_query_does_not_count_what_the_app_did_between_its_fetches() -> None:
    path = make_path()
    assert path.worker is not None
    path.worker.operations = [Operation("query", 0, 9_000_000, 1_000_000, "SELECT 1", fetch_ns=500_000)]
    assert build_breakdown([path]).statements[0].total_ns == 1_500_000


def test_routes_without_number_are_bounded() -> None:
    builder = BreakdownBuilder()
    builder.extend(make_path(route=f"/{number}", number=number) for number in range(MAX_ROUTES + 50))
    breakdown = builder.build()
    assert len(breakdown.routes) == MAX_ROUTES + 1
    assert {group.route: group.requests for group in breakdown.routes}[OTHERS] == 50


def test_methods_that_a_client_made_up_are_one() -> None:
    breakdown = build_breakdown(make_path(method=f"M{number}", number=number) for number in range(3))
    assert [(group.route, group.requests) for group in breakdown.routes] == [("_OTHER /items/<int:id>", 3)]


def test_a_breakdown_can_be_built_on_the_way() -> None:
    paths = make_shop_paths(120)
    builder = BreakdownBuilder()
    builder.extend(paths[:60])
    assert builder.build().whole.requests == 60
    builder.extend(paths[60:])
    assert builder.build() == build_breakdown(paths)


def test_the_slowest_requests_are_named_with_what_they_spent_the_most_in() -> None:
    builder = BreakdownBuilder(slowest=2)
    builder.extend(make_shop_paths(400))
    assert [(each.total_ns, each.route, each.longest) for each in builder.build().slowest] == [
        (83_420_000, "POST /orders", "mysql.query"),
        (82_420_000, "POST /orders", "mysql.query"),
    ]


def test_losses_are_handed_on() -> None:
    losses = SpoolLosses(lost_records=3)
    assert build_breakdown([], losses).losses.lost_records == 3


def test_segments_come_in_the_order_of_the_definition() -> None:
    assert [figures.name for figures in build_breakdown([make_path()]).whole.segments] == list(NAMES)


def test_rate_and_span_are_of_first_start_to_last_end() -> None:
    breakdown = build_breakdown([make_path(10_000_000, at_ns=n * 110_000_000, number=n) for n in range(10)])
    assert breakdown.span_ns == 1_000_000_000
    assert breakdown.rate_per_s == pytest.approx(10)
