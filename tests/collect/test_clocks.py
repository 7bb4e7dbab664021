"""The clocks of two hosts: bounded by causality, corrected only where they must differ."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqpath.collect.clocks import (
    MAX_HOSTS,
    SLOT_NS,
    WINDOW_NS,
    ClockOffset,
    ClockOffsets,
    bound_offset,
    is_one_host,
    shift_nginx,
)
from reqpath.path import RequestPath
from reqpath.record import Attempt
from reqpath.tiers import INDEX
from tests.factories import NOW_NS, make_nginx_record, make_path, make_worker_record, make_writer_info

US = 1_000
MS = 1_000_000
QUEUE = INDEX["queue"]
SEND = INDEX["nginx.send"]


class Trip(NamedTuple):
    """What truly happened to a request, each part in ns."""

    receive_ns: int
    queue_ns: int
    work_ns: int
    send_ns: int

    def build(
        self, ahead_ns: int, *, at_ns: int = 0, resolution_ns: int = US, host: str = "web1"
    ) -> RequestPath:
        """Return the path as it is recorded with a worker's clock that is `ahead_ns` of nginx's."""
        start_ns = NOW_NS + at_ns
        pass_ns = start_ns + self.receive_ns
        accept_ns = pass_ns + self.queue_ns
        answered_ns = accept_ns + self.work_ns
        end_ns = answered_ns + self.send_ns

        def stamp(instant_ns: int) -> int:
            return instant_ns // resolution_ns * resolution_ns

        worker = make_worker_record(
            nginx_start_ns=stamp(start_ns),
            nginx_pass_ns=stamp(pass_ns),
            nginx_resolution_ns=resolution_ns,
            accept_ns=(accept_ns + ahead_ns) // US * US,
            parsed_ns=None,
            app_start_ns=accept_ns + ahead_ns,
            response_start_offset_ns=self.work_ns,
            closed_offset_ns=self.work_ns,
            exclusive_ns=[None] * 10,
            transport="tcp",
        )
        nginx = make_nginx_record(
            start_ns=stamp(start_ns),
            pass_ns=stamp(pass_ns),
            end_ns=stamp(end_ns),
            resolution_ns=resolution_ns,
            attempts=[Attempt("10.0.0.5:3031", 200, 0, self.work_ns, self.work_ns)],
        )
        return RequestPath(worker, make_writer_info(host=host), nginx)


trips = st.builds(
    Trip,
    st.integers(0, 5 * MS),
    st.integers(0, 50 * MS),
    st.integers(0, 50 * MS),
    st.integers(0, 5 * MS),
)
offsets = st.integers(-10_000 * MS, 10_000 * MS) | st.integers(-2 * MS, 2 * MS)
QUICK = Trip(100 * US, 200 * US, 5 * MS, 300 * US)


@given(
    trips=st.lists(trips, min_size=1, max_size=8), ahead_ns=offsets, resolution_ns=st.sampled_from((US, MS))
)
@settings(max_examples=400)
def test_the_truth_is_always_within_the_bounds(trips: list[Trip], ahead_ns: int, resolution_ns: int) -> None:
    known = ClockOffsets()
    for number, trip in enumerate(trips):
        path = trip.build(ahead_ns, at_ns=number * 100 * MS, resolution_ns=resolution_ns)
        _, offset = known.correct(path)
        assert offset is not None
        assert offset.lower_ns is not None
        assert offset.upper_ns is not None
        assert offset.lower_ns <= ahead_ns <= offset.upper_ns
        assert offset.correction_ns == 0 or offset.lower_ns <= offset.correction_ns <= offset.upper_ns
    assert known.contradictions == 0


@given(trips=st.lists(trips, min_size=1, max_size=8), ahead_ns=offsets)
@settings(max_examples=400)
def test_a_corrected_path_is_in_the_order_of_causes(trips: list[Trip], ahead_ns: int) -> None:
    known = ClockOffsets()
    for number, trip in enumerate(trips):
        path, _ = known.correct(trip.build(ahead_ns, at_ns=number * 100 * MS))
        timing = path.timing
        assert not timing.skewed
        assert timing.segments[QUEUE] is not None
        assert timing.segments[SEND] is not None


def test_the_estimate_is_as_good_as_the_fastest_trip() -> None:
    known = ClockOffsets()
    for number, trip in enumerate((Trip(0, 40 * MS, MS, 9 * MS), QUICK, Trip(0, 3 * MS, MS, 70 * MS))):
        path, offset = known.correct(trip.build(2_000 * MS, at_ns=number * MS))
    assert offset is not None
    assert abs(offset.correction_ns - 2_000 * MS) < 300 * US
    assert path.timing.segments[QUEUE] == pytest.approx(3 * MS, abs=300 * US)


def test_clocks_that_may_be_the_same_are_left_alone() -> None:
    known = ClockOffsets()
    path = QUICK.build(100 * US)
    corrected, offset = known.correct(path)
    assert corrected is path
    assert offset is not None
    assert offset.correction_ns == 0


def test_only_nginxs_stamps_move() -> None:
    path = QUICK.build(50 * MS)
    corrected, offset = ClockOffsets().correct(path)
    assert offset is not None
    shift_ns = offset.correction_ns
    before, after = path.worker, corrected.worker
    assert before is not None
    assert after is not None
    assert (after.app_start_ns, after.accept_ns) == (before.app_start_ns, before.accept_ns)
    assert after.nginx_start_ns == (before.nginx_start_ns or 0) + shift_ns
    assert after.nginx_pass_ns == (before.nginx_pass_ns or 0) + shift_ns
    assert path.nginx is not None
    assert corrected.nginx is not None
    assert corrected.nginx.end_ns == path.nginx.end_ns + shift_ns
    assert corrected.nginx.start_ns == (path.nginx.start_ns or 0) + shift_ns
    assert path.timing.skewed, "the path that was handed in is as it was"


@pytest.mark.parametrize("address", ["unix:/run/uwsgi.sock", "127.0.0.1:3031", "[::1]:3031"])
def test_one_host_has_one_clock(address: str) -> None:
    path = QUICK.build(50 * MS)
    assert path.worker is not None
    assert path.nginx is not None
    path.worker.transport = "unix" if address.startswith("unix:") else "tcp"
    path.nginx.attempts[0].address = address
    assert is_one_host(path)
    corrected, offset = ClockOffsets().correct(path)
    assert corrected is path
    assert offset is None


def test_a_path_of_one_process_has_one_clock() -> None:
    for path in (
        RequestPath(make_worker_record(), make_writer_info(), None),
        RequestPath(None, None, make_nginx_record()),
    ):
        assert ClockOffsets().correct(path) == (path, None)


def test_stamps_without_nginxs_line_bound_the_offset_from_above() -> None:
    path = QUICK.build(-50 * MS)
    path.nginx = None
    corrected, offset = ClockOffsets().correct(path)
    assert offset == ClockOffset(None, -50 * MS + 200 * US + US)
    assert corrected.timing.segments[QUEUE] == 0


def test_an_answer_that_was_not_this_workers_bounds_nothing_from_below() -> None:
    """Where nginx gave up, the client left or another worker answered, it may have ended before."""
    for change in ({"status": 504}, {"header_ns": None}):
        path = QUICK.build(0)
        assert path.worker is not None
        assert path.nginx is not None
        for field, value in change.items():
            setattr(path.nginx.attempts[0], field, value)
        assert bound_offset(path.worker, path.nginx).lower_ns is None
    path = QUICK.build(0)
    assert path.worker is not None
    assert path.nginx is not None
    path.nginx.attempts.append(path.nginx.attempts[0])
    assert bound_offset(path.worker, path.nginx).lower_ns is None


def test_a_clock_that_was_set_is_learnt_anew() -> None:
    known = ClockOffsets()
    for number in range(5):
        known.correct(QUICK.build(10 * MS, at_ns=number * SLOT_NS))
    path, offset = known.correct(QUICK.build(-700 * MS, at_ns=6 * SLOT_NS))
    assert offset is not None
    assert abs(offset.correction_ns + 700 * MS) < MS
    assert not path.timing.skewed
    # Also within the slot in which it was set.
    path, offset = known.correct(QUICK.build(5 * MS, at_ns=6 * SLOT_NS + MS))
    assert offset is not None
    assert abs(offset.correction_ns - 5 * MS) < MS


def test_old_bounds_are_forgotten() -> None:
    """A clock that drifts, by more in the end than any one request could tell."""
    known = ClockOffsets()
    slow = Trip(0, 30 * MS, MS, 30 * MS)
    for number in range(100):
        at_ns = number * WINDOW_NS // 10
        _, offset = known.correct(slow.build(number * MS, at_ns=at_ns))
        assert offset is not None
        assert offset.lower_ns is not None
        assert offset.upper_ns is not None
        assert offset.lower_ns <= number * MS <= offset.upper_ns + 10 * MS


def test_paths_that_contradict_themselves_are_counted_and_left_alone() -> None:
    path = QUICK.build(0)
    assert path.nginx is not None
    path.nginx.end_ns -= 20 * MS
    known = ClockOffsets()
    assert known.correct(path) == (path, None)
    assert known.contradictions == 1


def test_each_host_has_its_own_clock_and_their_number_is_bounded() -> None:
    known = ClockOffsets()
    known.correct(QUICK.build(10 * MS, host="a"))
    known.correct(QUICK.build(-10 * MS, host="b"))
    found = dict(known)
    assert found["a"].correction_ns > 0 > found["b"].correction_ns
    for number in range(MAX_HOSTS):
        known.correct(QUICK.build(0, host=f"host {number}"))
    assert len(dict(known)) == MAX_HOSTS


def test_no_shift_is_the_path_itself() -> None:
    path = make_path()
    assert shift_nginx(path, 0) is path
