"""The keep policy: errors and slow paths always, a steady few of the rest, in bounded memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.collect.keep import GENERATION, MIN_PATHS, SECOND_NS, Keeper, RecentLatencies, is_error
from reqpath.path import RequestPath
from reqpath.record import AppSpan, Attempt
from tests.factories import make_nginx_record, make_path, make_worker_record

MS = 1_000_000


def change_line(path: RequestPath, **changes: Any) -> RequestPath:
    """Return the path with another line of nginx's."""
    assert path.nginx is not None
    return RequestPath(path.worker, path.info, msgspec.structs.replace(path.nginx, **changes))


def warm_up(keeper: Keeper, count: int = MIN_PATHS, **overrides: Any) -> None:
    """Show the keeper paths of 10 to 14 ms, in the second before `NOW_NS`."""
    for number in range(count):
        keeper.decide(make_path(10 * MS + number % 5 * MS, at_ns=-SECOND_NS, **overrides))


@pytest.mark.parametrize(
    "path",
    [
        make_path(status=500),
        make_path(exception=("ValueError", "no", "")),
        make_path(span_status=("ERROR", None)),
        change_line(make_path(), status=499),
        change_line(make_path(), status=502),
        # nginx went on to a second upstream, which answered.
        change_line(make_path(), attempts=[Attempt("unix:/a", 502), Attempt("unix:/b", 200)]),
        RequestPath(None, None, make_nginx_record(status=504)),
        RequestPath(make_worker_record(status=503), None, None),
    ],
)
def test_an_error_is_kept(path: RequestPath) -> None:
    assert Keeper(per_second=0).decide(path) == "error"


@pytest.mark.parametrize(
    "path",
    [
        make_path(status=404),
        make_path(status=None),
        make_path(span_status=("OK", None)),
        RequestPath(None, None, make_nginx_record(status=None)),
    ],
)
def test_what_is_no_error_and_nothing_else_is_not_kept(path: RequestPath) -> None:
    assert Keeper(per_second=0).decide(path) is None


@pytest.mark.parametrize(
    "path", [make_path(app_samples=True), make_path(app_span=AppSpan("ab" * 16, "cd" * 8, 0))]
)
def test_a_path_is_kept_whose_spans_the_apps_own_sdk_exports(path: RequestPath) -> None:
    assert Keeper(per_second=0).decide(path) == "app"


def test_a_path_beyond_the_absolute_bound_is_kept() -> None:
    keeper = Keeper(per_second=0, slower_ns=20 * MS)
    assert [keeper.decide(make_path(total)) for total in (20 * MS, 20 * MS + 1)] == [None, "slow"]


def test_a_path_is_slow_for_its_own_route_only() -> None:
    keeper = Keeper(per_second=0)
    warm_up(keeper)
    warm_up(keeper, route="/export")
    for number in range(GENERATION):
        keeper.decide(make_path(300 * MS + number * MS // 2, route="/export"))
    assert keeper.decide(make_path(50 * MS)) == "route_slow"
    assert keeper.decide(make_path(50 * MS, route="/export")) is None


def test_a_route_has_no_quantile_of_a_few_paths() -> None:
    keeper = Keeper(per_second=0)
    warm_up(keeper, MIN_PATHS - 1)
    assert keeper.decide(make_path(50 * MS)) is None


def test_a_route_that_has_become_slow_is_kept_for_a_while_only() -> None:
    keeper = Keeper(per_second=0)
    warm_up(keeper, 4 * GENERATION)
    kept = [keeper.decide(make_path(50 * MS)) for _ in range(3 * GENERATION)]
    assert kept[0] == "route_slow"
    assert kept.count("route_slow") <= GENERATION // 4
    assert kept[-1] is None


def test_a_few_of_each_route_and_second_are_kept() -> None:
    keeper = Keeper(per_second=2)
    kept = [
        keeper.decide(make_path(at_ns=second * SECOND_NS + number * MS, route=route))
        for second in range(3)
        for number in range(10)
        for route in ("/a", "/b")
    ]
    assert Counter(kept) == {"steady": 2 * 3 * 2, None: 48}


def test_a_path_that_comes_late_takes_no_room_of_its_own() -> None:
    keeper = Keeper(per_second=1)
    times = (0, 5, 1, 2, 3, 4, 5)
    kept = [keeper.decide(make_path(at_ns=second * SECOND_NS)) for second in times]
    assert kept == ["steady", "steady", None, None, None, None, None]


def test_a_trusted_caller_that_samples_is_honoured() -> None:
    keeper = Keeper(per_second=0)
    sampled = change_line(make_path(), parent_id="00f067aa0ba902b7")
    assert keeper.decide(sampled) == "parent"
    assert keeper.decide(change_line(sampled, sampled=False)) is None


def test_without_nginx_the_caller_is_the_parent() -> None:
    keeper = Keeper(per_second=0)
    assert keeper.decide(RequestPath(make_worker_record(), None, None)) == "parent"
    assert keeper.decide(RequestPath(make_worker_record(parent_id=""), None, None)) is None
    assert keeper.decide(RequestPath(make_worker_record(sampled=False), None, None)) is None


def test_nginxs_own_span_is_no_caller_where_its_line_is_missing() -> None:
    path = make_path()
    assert Keeper(per_second=0).decide(RequestPath(path.worker, path.info, None)) is None


def test_everything_is_kept_with_the_reason_that_it_has() -> None:
    keeper = Keeper(everything=True, per_second=1)
    paths = [make_path(), make_path(), make_path(status=500), make_path(2 * SECOND_NS)]
    assert [keeper.decide(path) for path in paths] == ["steady", "all", "error", "slow"]
    assert keeper.counts == {"steady": 1, "all": 1, "error": 1, "slow": 1}


def test_of_many_routes_the_one_unused_longest_is_forgotten() -> None:
    keeper = Keeper(per_second=1, max_routes=2)
    routes = ["/a", "/b", "/a", "/c", "/a", "/b"]
    assert [keeper.decide(make_path(route=route)) for route in routes] == [
        "steady",
        "steady",
        None,
        "steady",
        None,
        "steady",
    ]
    assert keeper.routes == 2


def test_the_routes_of_two_services_are_two() -> None:
    keeper = Keeper(per_second=1)
    shop = make_path()
    assert shop.info is not None
    other = RequestPath(shop.worker, msgspec.structs.replace(shop.info, service_name="other"), shop.nginx)
    assert [keeper.decide(shop), keeper.decide(other), keeper.decide(shop)] == ["steady", "steady", None]


@st.composite
def streams(draw: st.DrawFn) -> list[RequestPath]:
    """Paths of a few routes, in any order of time."""
    return [
        make_path(
            draw(st.integers(6 * MS, 3 * SECOND_NS)),
            at_ns=draw(st.integers(0, 4 * SECOND_NS)),
            route=f"/{draw(st.integers(0, 5))}",
            status=draw(st.sampled_from([200, 200, 404, 499, 500])),
        )
        for _ in range(draw(st.integers(0, 40)))
    ]


@given(streams(), st.integers(0, 3), st.integers(1, 4), st.booleans())
def test_the_bounds_hold_whatever_comes(
    paths: list[RequestPath], per_second: int, max_routes: int, everything: bool
) -> None:
    keeper = Keeper(everything=everything, per_second=per_second, max_routes=max_routes)
    reasons = [keeper.decide(path) for path in paths]
    assert keeper.routes <= max_routes
    assert keeper.counts == Counter(reasons)
    for path, reason in zip(paths, reasons, strict=True):
        assert (reason == "error") == is_error(path)
        assert reason is not None or (not everything and path.timing.total_ns <= SECOND_NS)
    if max_routes >= 6:
        steady = Counter(
            path.route for path, reason in zip(paths, reasons, strict=True) if reason == "steady"
        )
        assert all(count <= per_second * 8 for count in steady.values())


@given(st.lists(st.integers(0, 1 << 45), min_size=MIN_PATHS, max_size=MIN_PATHS))
def test_of_the_values_seen_at_most_a_hundredth_is_above_the_bound(values: list[int]) -> None:
    latencies = RecentLatencies()
    for value in values:
        latencies.add(value)
    bound_ns = latencies.bound_ns
    assert bound_ns is not None
    above = [value for value in values if value > bound_ns]
    assert len(above) <= MIN_PATHS // 100
    # And the bound is no looser than its buckets: the next value down is within a sixteenth of it.
    assert max(value for value in values if value <= bound_ns) * 17 >= bound_ns * 16 - 17


def test_the_latencies_take_bounded_memory() -> None:
    latencies = RecentLatencies()
    for exponent in range(3 * GENERATION):
        latencies.add(1 << (exponent % 60))
        latencies.add((1 << (exponent % 60)) * 3 // 2)
    assert len(latencies._older) + len(latencies._younger) <= 2 * GENERATION
