"""The trace for Perfetto and Chrome's viewer."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from reqpath.path import RequestPath
from reqpath.record import Operation, SpanEvent
from reqpath.render.perfetto import render_perfetto
from tests.factories import NOW_NS, make_nginx_record, make_path, make_shop_paths, make_worker_record
from tests.render.trace_events import Trace, read_trace
from tests.strategies import request_paths

MS = 1_000_000


def export(paths: Iterable[RequestPath]) -> Trace:
    return read_trace(b"".join(render_perfetto(paths)))


def test_a_request_has_its_slices_on_the_tracks_of_nginx_the_queue_and_its_core() -> None:
    trace = export([make_path(20 * MS, query_ns=5 * MS, core=3)])
    assert sorted(trace.tracks.values()) == [
        ("listen queue", "waiting"),
        ("nginx", "requests"),
        ("worker 1, pid 4711 on web1", "core 3"),
    ]
    assert trace.on("nginx", "requests") == [
        (0, "GET /items/<int:id>", 0, 20 * MS),
        (1, "nginx.receive", 0, 500_000),
        (1, "nginx.send", 19_500_000, 500_000),
    ]
    assert trace.on("listen queue", "waiting") == [(0, "queue", 500_000, 2 * MS)]
    assert trace.on("worker 1, pid 4711 on web1", "core 3") == [
        (0, "GET /items/<int:id>", 2_500_000, 17 * MS),
        (1, "uwsgi.read", 2_500_000, 500_000),
        (1, "uwsgi.gil", 3 * MS, MS),
        (1, "app", 4 * MS, 15_500_000),
        (2, "view", 4_200_000, 15_100_000),
        (3, "SELECT name FROM items WHERE id = ?", 4_500_000, 5 * MS),
        (4, "mysql.query", 4_500_000, 4_500_000),
    ]


def test_arrows_lead_a_request_from_track_to_track() -> None:
    trace = export([make_path(number=0), make_path(number=1, at_ns=50 * MS)])
    for steps in trace.flows.values():
        assert [trace.tracks[step["tid"]][0] for step in steps][:2] == ["nginx", "listen queue"]
        assert len(steps) == 3
    assert len(trace.flows) == 2


def test_those_who_wait_at_one_time_lie_on_tracks_of_their_own() -> None:
    late = make_path(
        30 * MS,
        number=2,
        core=0,
        accept_ns=NOW_NS + 10 * MS,
        parsed_ns=NOW_NS + 10 * MS,
        app_start_ns=NOW_NS + 11 * MS,
        closed_offset_ns=15 * MS,
    )
    paths = [make_path(10 * MS, number=0, core=0), late]
    trace = export(paths)
    tracks = sorted(track for process, track in trace.tracks.values() if process == "listen queue")
    assert tracks == ["waiting", "waiting (2)"]
    assert [value for _, value in trace.counters["listen queue", "waiting for a worker"]] == [1, 2, 1, 0]


def test_a_free_track_is_used_again() -> None:
    trace = export(make_path(10 * MS, number=2 * i, at_ns=10 * MS * i) for i in range(50))
    assert len(trace.tracks) == 3


def test_paths_that_come_by_their_ends_are_laid_out_by_their_starts() -> None:
    long = make_path(1_000 * MS, number=0)
    short = [make_path(9 * MS, number=2 * i, at_ns=10 * MS * i) for i in range(1, 100)]
    tracks = [track for process, track in export([*short, long]).tracks.values() if process == "nginx"]
    assert sorted(tracks) == ["requests", "requests (2)"]


def test_the_gil_s_queue_is_counted_for_each_worker() -> None:
    trace = export([make_path(number=i, core=i // 2, at_ns=i * 100_000) for i in range(6)])
    counters = {process: values for (process, name), values in trace.counters.items() if "GIL" in name}
    assert {process: max(value for _, value in values) for process, values in counters.items()} == {
        "worker 1, pid 4711 on web1": 3,
        "worker 2, pid 4712 on web1": 3,
    }


def test_what_ran_beside_the_request_lies_beside_it() -> None:
    path = make_path(20 * MS, query_ns=4 * MS, core=0)
    assert path.worker is not None
    path.worker.operations.append(Operation("query", MS, 3 * MS, statement="beside", concurrent=True))
    # Fetched to its end while the next one was under way.
    path.worker.operations.append(Operation("query", 2 * MS, 8 * MS, statement="crossing"))
    trace = export([path])
    beside = trace.on("worker 1, pid 4711 on web1", "core 0, beside")
    assert [name for _, name, _, _ in beside] == ["beside"]
    crossing = trace.on("worker 1, pid 4711 on web1", "core 0, beside (2)")
    assert [name for _, name, _, _ in crossing] == ["crossing"]


def test_templates_are_slices() -> None:
    template, query = 3, 6
    worker = make_worker_record(
        timeline=[2, 0, template, MS, query, 2 * MS, template, 3 * MS, 2, 5 * MS, 2, 9 * MS]
    )
    trace = export([RequestPath(worker, None, None)])
    assert trace.on("worker", "requests")[-1] == (2, "template", MS, 4 * MS)


def test_what_the_app_noted_is_on_its_track() -> None:
    worker = make_worker_record(
        events=[SpanEvent("cache miss", 5 * MS, {"key": "a", "sizes": [1, 2]})],
        exception=("ValueError", "no such item", "stack"),
        attributes={"shop.items": 3},
    )
    trace = export([RequestPath(worker, None, None)])
    assert [(each["name"], each["args"]) for each in trace.instants] == [
        ("cache miss", {"key": "a", "sizes": "1, 2"}),
        ("ValueError", {"message": "no such item"}),
    ]
    ((_, whole), *_) = next(iter(trace.slices.values()))
    assert whole["args"]["shop.items"] == 3


def test_a_request_of_nginx_alone_has_a_track() -> None:
    line = make_nginx_record(status=502)
    trace = export([RequestPath(None, None, line)])
    assert trace.on("nginx", "requests") == [
        (0, "GET (nginx alone)", 0, 12 * MS),
        (1, "nginx.local", 0, 12 * MS),
    ]


def test_instants_are_exact_to_the_nanosecond() -> None:
    path = make_path(10_000_001, at_ns=86_399_999_999_999)
    trace = export([make_path(), path])
    assert max(start + duration for _, _, start, duration in trace.on("nginx", "requests")) == (
        86_399_999_999_999 + 10_000_001
    )
    assert int(trace.document["otherData"]["zero of ts, ns since the epoch"]) % 86_400_000_000_000 == 0


def test_hostile_text_is_bounded_and_has_no_control_characters() -> None:
    evil = "</script>\x1b]0;x\x07\u202e" + "é" * 20_000
    path = make_path(query_ns=MS, statement=evil, route=evil, path=evil, attributes={evil: evil})
    data = b"".join(render_perfetto([path]))
    read_trace(data)
    assert len(data) < 20_000
    assert not set(data.decode()) & set("\x1b\x07\u202e")
    assert b"\\u001b" not in data


def test_no_request_is_an_empty_trace() -> None:
    assert export([]).document["traceEvents"] == []


def test_many_requests_come_in_chunks() -> None:
    chunks = list(render_perfetto(iter(make_shop_paths(2_000))))
    assert len(chunks) > 20
    assert len(read_trace(b"".join(chunks)).flows) == 2_000


@given(st.lists(request_paths(), max_size=8))
def test_whatever_a_spool_holds_nests(paths: list[RequestPath]) -> None:
    trace = export(paths)
    recorded = sum(path.worker is not None for path in paths)
    whole = [
        each
        for number, (process, _) in trace.tracks.items()
        if "pid" in process or process == "worker"
        for depth, each in trace.slices[number]
        if depth == 0 and "trace id" in each.get("args", {})
    ]
    assert len(whole) >= recorded
