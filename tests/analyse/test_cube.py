"""The sums by time, latency and attribute add up to the breakdown's own figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.analyse.breakdown import build_breakdown
from reqpath.analyse.cube import MAX_COLUMNS, MAX_ROWS, MAX_SAMPLES, MAX_VALUES, Cube, CubeBuilder
from reqpath.analyse.figures import Breakdown
from reqpath.path import RequestPath
from reqpath.render.page_report import render_report_page
from reqpath.tiers import TIERS
from tests.factories import NOW_NS, make_nginx_record, make_path, make_shop_paths, make_worker_record


def build(paths: list[RequestPath]) -> tuple[Breakdown, Cube]:
    builder = CubeBuilder()
    breakdown = build_breakdown(builder.watch(paths))
    return breakdown, builder.build(breakdown)


def check_sums(breakdown: Breakdown, cube: Cube) -> None:
    """Check that what the cells hold is what the breakdown has, to the nanosecond."""
    whole, cells = breakdown.whole, cube.cells
    assert sum(cells.requests) == whole.requests
    assert sum(cells.errors) == whole.errors
    assert sum(cells.total_ns) / whole.requests == whole.total.mean_ns
    assert sum(cells.residual_ns) / whole.requests == whole.residual.mean_ns
    for segment in whole.segments:
        if segment.mean_ns:
            assert sum(cells.segments_ns[segment.name]) / segment.known == segment.mean_ns
        else:
            assert segment.name not in cells.segments_ns
    for i in range(len(cells.requests)):
        parts = sum(column[i] for column in cells.segments_ns.values())
        assert parts + cells.residual_ns[i] == cells.total_ns[i]


def test_the_cells_add_up_to_the_breakdown() -> None:
    check_sums(*build(make_shop_paths()))


@given(
    st.lists(
        st.tuples(
            st.integers(5_000_000, 10**12), st.integers(0, 10**13), st.sampled_from([200, 404, 500, None])
        ),
        min_size=1,
        max_size=60,
    )
)
def test_any_requests_add_up(requests: list[tuple[int, int, int | None]]) -> None:
    paths = [
        make_path(total_ns, at_ns=at_ns, number=number, status=status)
        for number, (total_ns, at_ns, status) in enumerate(requests)
    ]
    breakdown, cube = build(paths)
    check_sums(breakdown, cube)
    assert cube.grid.columns <= MAX_COLUMNS
    assert cube.grid.rows <= MAX_ROWS
    assert sum(each.requests for each in cube.slices) == len(paths)
    for pairs in (cube.routes, *cube.attributes.values()):
        assert sum(pairs.requests) == len(paths)


def test_each_request_is_in_the_row_and_column_of_its_latency_and_start() -> None:
    paths = [make_path(7_000_000), make_path(700_000_000, at_ns=60_000_000_000, number=1)]
    _, cube = build(paths)
    grid, cells = cube.grid, cube.cells
    found = {}
    for column, row, total_ns in zip(cells.column, cells.row, cells.total_ns, strict=True):
        assert grid.edges_ns[row] <= total_ns < grid.edges_ns[row + 1]
        found[total_ns] = grid.first_ns + column * grid.width_ns
    assert found[7_000_000] <= NOW_NS < found[7_000_000] + grid.width_ns
    assert found[700_000_000] <= NOW_NS + 60_000_000_000 < found[700_000_000] + grid.width_ns


def test_routes_have_their_figures_and_their_tiers() -> None:
    breakdown, cube = build(make_shop_paths())
    for number, group in enumerate(breakdown.routes):
        pairs = [i for i, value in enumerate(cube.routes.value) if cube.routes.values[value] == number]
        sums = {name: sum(column[i] for i in pairs) for name, column in cube.routes.sums.items()}
        assert sum(cube.routes.requests[i] for i in pairs) == group.requests
        assert sums["total_ns"] == round(group.total.mean_ns * group.requests)
        assert sums["errors"] == group.errors
        assert sum(sums.get(tier, 0) for tier in (*TIERS, "residual")) == sums["total_ns"]


def test_statements_have_their_operations_and_the_requests_that_have_them() -> None:
    breakdown, cube = build(make_shop_paths())
    pairs = cube.statements
    for number, figures in enumerate(breakdown.statements):
        own = [i for i, value in enumerate(pairs.value) if pairs.values[value] == number]
        assert sum(pairs.sums["count"][i] for i in own) == figures.count
        assert sum(pairs.sums["time_ns"][i] for i in own) == figures.total_ns
        assert sum(pairs.sums["errors"][i] for i in own) == figures.errors
        # One query a request, in the shop.
        assert sum(pairs.requests[i] for i in own) == figures.count


def test_what_the_slowest_have_is_counted() -> None:
    _, cube = build(make_shop_paths())
    named = dict(zip(cube.attributes["status"].values, cube.attributes["status"].slowest, strict=True))
    assert named == {"200": 0, "201": 9, "500": 1, None: 0}


def test_an_attribute_that_all_requests_share_is_left_out() -> None:
    _, cube = build([make_path(number=number * 2) for number in range(5)])
    assert cube.attributes == {}


def test_values_beyond_the_bound_are_one() -> None:
    paths = [make_path(number=n, route=f"/{n}", status=200 + n) for n in range(3 * MAX_VALUES)]
    _, cube = build(paths)
    for pairs in (cube.routes, cube.attributes["status"]):
        assert len(pairs.values) == MAX_VALUES + 1
        assert pairs.values[-1] is None
        assert sum(pairs.requests) == len(paths)


def test_the_slowest_requests_are_kept_whole_and_some_of_each_part_of_the_grid() -> None:
    paths = make_shop_paths(5_000)
    _, cube = build(paths)
    totals = sorted((path.timing.total_ns for path in paths), reverse=True)
    kept = [path.timing.total_ns for path in cube.samples]
    assert kept[:20] == totals[:20]
    assert kept == sorted(kept, reverse=True)
    assert len(kept) == len(set(map(id, cube.samples))) == MAX_SAMPLES
    for path, cell in zip(cube.samples, cube.sample_cells, strict=True):
        row = cube.cells.row[cell]
        assert cube.grid.edges_ns[row] <= path.timing.total_ns < cube.grid.edges_ns[row + 1]


@pytest.mark.parametrize("odd", ["start", "total"])
def test_one_request_with_a_wrong_clock_does_not_squeeze_the_others(odd: str) -> None:
    paths = [make_path(number=number, at_ns=number * 10_000_000) for number in range(2_000)]
    if odd == "start":
        paths.append(make_path(at_ns=-(10**17), number=2_000))
    else:
        paths.append(make_path(10**13, number=2_000))
    breakdown, cube = build(paths)
    check_sums(breakdown, cube)
    assert cube.grid.columns > 20


@pytest.mark.parametrize("instant_ns", [0, 1, 2**62, 2**63, 2**64 - 1, -(2**63)])
@pytest.mark.parametrize("first", [True, False])
def test_instants_out_of_any_calendar_harm_nothing(instant_ns: int, first: bool) -> None:
    # The rest that a broken record can hold, too.
    odd = RequestPath(make_worker_record(app_start_ns=instant_ns, status=2**63, core=-(2**63)), None, None)
    usual = make_shop_paths(300)
    breakdown, cube = build([odd, *usual] if first else [*usual, odd])
    check_sums(breakdown, cube)
    assert cube.grid.columns > 20
    assert render_report_page(breakdown, cube)


def test_requests_that_only_one_side_knows_are_in_it() -> None:
    paths = [
        RequestPath(None, None, make_nginx_record(status=413)),
        RequestPath(make_worker_record(), None, None),
    ]
    breakdown, cube = build(paths)
    check_sums(breakdown, cube)
    assert sum(cube.cells.requests) == 2


@pytest.mark.parametrize("count", [1, 2, 6, 30, 400, 3_000])
def test_slices_follow_on_each_other_and_have_requests(count: int) -> None:
    breakdown, cube = build(make_shop_paths(count))
    slices = cube.slices
    assert [slices[0].low, *(each.high for each in slices)] == [*(each.low for each in slices), 100.0]
    assert slices[0].low == 0.0
    assert min(each.requests for each in slices) > 0
    assert sum(each.requests for each in slices) == count
    mean_ns = sum(each.requests * each.total_ns for each in slices) / count
    assert mean_ns == pytest.approx(breakdown.whole.total.mean_ns)
    for each in slices:
        assert sum(each.segments_ns.values()) + each.residual_ns == pytest.approx(each.total_ns)


def test_over_many_days_an_hour_is_that_of_each_day() -> None:
    hour_ns = 3_600_000_000_000
    _, cube = build([make_path(number=number, at_ns=number * hour_ns) for number in range(100)])
    hours = cube.attributes["hour"]
    assert [int(value) // hour_ns for value in hours.values if value is not None] == list(range(24))
    assert sum(hours.requests) == 100
