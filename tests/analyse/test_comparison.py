"""Two sets of requests: what differs, where, and what can't be said."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqpath.analyse.comparison import SideBuilder, build_comparison
from reqpath.analyse.differences import Comparison, Part
from reqpath.analyse.slices import LEAST_REQUESTS
from reqpath.path import RequestPath
from reqpath.record import NginxRecord, WorkerRecord
from tests.analyse.comparisons import compare, make_traffic
from tests.factories import make_nginx_record, make_path, make_worker_record, make_writer_info
from tests.strategies import request_paths


def part_of(comparison: Comparison, name: str) -> Part:
    return next(part for part in comparison.parts if part.name == name)


def told(comparison: Comparison) -> set[str]:
    return {part.name for part in comparison.parts if part.differs}


def worker_of(path: RequestPath) -> WorkerRecord:
    assert path.worker is not None
    return path.worker


def line_of(path: RequestPath) -> NginxRecord:
    assert path.nginx is not None
    return path.nginx


@settings(max_examples=60)
@given(st.lists(request_paths(), max_size=12), st.lists(request_paths(), max_size=12))
def test_parts_add_up_to_the_total_whatever_the_requests_are(
    first: list[RequestPath], second: list[RequestPath]
) -> None:
    comparison = compare(first, second)
    total, parts = comparison.total, comparison.parts
    # Exactly, in whole nanoseconds, on each side.
    assert sum(part.first_sum_ns for part in parts) == total.first_sum_ns == comparison.first.total_ns
    assert sum(part.second_sum_ns for part in parts) == total.second_sum_ns == comparison.second.total_ns
    for side, paths in ((comparison.first, first), (comparison.second, second)):
        assert side.requests + side.left_out + side.broken == len(paths)
    if not (comparison.first.requests and comparison.second.requests):
        assert comparison.outcome == "undecided"
        assert comparison.routes == ()
        return
    exact = Fraction(total.second_sum_ns, comparison.second.requests) - Fraction(
        total.first_sum_ns, comparison.first.requests
    )
    assert total.difference.value_ns == pytest.approx(float(exact), rel=1e-9, abs=1e-3)
    assert sum(part.difference.value_ns for part in parts) == pytest.approx(float(exact), rel=1e-9, abs=1e-3)
    for part in (*parts, total):
        assert part.within.value_ns + part.mix.value_ns == pytest.approx(
            part.difference.value_ns, rel=1e-9, abs=1e-3
        )
    routes = comparison.routes
    assert math.fsum(route.within_ns for route in routes) == pytest.approx(
        total.within.value_ns, rel=1e-9, abs=1e-3
    )
    assert math.fsum(route.mix_ns for route in routes) == pytest.approx(
        total.mix.value_ns, rel=1e-9, abs=1e-3
    )
    assert sum(route.first_requests for route in routes) == comparison.first.requests
    assert sum(route.second_sum_ns for route in routes) == total.second_sum_ns
    for route in routes:
        if route.parts:
            assert route.difference is not None
            whole = sum(part.difference.value_ns for part in route.parts)
            assert whole == pytest.approx(route.difference.value_ns, rel=1e-9, abs=1e-3)


@settings(max_examples=30)
@given(st.lists(request_paths(), min_size=1, max_size=40))
def test_a_side_against_itself_has_no_difference(paths: list[RequestPath]) -> None:
    comparison = compare(paths, paths)
    assert comparison.outcome != "different"
    assert comparison.total.difference.value_ns == 0
    assert not told(comparison)
    assert comparison.changed == ()


def test_traffic_against_itself_has_none_and_says_how_much_it_would_see() -> None:
    paths = make_traffic(1)
    comparison = compare(paths, paths)
    assert (comparison.outcome, comparison.total.difference.value_ns) == ("none", 0.0)
    bound_ns = comparison.total.difference.bound_ns
    assert bound_ns is not None
    assert 0 < bound_ns < 3_000_000


def test_like_traffic_is_rarely_told_apart() -> None:
    found = [compare(make_traffic(seed), make_traffic(seed + 1)) for seed in range(0, 40, 2)]
    assert sum(comparison.outcome == "different" for comparison in found) <= 3
    assert sum(bool(told(comparison)) for comparison in found) <= 3


def test_a_slower_query_is_found_in_its_segments() -> None:
    comparison = compare(make_traffic(1, slow_share=0.0), make_traffic(2, slow_share=0.0, query_ns=4_000_000))
    difference = comparison.total.difference
    assert comparison.outcome == "different"
    assert comparison.total.differs
    assert told(comparison) == {"mysql.query", "mysql.fetch"}
    assert difference.low_ns is not None
    assert difference.high_ns is not None
    assert difference.low_ns < 2_000_000 < difference.high_ns
    assert part_of(comparison, "mysql.query").difference.value_ns == pytest.approx(1_800_000, rel=0.05)
    route = comparison.routes[0]
    assert (route.route, route.differs) == ("GET /items/<int:id>", True)
    assert {part.name for part in route.parts if part.differs} == {"mysql.query", "mysql.fetch"}


def test_more_requests_of_a_slow_route_are_a_mix_of_routes() -> None:
    comparison = compare(make_traffic(1, slow_share=0.1), make_traffic(2, slow_share=0.3))
    total = comparison.total
    assert comparison.outcome == "different"
    assert total.mix.excludes_zero
    assert not total.within.excludes_zero
    assert total.mix.value_ns == pytest.approx(0.2 * 30_000_000, rel=0.3)
    assert abs(total.within.value_ns) < 200_000
    assert not any(route.differs for route in comparison.routes)


def test_a_route_that_one_side_lacks_is_mix() -> None:
    comparison = compare(make_traffic(1, slow_share=0.0), make_traffic(2, slow_share=0.3))
    orders = next(route for route in comparison.routes if route.route == "POST /orders")
    assert (orders.first_requests, orders.difference, orders.parts) == (0, None, ())
    assert orders.within_ns == 0
    assert comparison.total.mix.value_ns > 5_000_000
    assert not comparison.total.within.excludes_zero


def test_requests_too_few_or_too_close_give_no_verdict() -> None:
    few = compare(make_traffic(1, LEAST_REQUESTS - 1), make_traffic(2))
    assert few.outcome == "undecided"
    assert few.reason == "A has 29 requests to compare, and at least 30 are needed"
    assert few.total.difference.low_ns is None
    enough = make_traffic(2)
    burst = [
        make_path(12_000_000, at_ns=(number < 6) * number * 10_000_000_000, number=number)
        for number in range(600)
    ]
    close = compare(enough, burst)
    assert close.outcome == "undecided"
    assert close.reason.startswith(
        "the requests of B lie in too little of its time: its 24 slices are worth 1 "
    )


def test_stamps_of_unlike_resolution_are_told_and_hide_what_they_could_make() -> None:
    coarse = make_traffic(2, slow_share=0.0, resolution_ns=1_000_000)
    for path in coarse:
        line_of(path).end_ns += 600_000
    comparison = compare(make_traffic(1, slow_share=0.0), coarse)
    assert comparison.outcome == "none"
    assert told(comparison) == set()
    sending = part_of(comparison, "nginx.send")
    assert (sending.difference.excludes_zero, sending.floor_ns) == (True, 1_000_000)
    assert [(each.what, each.first, each.second) for each in comparison.changed] == [
        ("nginx's stamps are good to", "1 µs", "1 ms")
    ]
    coarse = make_traffic(2, slow_share=0.0, resolution_ns=1_000_000)
    for path in coarse:
        line_of(path).end_ns += 2_600_000
    assert told(compare(make_traffic(1, slow_share=0.0), coarse)) == {"nginx.send"}


def test_without_nginx_on_one_side_both_are_compared_from_the_accept() -> None:
    bare = make_traffic(2, slow_share=0.0)
    for path in bare:
        worker_of(path).nginx_start_ns = worker_of(path).nginx_pass_ns = None
    bare = [RequestPath(path.worker, path.info, None) for path in bare]
    comparison = compare(make_traffic(1, slow_share=0.0), bare)
    assert (comparison.start, comparison.end) == ("accept", "closed")
    # The two sides are alike but for what one does not know.
    assert comparison.outcome == "none"
    assert comparison.first.latency.mean_ns == pytest.approx(comparison.second.latency.mean_ns, rel=0.01)
    assert {(each.name, each.outside, each.stamps) for each in comparison.unknown} == {
        ("nginx.receive", True, ("nginx_start", "nginx_pass")),
        ("queue", True, ("nginx_pass",)),
        ("nginx.send", True, ("nginx_end",)),
    }
    assert comparison.first.resolution_ns == 1_000


def test_a_stamp_that_one_side_lacks_puts_its_segments_into_both_residuals() -> None:
    blind = make_traffic(2, slow_share=0.0)
    for path in blind:
        worker_of(path).accept_ns = None
    comparison = compare(make_traffic(1, slow_share=0.0), blind)
    assert (comparison.start, comparison.end) == ("nginx_start", "nginx_end")
    assert {(each.name, each.first, each.second, each.outside) for each in comparison.unknown} == {
        ("queue", 0, 600, False),
        ("uwsgi.read", 0, 600, False),
    }
    residual = part_of(comparison, "residual")
    assert residual.first_ns == residual.second_ns == 2_500_000
    assert comparison.outcome == "none"
    assert not {"queue", "uwsgi.read"} & {part.name for part in comparison.parts}


def test_where_the_accept_is_unknown_too_only_the_apps_time_is_compared() -> None:
    first, second = make_traffic(1, slow_share=0.0), make_traffic(2, slow_share=0.0)
    for path in first:
        worker_of(path).accept_ns = None
    for path in second:
        worker_of(path).nginx_start_ns = worker_of(path).nginx_pass_ns = None
        line_of(path).start_ns = line_of(path).pass_ns = None
    comparison = compare(first, second)
    assert comparison.start == "app_start"
    names = {part.name for part in comparison.parts}
    assert not names & {"nginx.receive", "queue", "uwsgi.read", "uwsgi.gil"}
    assert comparison.outcome == "none"


def test_a_few_requests_without_the_stamps_of_the_others_are_left_out() -> None:
    paths = make_traffic(1)
    paths[7] = RequestPath(paths[7].worker, paths[7].info, None)
    comparison = compare(paths, make_traffic(2))
    assert (comparison.first.requests, comparison.first.left_out) == (599, 1)
    assert (comparison.start, comparison.end) == ("nginx_start", "nginx_end")


def test_times_that_no_request_takes_are_left_out() -> None:
    broken = make_path(12_000_000, number=9_999)
    line_of(broken).end_ns += 3 * 86_400_000_000_000
    comparison = compare([*make_traffic(1), broken], make_traffic(2))
    assert (comparison.first.requests, comparison.first.broken) == (600, 1)


def test_requests_that_nginx_answers_alone_are_a_route_of_their_own() -> None:
    refused = [
        RequestPath(
            None,
            None,
            make_nginx_record(
                trace_id=f"{number:032x}",
                start_ns=worker_of(path).nginx_start_ns,
                end_ns=line_of(path).end_ns,
                status=502,
                resolution_ns=1_000,
            ),
        )
        for number, path in enumerate(make_traffic(3)[::5])
    ]
    comparison = compare(make_traffic(1), [*make_traffic(2), *refused])
    assert "GET (nginx alone)" in {route.route for route in comparison.routes}
    assert part_of(comparison, "nginx.local").differs
    errors = next(each for each in comparison.changed if each.what == "errors")
    assert (errors.first, errors.second) == ("0.0 %", "16.7 %")


def test_what_else_differs_is_listed() -> None:
    first = make_traffic(1)
    second = make_traffic(2, 1_200, transport="tcp")
    for number, path in enumerate(second):
        path.info = make_writer_info(
            writer_id=f"{number % 2:016x}", threads=4, processes=1, host="web2", concurrency="threads"
        )
        shift_ns = number * 10_000_000
        worker, line = worker_of(path), line_of(path)
        for name in ("nginx_start_ns", "nginx_pass_ns", "accept_ns", "parsed_ns", "app_start_ns"):
            setattr(worker, name, getattr(worker, name) - shift_ns)
        line.end_ns -= shift_ns
    comparison = compare(first, second)
    assert [(each.what, each.first, each.second) for each in comparison.changed] == [
        ("nginx to uWSGI", "unix", "tcp"),
        ("workers", "2 processes of 1 thread", "1 process of 4 threads"),
        ("host", "web1", "web2"),
        ("requests a second", "50", "100"),
    ]


def test_percentiles_are_of_the_nearest_rank() -> None:
    paths = [make_path(10_000_000 + number * 1_000, number=number) for number in range(200)]
    latency = compare(paths, paths).first.latency
    assert (latency.p50_ns, latency.p90_ns, latency.p99_ns, latency.max_ns) == (
        10_099_000,
        10_179_000,
        10_197_000,
        10_199_000,
    )


def test_a_side_without_requests_is_told() -> None:
    comparison = compare([], make_traffic(1))
    assert (comparison.outcome, comparison.first.requests) == ("undecided", 0)
    assert comparison.reason.startswith("A has 0 requests")
    both = build_comparison(SideBuilder("a"), SideBuilder("b"))
    assert (both.parts[0].name, both.routes) == ("residual", ())


def test_more_routes_than_are_told_apart_are_one() -> None:
    builders = SideBuilder("a"), SideBuilder("b")
    for builder in builders:
        for number in range(2_100):
            worker = make_worker_record(route=f"/{number}", trace_id=f"{number:032x}", parent_id="")
            builder.add(RequestPath(worker, make_writer_info(), None))
    routes = build_comparison(*builders).routes
    assert len(routes) == 2_001
    assert sum(route.first_requests for route in routes if route.route == "(others)") == 100
