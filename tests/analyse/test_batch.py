"""Many requests measured at once."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st

from reqpath.analyse.batch import ENDS_EARLY, ODD, measure_batch
from reqpath.path import RequestPath
from reqpath.record import Attempt, encode
from reqpath.tiers import WORKER_SEGMENTS, measure
from reqpath.usual import UsualRecord, complete, finished_at_ns, is_usual
from tests.factories import NOW_NS, make_nginx_record, make_worker_record
from tests.strategies import raw_records

US = 1_000
MS = 1_000_000
#: Between two stamps; a few come out of order.
gaps = st.lists(st.integers(0, 5 * MS) | st.integers(-3 * MS, 3 * MS), min_size=5, max_size=5)
exclusives = st.lists(
    st.none() | st.integers(0, 5 * MS), min_size=len(WORKER_SEGMENTS), max_size=len(WORKER_SEGMENTS)
)
absent = st.sampled_from(
    (None, None, None, "worker", "line", "accept_ns", "nginx_start_ns", "closed_offset_ns")
)
resolutions = st.sampled_from((US, MS))
_decode = msgspec.msgpack.Decoder(UsualRecord).decode


@st.composite
def request_paths(draw: st.DrawFn) -> RequestPath:
    """Return a path, most often with all its stamps, and often in order."""
    receive_ns, queue_ns, read_ns, gil_ns, send_ns = draw(gaps)
    exclusive_ns = draw(exclusives)
    closed_ns = sum(filter(None, exclusive_ns)) + draw(st.integers(0, US))
    stamps = {
        "parsed_ns": NOW_NS - gil_ns,
        "accept_ns": NOW_NS - gil_ns - read_ns,
        "nginx_pass_ns": NOW_NS - gil_ns - read_ns - queue_ns,
        "nginx_start_ns": NOW_NS - gil_ns - read_ns - queue_ns - receive_ns,
        "closed_offset_ns": closed_ns,
    }
    lacks = draw(absent)
    worker = make_worker_record(
        exclusive_ns=exclusive_ns,
        nginx_resolution_ns=draw(resolutions),
        **{name: None if name == lacks else at_ns for name, at_ns in stamps.items()},
    )
    line = make_nginx_record(
        start_ns=stamps["nginx_start_ns"],
        end_ns=NOW_NS + closed_ns + send_ns,
        resolution_ns=draw(resolutions),
        attempts=[Attempt("a", response_ns=MS)] * draw(st.sampled_from((1, 1, 1, 2))),
    )
    return RequestPath(None if lacks == "worker" else worker, None, None if lacks == "line" else line)


@st.composite
def usual_paths(draw: st.DrawFn) -> RequestPath:
    """Return a path as a reader has it, whose worker's record was left as it is."""
    record = _decode(encode(draw(raw_records())))
    head = record if is_usual(record) else complete(record, "0" * 16)
    line = make_nginx_record(
        end_ns=finished_at_ns(head) + draw(st.integers(-3 * MS, 3 * MS) | st.sampled_from((-US, MS))),
        resolution_ns=draw(resolutions),
        attempts=[Attempt("a", response_ns=MS)] * draw(st.sampled_from((1, 1, 1, 2))),
    )
    retried = (head,) if draw(st.integers(0, 9)) == 0 else ()
    return RequestPath(head, None, line if draw(st.integers(0, 9)) else None, retried)


@given(st.lists(request_paths() | usual_paths(), min_size=1, max_size=6))
def test_each_request_comes_to_what_it_comes_to_alone(paths: list[RequestPath]) -> None:
    found = measure_batch(paths)
    timings = [measure(path.worker, path.nginx) for path in paths]
    assert found.total_ns.tolist() == [timing.total_ns for timing in timings]
    assert found.residual_ns.tolist() == [timing.residual_ns for timing in timings]
    assert [
        tuple(None if math.isnan(value) else value for value in request)
        for request in np.transpose(found.segments).tolist()
    ] == [timing.segments for timing in timings]
    assert found.first_ns == min(timing.start_ns for timing in timings)
    assert found.last_ns == max(timing.start_ns + timing.total_ns for timing in timings)
    for path, timing, kind in zip(paths, timings, found.kind.tolist(), strict=True):
        event(f"{type(path.head).__name__} {('in order', 'ends early', 'odd')[kind]}")
        if kind != ODD:
            assert timing.clamped == (("nginx.send",) if kind == ENDS_EARLY else ())
            assert not timing.skewed + timing.missing
            assert not timing.abandoned
