"""Each reason against a run is found where it is, and named in words; a good run has none."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.bench.histogram import encode_histogram, make_histogram
from reqpath.bench.observe import (
    Counters,
    count_shared_processors,
    judge_run,
    parse_drops,
    parse_listen_overflows,
    parse_ticks,
    read_counters,
    subtract,
)
from reqpath.bench.result import RunRecord, Slice

_REFUSAL = (
    "2026/01/01 00:00:00 [error] 7#7: *9 connect() to unix:/tmp/d/uwsgi.sock failed (11: Resource "
    "temporarily unavailable) while connecting to upstream, client: 127.0.0.1\n"
)
_NETSTAT = """\
TcpExt: SyncookiesSent ListenOverflows ListenDrops
TcpExt: 0 17 18
IpExt: InNoRoutes InTruncatedPkts
IpExt: 1 0
"""
_SS = """\
LISTEN 2      1      127.0.0.1:8080 0.0.0.0:*
\t skmem:(r0,rb131072,t0,tb16384,f0,w0,o0,bl0,d8)
LISTEN 0      80           *:3306         *:*   users:(("mariadbd",pid=7,fd=12))
\t skmem:(r0,rb131072,t0,tb16384,f0,w0,o0,bl0,d0)
LISTEN 0      1         [::]:8080      [::]:*     skmem:(r0,rb131072,t0,tb16384,f0,w0,o0,bl0,d7)
LISTEN 0      128    10.0.0.1%eth0:22   0.0.0.0:*
\t skmem:(r0,rb131072,t0,tb16384,f0,w0,o0,bl0,d1)
"""


def _encode(*values_ns: int) -> str:
    return encode_histogram(make_histogram(values_ns))


def _make_record(**changes: Any) -> RunRecord:
    whole = Slice(requests=1_000, client_ns=1, segments_ns={}, unknown={})
    values: dict[str, Any] = {
        "cell": "query/unix/unix/4x1/pooled",
        "twin": False,
        "block": 0,
        "order": 0,
        "seed": 1,
        "start_ns": 0,
        "end_ns": 10**10,
        "warm_up_requests": 0,
        "rate_per_s": 100.0,
        "planned": 1_000,
        "answered": 1_000,
        "failures": {},
        "dropped": 0,
        "latency": _encode(*[1_000_000] * 1_000),
        "lag": _encode(*[4_000] * 1_000),
        "whole": whole,
        "slowest": whole,
        "in_flight": 1.02,
        "in_flight_expected": 1.0,
        "listen_overflows": 0,
        "listen_queues": {"nginx": 0, "uwsgi": 0},
        "steal_share": 0.001,
        "cpu_share": 0.6,
        "generator_share": 0.02,
        "resolution_ns": 1_000,
    }
    return RunRecord(**values | changes)


def _judge(
    record: RunRecord,
    *,
    in_flight: tuple[float, ...] = (1.0,) * 90,
    shared_processors: int = 0,
    realtime: bool = True,
) -> RunRecord:
    return judge_run(record, in_flight=in_flight, shared_processors=shared_processors, realtime=realtime)


def test_a_good_run_has_nothing_against_it() -> None:
    record = _make_record()
    assert _judge(record) == record


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"lag": _encode(*[60_000] * 1_000)}, "generator lag", "60 µs, 6% of the median latency"),
        ({"steal_share": 0.05}, "steal", "took 5.0% of the processors' time"),
        ({"in_flight": 1.2}, "Little's law", "1.20 requests were under way"),
        ({"in_flight": 0.8}, "Little's law", "1.00, 20% off"),
        ({"failures": {"status 502": 30}}, "failures", "3.0% of the requests failed: status 502 (30)"),
        ({"latency": _encode(), "lag": _encode()}, "nothing answered", "no request was answered well"),
    ],
)
def test_what_makes_a_run_invalid_is_named_in_words(changes: dict[str, Any], name: str, words: str) -> None:
    judged = _judge(_make_record(**changes))
    assert [reason.name for reason in judged.invalid] == [name]
    assert words in judged.invalid[0].text
    assert not judged.is_valid
    assert not judged.saturated


def test_some_late_sends_are_no_reason() -> None:
    assert _judge(_make_record(lag=_encode(*[4_000] * 995, *[900_000] * 5))).is_valid


@pytest.mark.parametrize(
    ("changes", "in_flight", "words"),
    [
        ({"dropped": 12}, (1.0,) * 90, "12 arrivals (1.2%)"),
        (
            {"listen_overflows": 3, "listen_queues": {"nginx": 0, "uwsgi": 3}},
            (1.0,) * 90,
            "the listen queue of uwsgi was full 3 times",
        ),
        ({"cpu_share": 0.99}, (1.0,) * 90, "busy 99% of the time"),
        ({}, tuple(float(number) for number in range(90)), "grew from 14.5 to 74.5"),
    ],
)
def test_a_saturated_run_is_called_so(
    changes: dict[str, Any], in_flight: tuple[float, ...], words: str
) -> None:
    judged = _judge(_make_record(**changes), in_flight=in_flight)
    assert judged.saturated
    assert not judged.is_valid
    assert [reason.name for reason in judged.limits] == ["saturated"]
    assert words in judged.limits[0].text


def test_what_saturation_does_is_not_called_a_fault_too() -> None:
    judged = _judge(_make_record(dropped=300, failures={"status 502": 200}, in_flight=5.0))
    assert (judged.saturated, judged.invalid) == (True, ())


def test_limits_leave_a_run_valid() -> None:
    judged = _judge(_make_record(resolution_ns=1_000_000), shared_processors=2, realtime=False)
    assert judged.is_valid
    assert [reason.name for reason in judged.limits] == [
        "shared processors",
        "ordinary priority",
        "nginx's millisecond",
    ]


STEADY = (
    1_000_000,
    990_000,
    1_020_000,
    1_010_000,
    980_000,
    1_030_000,
    970_000,
    1_000_000,
    990_000,
    1_010_000,
)


@pytest.mark.parametrize("way", [1, -1])
def test_a_run_that_drifts_is_flagged_and_keeps_all_that_it_has(way: int) -> None:
    tenths = tuple(1_000_000 + way * number * 30_000 for number in range(10))
    record = _make_record(tenths_ns=tenths)
    judged = _judge(record)
    (reason,) = judged.limits
    assert reason.name == "drift"
    assert f"{'rose by 24%' if way > 0 else 'fell by 31%'} of its mean" in reason.text
    assert judged.is_valid
    assert msgspec.structs.replace(judged, limits=()) == record


@pytest.mark.parametrize(
    "tenths",
    [
        STEADY,
        # Steadily, but next to nothing.
        tuple(1_000_000 + number * 5_000 for number in range(10)),
        # Much, but not steadily: one part was slow.
        (*STEADY[:-1], 9_000_000),
        # Too few to say.
        (1_000_000, 2_000_000, 3_000_000, *[None] * 7),
        (1_000_000,) * 10,
        (None,) * 10,
        (),
    ],
)
def test_what_only_scatters_does_not_drift(tenths: tuple[int | None, ...]) -> None:
    assert _judge(_make_record(tenths_ns=tenths)).limits == ()


def test_few_runs_without_a_drift_are_flagged() -> None:
    chance = random.Random(1)
    flagged = sum(
        bool(_judge(_make_record(tenths_ns=tuple(round(chance.gauss(1e6, 2e5)) for _ in range(10)))).limits)
        for _ in range(300)
    )
    assert flagged <= 6


def test_unknown_counters_are_no_reason() -> None:
    record = _make_record(steal_share=None, cpu_share=None, listen_overflows=None, in_flight=None)
    assert _judge(record, in_flight=()) == record


def test_the_kernels_lines_are_read() -> None:
    assert parse_ticks("cpu  100 20 30 4000 50 6 7 8 9 1") == (4_221, 4_050, 8)
    assert parse_listen_overflows(_NETSTAT) == 17
    assert parse_listen_overflows("IpExt: A\nIpExt: 1\n") is None
    assert parse_drops(_SS) == {8080: 15, 3306: 0, 22: 1}


@given(st.lists(st.integers(0, 10**6), min_size=8, max_size=8), st.integers(1, 10**6))
def test_shares_are_of_all_processors_time(ticks: list[int], idle: int) -> None:
    total, idle_ticks, steal = parse_ticks(" ".join(map(str, ["cpu", *ticks])))
    observed = subtract(Counters(0, 0, 0, 1, 2), Counters(total + idle, idle_ticks + idle, steal, 4, 2))
    assert observed.steal_share is not None
    assert observed.cpu_share is not None
    assert 0 <= observed.cpu_share <= 1 - observed.steal_share <= 1
    assert observed.listen_overflows == 3


def test_without_time_or_counters_nothing_is_claimed() -> None:
    at = Counters(10, 5, 0, None, 0)
    observed = subtract(at, at)
    assert (observed.steal_share, observed.cpu_share, observed.listen_overflows) == (None, None, None)
    assert observed.listen_queues == {}


@pytest.mark.parametrize(
    ("everybodys", "uwsgi", "refusals", "expected"),
    [
        # What other programs' sockets refused is not the run's.
        (800, 3, 4, 7),
        # What the socket dropped beyond all overflows was no overflow: packets of deferred accepts.
        (0, 900, 0, 0),
        (5, 900, 0, 5),
    ],
)
def test_full_queues_are_those_of_the_runs_own_sockets(
    everybodys: int, uwsgi: int, refusals: int, expected: int
) -> None:
    before = Counters(10, 5, 0, 100, 2, {"nginx": 1, "uwsgi": 9})
    after = Counters(20, 9, 0, 100 + everybodys, 2 + refusals, {"nginx": 1, "uwsgi": 9 + uwsgi})
    observed = subtract(before, after)
    assert observed.listen_queues == {"nginx": 0, "uwsgi": expected}
    assert observed.listen_overflows == expected


def test_what_is_counted_for_all_programs_is_said_to_be() -> None:
    judged = _judge(_make_record(listen_queues={}))
    assert [reason.name for reason in judged.limits] == ["all programs' listen queues"]
    assert judged.is_valid


def test_a_full_queue_is_counted_at_its_own_socket(tmp_path: Path) -> None:
    log = tmp_path / "nginx.log"
    log.touch()
    with contextlib.ExitStack() as stack:
        full, other = (stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1)) for _ in "12")
        ports = {"nginx": full.getsockname()[1], "uwsgi": other.getsockname()[1]}
        before = read_counters(str(log), ports)
        if before.tcp_drops is None:
            pytest.skip("no `ss`, or a kernel that does not tell it")
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        observed = subtract(before, read_counters(str(log), ports))
    assert observed.listen_queues["nginx"] > 0
    assert observed.listen_queues["uwsgi"] == 0


def test_a_socket_that_is_not_told_of_leaves_all_unknown(tmp_path: Path) -> None:
    log = tmp_path / "nginx.log"
    log.touch()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert read_counters(str(log), {"nginx": port}).tcp_drops is None


def test_the_machines_counters_are_read_with_nginxs_log(tmp_path: Path) -> None:
    log = tmp_path / "nginx.log"
    log.write_text(_REFUSAL)
    before = read_counters(str(log), {})
    log.write_text(_REFUSAL * 3)
    after = read_counters(str(log), {})
    assert (before.unix_refusals, after.unix_refusals) == (1, 3)
    assert after.total_ticks >= before.total_ticks > before.idle_ticks


def test_processors_that_only_one_side_has_are_not_shared() -> None:
    shared = count_shared_processors()
    assert shared >= 1
    assert count_shared_processors((100_000,)) == 0


def test_a_judged_run_can_be_written_and_read() -> None:
    judged = _judge(_make_record(dropped=1), shared_processors=2)
    assert msgspec.json.decode(msgspec.json.encode(judged), type=RunRecord) == judged
