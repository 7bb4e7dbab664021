"""What a client waited is split without a rest: into its own lag, the network, and the recorded path."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.bench.account import Joined, account, sum_up
from reqpath.bench.generator import BROKEN, DROPPED, TIMED_OUT, Outcome, Row, Traffic
from reqpath.bench.histogram import decode_histogram
from reqpath.bench.result import CLIENT_SEGMENTS
from reqpath.path import RequestPath
from tests.factories import make_path, make_worker_record
from tests.strategies import request_paths

START_NS = 1_800_000_000_000_000_000
SECOND_NS = 1_000_000_000


def make_outcome(
    rows: list[tuple[int, int, int, int]], *, seconds_s: float = 3.0, in_flight: tuple[float, ...] = ()
) -> Outcome:
    """Return an outcome of (planned offset, lag, latency, status) for each request."""
    planned, lags, latencies, statuses = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Outcome(
        traffic=Traffic(("127.0.0.1", 80), "/", 10.0, seconds_s, 1),
        start_ns=START_NS,
        ids=b"".join(number.to_bytes(16, "big") + b"\0" * 8 for number in range(1, len(rows) + 1)),
        planned=array("q", planned).tobytes(),
        lags=array("q", lags).tobytes(),
        latencies=array("q", latencies).tobytes(),
        statuses=array("h", statuses).tobytes(),
        in_flight=in_flight,
        cpu_ns=0,
        elapsed_ns=round(seconds_s * SECOND_NS),
        realtime=False,
    )


rows = st.builds(
    Row,
    trace_id=st.just("1" * 32),
    planned_ns=st.just(START_NS),
    lag_ns=st.integers(0, SECOND_NS),
    latency_ns=st.integers(0, 60 * SECOND_NS),
    status=st.just(200),
)


@given(st.lists(st.builds(Joined, rows, request_paths()), max_size=4))
def test_the_segments_add_up_to_what_the_clients_waited(joined: list[Joined]) -> None:
    whole = sum_up(joined)
    assert whole.client_ns == sum(one.row.latency_ns for one in joined) == sum(whole.segments_ns.values())
    assert set(whole.segments_ns) <= set(CLIENT_SEGMENTS)
    assert all(0 <= count <= whole.requests for count in whole.unknown.values())


def test_every_arrival_after_the_warm_up_is_answered_failed_or_dropped() -> None:
    outcome = make_outcome(
        [
            (SECOND_NS - 1, 0, 500_000, 200),
            (SECOND_NS, 10_000, 1_000_000, 200),
            (2 * SECOND_NS, 30_000, 3_000_000, 304),
            (2 * SECOND_NS, 0, 10_000_000_000, TIMED_OUT),
            (2 * SECOND_NS, 0, 40_000, BROKEN),
            (2 * SECOND_NS, 0, 50_000, 502),
            (2 * SECOND_NS, 0, 50_000, 502),
            (2 * SECOND_NS, 0, 0, DROPPED),
        ]
    )
    found = account(outcome, {}, warm_up_ns=SECOND_NS)
    assert found.warm_up_requests == 1
    assert (found.planned, found.answered, found.dropped) == (7, 2, 1)
    assert found.failures == {"timeout": 1, "connection broken": 1, "status 502": 2}
    assert found.planned == found.answered + sum(found.failures.values()) + found.dropped
    assert decode_histogram(found.latency).get_total_count() == 2
    # Of all that were sent.
    assert decode_histogram(found.lag).get_total_count() == 6
    assert (found.start_ns, found.end_ns) == (START_NS + SECOND_NS, START_NS + 12 * SECOND_NS)


def test_the_network_is_what_neither_the_lag_nor_the_path_has() -> None:
    outcome = make_outcome([(0, 10_000, 12_100_000, 200)])
    found = account(outcome, {outcome.trace_id(0): make_path(12_000_000)}, warm_up_ns=0)
    assert found.whole.requests == 1
    assert found.whole.segments_ns["client.lag"] == 10_000
    assert found.whole.segments_ns["client.network"] == 90_000


def test_what_was_answered_and_not_recorded_is_in_no_tier() -> None:
    outcome = make_outcome([(0, 0, 1_000_000, 200), (1, 0, 5_000_000, 200)])
    found = account(outcome, {outcome.trace_id(0): make_path()}, warm_up_ns=0)
    assert (found.answered, found.whole.requests, found.whole.client_ns) == (2, 1, 1_000_000)


def test_the_slowest_hundredth_is_rounded_up() -> None:
    outcome = make_outcome([(number, 0, 1_000_000 + number, 200) for number in range(101)])
    recorded = {outcome.trace_id(number): make_path() for number in range(101)}
    found = account(outcome, recorded, warm_up_ns=0)
    assert (found.slowest.requests, found.slowest.client_ns) == (2, 2_000_199)


def test_a_missing_stamp_makes_its_segments_unknown() -> None:
    path = RequestPath(
        make_worker_record(nginx_start_ns=START_NS, nginx_pass_ns=None, accept_ns=None, parsed_ns=None),
        None,
        None,
    )
    whole = sum_up([Joined(Row("1" * 32, START_NS, 0, 9_000_000, 200), path)])
    assert whole.unknown.keys() >= {"queue", "uwsgi.read", "uwsgi.gil", "nginx.send"}
    assert "mysql.query" not in whole.unknown


def test_only_slices_after_the_warm_up_count() -> None:
    slices = (*[9.0] * 10, *[2.0] * 20, 7.0)
    found = account(make_outcome([(0, 0, 1, 200)], in_flight=slices), {}, warm_up_ns=SECOND_NS)
    assert found.in_flight == pytest.approx(2.0)
    assert len(found.in_flight_slices) == 20


def test_littles_law_is_of_what_was_sent_after_the_warm_up() -> None:
    outcome = make_outcome(
        [(0, 0, SECOND_NS, 200), (SECOND_NS, 100, 1_000_100, 200), (SECOND_NS, 0, 3_000_000, 500)],
        seconds_s=2.0,
    )
    found = account(outcome, {}, warm_up_ns=SECOND_NS)
    assert found.in_flight_expected == pytest.approx(0.004)


def test_a_run_without_any_request_has_no_figures() -> None:
    found = account(make_outcome([]), {}, warm_up_ns=0)
    assert (found.planned, found.in_flight, found.in_flight_expected) == (0, None, None)
    assert found.slowest.requests == 0


def test_the_latency_is_told_for_each_tenth_of_the_measured_time() -> None:
    # A second of warm-up, then two; nothing is planned in the last but one tenth, and one request fails.
    rows = [(SECOND_NS + number * SECOND_NS // 5, 0, (number + 1) * 100_000, 200) for number in range(10)]
    rows[8] = (SECOND_NS - 1, 0, 7_000_000, 200)
    rows.append((SECOND_NS + 1, 0, 300_000, 200))
    rows.append((SECOND_NS + 2, 0, 9_000_000, 502))
    found = account(make_outcome(rows), {}, warm_up_ns=SECOND_NS)
    assert found.tenths_ns == (200_000, *(number * 100_000 for number in range(2, 9)), None, 1_000_000)
