"""The tiers: every request's time is split so that the parts add up, and nothing is counted twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqpath.path import RequestPath
from reqpath.record import Attempt, NginxRecord, WorkerRecord
from reqpath.tiers import (
    INDEX,
    NAMES,
    SEGMENTS,
    STAMPS,
    TIERS,
    WORKER_SEGMENTS,
    Timing,
    _measure_any,
    _measure_usual,
    measure,
)
from tests.factories import NOW_NS, make_nginx_record, make_worker_record

US = 1_000
MS = 1_000_000


def known(timing: Timing) -> dict[str, int]:
    """Return the known segments that took any time, by name."""
    return {name: value for name, value in zip(NAMES, timing.segments, strict=True) if value}


def unknown(timing: Timing) -> set[str]:
    return {name for name, value in zip(NAMES, timing.segments, strict=True) if value is None}


def make_pair(**shifts_ns: int) -> tuple[WorkerRecord, NginxRecord]:
    """Return a request with every stamp good to a microsecond; `shifts_ns` move single stamps.

    1 ms receive, 0.5 queue, 0.2 read, 0.3 GIL, 9 worker (of that 1 send), 1 send.
    """
    stamps = {
        "start": NOW_NS - 2 * MS,
        "pass_": NOW_NS - MS,
        "accept": NOW_NS - 500 * US,
        "parsed": NOW_NS - 300 * US,
        "end": NOW_NS + 10 * MS,
    }
    for name, shift_ns in shifts_ns.items():
        stamps[name] += shift_ns
    exclusive_ns: list[int | None] = [None] * len(WORKER_SEGMENTS)
    exclusive_ns[WORKER_SEGMENTS.index("flask.view")] = 8 * MS
    exclusive_ns[WORKER_SEGMENTS.index("uwsgi.send")] = 1 * MS
    worker = make_worker_record(
        exclusive_ns=exclusive_ns,
        nginx_start_ns=stamps["start"],
        nginx_pass_ns=stamps["pass_"],
        nginx_resolution_ns=US,
        accept_ns=stamps["accept"],
        parsed_ns=stamps["parsed"],
        response_start_offset_ns=7 * MS,
    )
    return worker, make_nginx_record(start_ns=stamps["start"], end_ns=stamps["end"], resolution_ns=US)


def test_the_segments_of_the_worker_are_in_the_order_of_its_records() -> None:
    assert WORKER_SEGMENTS == (
        "flask.middleware",
        "flask.framework",
        "flask.view",
        "flask.template",
        "wsgi.app",
        "mysql.connect",
        "mysql.query",
        "mysql.fetch",
        "mysql.commit",
        "uwsgi.send",
    )


def test_every_segment_says_what_it_is_and_what_it_leaves_out() -> None:
    for segment in SEGMENTS:
        assert segment.meaning
        assert segment.excludes
        assert segment.tier in TIERS
    assert {name for names, _ in STAMPS.values() for name in names} <= set(NAMES)


def test_stamps_to_the_microsecond_give_every_segment() -> None:
    timing = measure(*make_pair())
    assert known(timing) == {
        "nginx.receive": MS,
        "queue": 500 * US,
        "uwsgi.read": 200 * US,
        "uwsgi.gil": 300 * US,
        "flask.view": 8 * MS,
        "uwsgi.send": MS,
        "nginx.send": MS,
    }
    assert timing.start_ns == NOW_NS - 2 * MS
    assert timing.total_ns == 12 * MS
    assert timing.residual_ns == 0
    assert timing.resolution_ns == US
    assert (timing.clamped, timing.skewed, timing.missing, timing.abandoned) == ((), (), (), False)


def test_stock_stamps_may_come_out_negative_within_a_millisecond() -> None:
    """Stock nginx cuts its stamps down to a millisecond, here by 0.9 and 0.8 ms."""
    worker, nginx = make_pair(end=-MS - 800 * US)
    worker.nginx_resolution_ns = nginx.resolution_ns = MS
    timing = measure(worker, nginx)
    assert timing.segments[INDEX["nginx.send"]] == 0
    assert timing.clamped == ("nginx.send",)
    assert timing.skewed == ()
    assert timing.residual_ns == -800 * US
    assert timing.resolution_ns == MS


def test_the_same_is_skew_where_the_stamps_are_good_to_a_microsecond() -> None:
    worker, nginx = make_pair(end=-4 * MS)  # before the response had begun
    timing = measure(worker, nginx)
    assert timing.skewed == ("nginx.send",)
    assert timing.clamped == ()
    assert timing.segments[INDEX["nginx.send"]] is None


def test_without_nginx_the_request_begins_when_it_was_accepted() -> None:
    worker, _ = make_pair()
    worker.nginx_start_ns = worker.nginx_pass_ns = worker.nginx_resolution_ns = None
    timing = measure(worker, None)
    assert timing.start_ns == worker.accept_ns
    assert timing.total_ns == 9 * MS + 500 * US
    assert timing.residual_ns == 0
    assert timing.missing == ("nginx_start", "nginx_pass", "nginx_end")
    assert {"nginx.receive", "queue", "nginx.send", "nginx.upstream"} <= unknown(timing)
    assert timing.resolution_ns == US


def test_without_uwsgis_stamps_what_they_bound_is_unknown_and_in_the_residual() -> None:
    worker, nginx = make_pair()
    worker.accept_ns = worker.parsed_ns = None
    timing = measure(worker, nginx)
    assert {"queue", "uwsgi.read", "uwsgi.gil"} <= unknown(timing)
    assert timing.residual_ns == MS
    assert timing.missing == ("accept", "parsed")


@pytest.mark.parametrize(
    ("stamp", "lost"), [("accept_ns", {"queue", "uwsgi.read"}), ("parsed_ns", {"uwsgi.read", "uwsgi.gil"})]
)
def test_a_missing_stamp_makes_both_its_neighbours_unknown(stamp: str, lost: set[str]) -> None:
    worker, nginx = make_pair()
    whole = measure(worker, nginx)
    setattr(worker, stamp, None)
    timing = measure(worker, nginx)
    assert unknown(timing) - unknown(whole) == lost
    assert timing.missing == (stamp.removesuffix("_ns"),)
    assert timing.residual_ns == sum(whole.segments[INDEX[name]] or 0 for name in lost)


def test_without_a_line_yet_the_total_runs_to_the_workers_end() -> None:
    worker, _ = make_pair()
    timing = measure(worker, None)
    assert timing.total_ns == 11 * MS
    assert timing.residual_ns == 0
    assert timing.missing == ("nginx_end",)


def test_a_header_without_a_start_begins_the_request_when_the_proxy_passed_it_on() -> None:
    worker, _ = make_pair()
    worker.nginx_start_ns = None
    timing = measure(worker, None)
    assert timing.start_ns == worker.nginx_pass_ns
    assert timing.segments[INDEX["queue"]] == 500 * US
    assert timing.residual_ns == 0


def test_the_line_has_the_start_where_the_worker_has_none() -> None:
    worker, nginx = make_pair()
    worker.nginx_start_ns = worker.nginx_pass_ns = worker.nginx_resolution_ns = None
    timing = measure(worker, nginx)
    assert timing.missing == ("nginx_pass",)
    assert timing.total_ns == 12 * MS
    assert timing.residual_ns == MS + 500 * US


def test_a_response_whose_end_was_not_seen_leaves_sending_in_the_residual() -> None:
    worker, nginx = make_pair()
    worker.closed_offset_ns = None
    worker.exclusive_ns[-1] = None
    timing = measure(worker, nginx)
    assert {"uwsgi.send", "nginx.send"} <= unknown(timing)
    assert timing.missing == ("closed",)
    assert timing.residual_ns == 2 * MS


def test_a_request_that_no_worker_and_no_line_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a worker's record or nginx's line"):
        measure(None, None)


# nginx alone


def test_what_nginx_answers_by_itself_is_its_own() -> None:
    timing = measure(None, make_nginx_record(status=413))
    assert known(timing) == {"nginx.local": 12 * MS}
    assert (timing.residual_ns, timing.missing) == (0, ())


def test_a_cache_hit_is_nginxs_own() -> None:
    timing = measure(None, make_nginx_record(cache_status="HIT"))
    assert known(timing) == {"nginx.local": 12 * MS}


def test_a_failed_upstream_is_an_attempt_without_a_record() -> None:
    nginx = make_nginx_record(
        status=502, pass_ns=NOW_NS - MS, attempts=[Attempt("unix:/a", 502, response_ns=3 * MS)]
    )
    timing = measure(None, nginx)
    assert known(timing) == {"nginx.receive": MS, "nginx.upstream": 3 * MS}
    assert timing.missing == ("app_start",)
    assert timing.residual_ns == 8 * MS


def test_attempts_that_are_rounded_up_past_the_total_are_cut_and_flagged() -> None:
    nginx = make_nginx_record(
        start_ns=NOW_NS, end_ns=NOW_NS + 2 * MS, attempts=[Attempt("a", response_ns=2 * MS)] * 2
    )
    timing = measure(None, nginx)
    assert timing.segments[INDEX["nginx.upstream"]] == 2 * MS
    assert timing.clamped == ("nginx.upstream",)
    assert timing.residual_ns == 0


def test_attempts_far_longer_than_the_request_are_skew() -> None:
    nginx = make_nginx_record(attempts=[Attempt("a", response_ns=5_000 * MS)])
    timing = measure(None, nginx)
    assert timing.segments[INDEX["nginx.upstream"]] is None
    assert timing.skewed == ("nginx.upstream",)
    assert timing.residual_ns == timing.total_ns == 12 * MS


def test_a_line_without_a_start_has_unknown_times_not_zero_ones() -> None:
    timing = measure(None, make_nginx_record(start_ns=None))
    assert unknown(timing) == set(NAMES)
    assert (timing.total_ns, timing.missing) == (0, ("nginx_start",))


def test_a_line_that_ends_before_it_starts_is_skew() -> None:
    timing = measure(None, make_nginx_record(start_ns=NOW_NS + 5_000 * MS))
    assert unknown(timing) == set(NAMES)
    assert (timing.total_ns, timing.skewed) == (0, ("nginx.local",))


# retried and abandoned


def test_a_retried_upstream_lies_before_the_queue() -> None:
    worker, nginx = make_pair(start=-100 * MS, pass_=-100 * MS)
    nginx.attempts = [Attempt("a", 502, response_ns=100 * MS), Attempt("b", 200, response_ns=10 * MS)]
    timing = measure(worker, nginx)
    assert timing.segments[INDEX["nginx.upstream"]] == 100 * MS
    assert timing.segments[INDEX["queue"]] == 500 * US
    assert timing.residual_ns == 0
    assert timing.resolution_ns == MS, "nginx's times of attempts are good to a millisecond only"


def test_the_rounding_of_an_attempts_time_is_no_skew() -> None:
    worker, nginx = make_pair(start=-100 * MS, pass_=-100 * MS)
    nginx.attempts = [Attempt("a", 502, response_ns=101 * MS), Attempt("b", 200)]
    timing = measure(worker, nginx)
    assert timing.skewed == ()
    assert timing.clamped == ("queue",)
    assert timing.residual_ns == -500 * US


def test_an_attempt_after_the_recorded_one_is_not_counted_twice() -> None:
    """The worker answered 503, nginx went on to another upstream, and that refused."""
    worker, nginx = make_pair(end=5 * MS)
    nginx.attempts = [Attempt("a", 503, response_ns=10 * MS), Attempt("b", 502, response_ns=5 * MS)]
    timing = measure(worker, nginx)
    assert timing.segments[INDEX["nginx.upstream"]] == 5 * MS
    assert timing.segments[INDEX["queue"]] == 500 * US
    assert timing.segments[INDEX["nginx.send"]] == MS
    assert timing.residual_ns == 0


def test_a_later_attempt_takes_no_more_than_there_was_after_the_worker() -> None:
    """Nginx rounds each attempt's time up to a millisecond, here from 1 to 2."""
    worker, nginx = make_pair()
    nginx.attempts = [Attempt("a", 503, response_ns=10 * MS), Attempt("b", 502, response_ns=2 * MS)]
    timing = measure(worker, nginx)
    assert timing.segments[INDEX["nginx.upstream"]] == MS
    assert timing.segments[INDEX["nginx.send"]] == 0
    assert timing.residual_ns == 0


@pytest.mark.parametrize("status", [499, 504])
def test_a_request_that_was_given_up_runs_to_the_workers_end(status: int) -> None:
    worker, nginx = make_pair(end=-8 * MS)
    nginx.status = status
    timing = measure(worker, nginx)
    assert timing.abandoned
    assert timing.total_ns == 11 * MS
    assert timing.segments[INDEX["nginx.send"]] is None
    assert (timing.residual_ns, timing.skewed) == (0, ())


def test_a_request_given_up_whose_end_was_not_seen_is_abandoned_too() -> None:
    worker, nginx = make_pair(end=-8 * MS)
    nginx.status = 499
    worker.closed_offset_ns = None
    timing = measure(worker, nginx)
    assert (timing.abandoned, timing.skewed, timing.total_ns) == (True, (), 11 * MS)


def test_a_worker_that_nginx_gave_up_for_another_is_abandoned() -> None:
    """The first worker took too long; the second upstream answered before the first was done."""
    worker, nginx = make_pair(end=-5 * MS)
    nginx.attempts = [Attempt("a", 504, response_ns=5 * MS), Attempt("b", 200, response_ns=MS)]
    timing = measure(worker, nginx)
    assert (timing.abandoned, timing.skewed) == (True, ())
    assert timing.residual_ns == 0


def test_what_the_worker_does_after_nginx_had_it_all_is_not_what_the_client_waited() -> None:
    """With a Content-Length nginx ends when it has the bytes, while the worker waits for the GIL to close."""
    worker, nginx = make_pair(end=-MS - 700 * US)
    worker.closing_offset_ns = 9 * MS
    timing = measure(worker, nginx)
    assert timing.segments[INDEX["uwsgi.send"]] == 300 * US
    assert timing.segments[INDEX["nginx.send"]] == 0
    assert timing.total_ns == nginx.end_ns - timing.start_ns
    assert (timing.residual_ns, timing.skewed, timing.abandoned) == (0, (), False)


def test_an_app_that_works_after_its_response_keeps_that_time_and_is_flagged() -> None:
    """A `call_on_close` of 5 ms: the sending ended at 4 ms, nginx at 4.5."""
    worker, nginx = make_pair(end=-5 * MS - 500 * US)
    worker.response_start_offset_ns = 2 * MS
    worker.closing_offset_ns = 4 * MS
    timing = measure(worker, nginx)
    assert timing.abandoned
    assert timing.total_ns == 11 * MS
    assert known(timing)["uwsgi.send"] == MS
    assert (timing.residual_ns, timing.skewed) == (0, ())


def test_a_client_that_leaves_in_the_middle_of_the_response_is_abandonment() -> None:
    """Nginx logs the status that it had sent, 200."""
    worker, nginx = make_pair(end=-MS - 2 * MS)
    timing = measure(worker, nginx)
    assert (timing.abandoned, timing.skewed) == (True, ())
    assert timing.total_ns == 11 * MS
    assert timing.residual_ns == 0


# skew


@pytest.mark.parametrize("offset_ns", [-3 * MS, 3 * MS, 40 * MS])
def test_clocks_that_disagree_leave_the_total_to_nginx_and_count_nothing_twice(offset_ns: int) -> None:
    worker, nginx = make_pair(start=offset_ns, pass_=offset_ns, end=offset_ns)
    worker.response_start_offset_ns = 8 * MS
    timing = measure(worker, nginx)
    if offset_ns < 0:  # nginx's end comes before the response began
        worker.response_start_offset_ns = 9 * MS
        timing = measure(worker, nginx)
    assert timing.skewed in (("queue",), ("nginx.send",))
    assert {"queue", "nginx.send"} <= unknown(timing)
    assert timing.total_ns == 12 * MS
    assert timing.residual_ns == MS + 500 * US, "the queue and nginx's sending, which can't be told apart"


def test_clocks_that_disagree_without_a_line_leave_the_workers_own_time() -> None:
    worker, _ = make_pair(start=40 * MS, pass_=40 * MS)
    timing = measure(worker, None)
    assert timing.skewed == ("queue",)
    assert {"queue", "nginx.receive"} <= unknown(timing)
    assert timing.start_ns == worker.accept_ns
    assert timing.total_ns == 9 * MS + 500 * US
    assert timing.residual_ns == 0


def test_an_accept_after_the_app_began_bounds_nothing() -> None:
    worker, nginx = make_pair(accept=5 * MS)
    timing = measure(worker, nginx)
    assert timing.skewed == ("uwsgi.read",)
    assert {"queue", "uwsgi.read"} <= unknown(timing)
    assert timing.total_ns == 12 * MS
    assert timing.residual_ns == 700 * US


def test_a_parsed_after_the_app_began_bounds_nothing() -> None:
    worker, nginx = make_pair(parsed=5 * MS)
    timing = measure(worker, nginx)
    assert timing.skewed == ("uwsgi.gil",)
    assert {"uwsgi.read", "uwsgi.gil"} <= unknown(timing)
    assert known(timing)["queue"] == 500 * US
    assert timing.residual_ns == 500 * US


def test_a_microsecond_between_uwsgis_stamps_is_rounding() -> None:
    timing = measure(*make_pair(parsed=301 * US))
    assert (timing.clamped, timing.skewed) == (("uwsgi.gil",), ())
    assert timing.segments[INDEX["uwsgi.gil"]] == 0


def test_a_request_shorter_for_nginx_than_for_the_worker_is_the_workers_alone() -> None:
    worker, nginx = make_pair(start=7 * MS, pass_=7 * MS, end=-6 * MS)
    nginx.attempts = [Attempt("a", response_ns=4 * MS), Attempt("b")]
    worker.response_start_offset_ns = 9 * MS
    timing = measure(worker, nginx)
    assert timing.skewed
    assert unknown(timing) >= {"nginx.receive", "nginx.upstream", "queue", "nginx.send"}
    assert timing.total_ns == 9 * MS + 500 * US
    assert timing.residual_ns == 0


# all there is

_offsets = st.integers(-50 * MS, 50 * MS)
_maybe_instant = st.none() | _offsets.map(lambda offset: NOW_NS + offset)
_duration = st.integers(0, 30 * MS)
_resolution = st.sampled_from([US, MS, 1000 * MS])


@st.composite
def worker_records(draw: st.DrawFn) -> WorkerRecord:
    exclusive_ns = draw(
        st.lists(st.none() | _duration, min_size=len(WORKER_SEGMENTS), max_size=len(WORKER_SEGMENTS))
    )
    total_ns = sum(filter(None, exclusive_ns))
    closed = draw(st.booleans())
    start_ns, pass_ns = draw(_maybe_instant), draw(_maybe_instant)
    return make_worker_record(
        exclusive_ns=exclusive_ns,
        closed_offset_ns=total_ns if closed else None,
        closing_offset_ns=draw(st.none() | st.integers(0, total_ns)) if closed else None,
        response_start_offset_ns=draw(st.none() | st.integers(0, total_ns)),
        nginx_start_ns=start_ns,
        nginx_pass_ns=pass_ns,
        nginx_resolution_ns=None if start_ns is None and pass_ns is None else draw(_resolution),
        accept_ns=draw(_maybe_instant),
        parsed_ns=draw(_maybe_instant),
    )


@st.composite
def nginx_records(draw: st.DrawFn) -> NginxRecord:
    attempts = draw(st.lists(st.builds(Attempt, st.just("a"), response_ns=st.none() | _duration), max_size=3))
    return make_nginx_record(
        start_ns=draw(_maybe_instant),
        pass_ns=draw(_maybe_instant),
        end_ns=NOW_NS + draw(_offsets),
        resolution_ns=draw(_resolution),
        status=draw(st.sampled_from([200, 413, 499, 502, 504, None])),
        attempts=attempts,
    )


def slack_ns(timing: Timing) -> int:
    """Return how far rounding may push the parts past the total: two clocks' resolutions per difference."""
    return 8 * timing.resolution_ns + 4 * 4 * MS


def check(worker: WorkerRecord | None, nginx: NginxRecord | None) -> Timing:
    timing = measure(worker, nginx)
    assert len(timing.segments) == len(SEGMENTS)
    assert sum(filter(None, timing.segments)) + timing.residual_ns == timing.total_ns
    assert all(value is None or value >= 0 for value in timing.segments)
    assert timing.total_ns >= 0
    assert timing.residual_ns >= -slack_ns(timing), "something is counted twice"
    for name in timing.skewed:
        assert timing.segments[INDEX[name]] is None
    return timing


@given(worker=worker_records(), nginx=st.none() | nginx_records())
@settings(max_examples=400)
def test_known_segments_and_the_residual_are_the_total(
    worker: WorkerRecord, nginx: NginxRecord | None
) -> None:
    timing = check(worker, nginx)
    for name, value in zip(WORKER_SEGMENTS[:-1], worker.exclusive_ns, strict=False):
        assert timing.segments[INDEX[name]] == value, "the worker's own figures are never touched"
    for stamp in timing.missing:
        if stamp in ("accept", "parsed", "nginx_pass", "nginx_end"):
            for name in STAMPS[stamp][0]:
                assert timing.segments[INDEX[name]] is None, "unknown is never zero"
    assert timing.segments[INDEX["nginx.local"]] is None
    assert RequestPath(worker, None, nginx).extent == (timing.start_ns, timing.total_ns)


@given(
    durations=st.lists(st.integers(-3 * US, 5 * MS), min_size=6, max_size=6),
    exclusive=st.lists(st.none() | _duration, min_size=10, max_size=10),
    resolution_ns=_resolution,
)
@settings(max_examples=300)
def test_the_short_way_of_the_usual_request_comes_to_the_same(
    durations: list[int], exclusive: list[int | None], resolution_ns: int
) -> None:
    receive_ns, queue_ns, read_ns, gil_ns, closed_ns, send_ns = durations
    parsed_ns = NOW_NS - gil_ns
    accept_ns = parsed_ns - read_ns
    pass_ns = accept_ns - queue_ns
    start_ns = pass_ns - receive_ns
    closed_ns = max(closed_ns, sum(filter(None, exclusive)))
    worker = make_worker_record(
        exclusive_ns=exclusive,
        nginx_start_ns=start_ns,
        nginx_pass_ns=pass_ns,
        accept_ns=accept_ns,
        parsed_ns=parsed_ns,
        closed_offset_ns=closed_ns,
    )
    end_ns = NOW_NS + closed_ns + send_ns
    nginx = make_nginx_record(start_ns=start_ns, end_ns=end_ns, resolution_ns=resolution_ns)
    usual = _measure_usual(worker, nginx)
    in_order = min(receive_ns, queue_ns, read_ns, gil_ns) >= 0
    assert (usual is not None) == (in_order and send_ns >= -resolution_ns - US and end_ns >= start_ns)
    if usual is not None:
        assert usual == _measure_any(worker, nginx)
        assert RequestPath(worker, None, nginx).extent == (usual.start_ns, usual.total_ns)


@given(nginx=nginx_records())
@settings(max_examples=200)
def test_nginx_alone_adds_up_too(nginx: NginxRecord) -> None:
    timing = check(None, nginx)
    assert all(timing.segments[INDEX[name]] is None for name in WORKER_SEGMENTS)


@given(
    durations=st.lists(_duration, min_size=6, max_size=6),
    exclusive=st.lists(_duration, min_size=10, max_size=10),
)
@settings(max_examples=200)
def test_time_that_goes_by_in_order_is_attributed_to_the_last_nanosecond(
    durations: list[int], exclusive: list[int]
) -> None:
    receive_ns, queue_ns, read_ns, gil_ns, send_ns, _ = (value // US * US for value in durations)
    parsed_ns = NOW_NS - gil_ns
    accept_ns = parsed_ns - read_ns
    pass_ns = accept_ns - queue_ns
    start_ns = pass_ns - receive_ns
    worker = make_worker_record(
        exclusive_ns=[*exclusive],
        closed_offset_ns=sum(exclusive),
        nginx_start_ns=start_ns,
        nginx_pass_ns=pass_ns,
        nginx_resolution_ns=US,
        accept_ns=accept_ns,
        parsed_ns=parsed_ns,
    )
    nginx = make_nginx_record(end_ns=NOW_NS + sum(exclusive) + send_ns, resolution_ns=US)
    timing = check(worker, nginx)
    expected: list[Any] = [receive_ns, None, 0, queue_ns, read_ns, gil_ns, *exclusive, send_ns]
    assert list(timing.segments) == expected
    assert timing.residual_ns == 0
    assert (timing.clamped, timing.skewed, timing.missing, timing.abandoned) == ((), (), (), False)
