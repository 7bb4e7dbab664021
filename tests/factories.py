"""Records for the tests: plausible ones, of which a test says only what matters to it."""

from __future__ import annotations

from typing import Any

from reqpath.record import FORMAT_VERSION, NginxRecord, WorkerRecord, WriterInfo
from reqpath.tiers import WORKER_SEGMENTS

#: An instant in 2027, whole seconds.
NOW_NS = 1_800_000_000_000_000_000
TRACE_ID = "0123456789abcdef0123456789abcdef"
NGINX_SPAN_ID = "0123456789abcdef"


def make_worker_record(**overrides: Any) -> WorkerRecord:
    """Return a Flask request of 9 ms without any stamp from outside: 1 ms of framework, 8 of view."""
    exclusive_ns: list[int | None] = [0] * len(WORKER_SEGMENTS)
    exclusive_ns[WORKER_SEGMENTS.index("flask.framework")] = 1_000_000
    exclusive_ns[WORKER_SEGMENTS.index("flask.view")] = 8_000_000
    exclusive_ns[WORKER_SEGMENTS.index("wsgi.app")] = None
    values: dict[str, Any] = {
        "trace_id": TRACE_ID,
        "span_id": "fedcba9876543210",
        "parent_id": NGINX_SPAN_ID,
        "sampled": True,
        "sequence": 0,
        "method": "GET",
        "path": "/items/7",
        "route": "/items/<int:id>",
        "status": 200,
        "app_start_ns": NOW_NS,
        "closed_offset_ns": 9_000_000,
        "exclusive_ns": exclusive_ns,
    }
    return WorkerRecord(**(values | overrides))


def make_nginx_record(**overrides: Any) -> NginxRecord:
    """Return a line for `make_worker_record`'s request, from 2 ms before it to 1 ms after it."""
    values: dict[str, Any] = {
        "trace_id": TRACE_ID,
        "span_id": NGINX_SPAN_ID,
        "end_ns": NOW_NS + 10_000_000,
        "start_ns": NOW_NS - 2_000_000,
        "status": 200,
        "method": "GET",
        "path": "/items/7",
    }
    return NginxRecord(**(values | overrides))


def make_writer_info(**overrides: Any) -> WriterInfo:
    """Return the head of a worker's file."""
    values: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "writer_id": "3f9c2a7d10b4e6f8",
        "kind": "worker",
        "service_name": "shop",
        "host": "web1",
        "pid": 4711,
        "created_ns": NOW_NS,
        "reqpath_version": "0.1.0",
    }
    return WriterInfo(**(values | overrides))
