"""Records for the tests: plausible ones, of which a test says only what matters to it."""

from __future__ import annotations

from typing import Any

from reqpath.path import RequestPath
from reqpath.record import FORMAT_VERSION, Attempt, NginxRecord, Operation, WorkerRecord, WriterInfo
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


def make_path(
    total_ns: int = 12_000_000,
    *,
    at_ns: int = 0,
    query_ns: int = 0,
    statement: str = "SELECT name FROM items WHERE id = ?",
    number: int = 0,
    resolution_ns: int = 1_000,
    **overrides: Any,
) -> RequestPath:
    """Return a complete path: 1 ms in nginx, 2 ms in the queue, 1.5 ms in uWSGI, the rest in the app.

    `at_ns` is its start after `NOW_NS`, `query_ns` the part of the app's time that one query takes, and
    `number` makes its ids its own.
    """
    start_ns = NOW_NS + at_ns
    app_start_ns = start_ns + 4_000_000
    closed_ns = total_ns - 4_500_000
    assert closed_ns > query_ns + 400_000, "too short for what is in it"
    exclusive_ns: list[int | None] = [0] * len(WORKER_SEGMENTS)
    exclusive_ns[WORKER_SEGMENTS.index("wsgi.app")] = None
    for segment, duration_ns in (
        ("flask.framework", 300_000),
        ("flask.view", closed_ns - query_ns - 400_000),
        ("mysql.query", query_ns * 9 // 10),
        ("mysql.fetch", query_ns - query_ns * 9 // 10),
        ("uwsgi.send", 100_000),
    ):
        exclusive_ns[WORKER_SEGMENTS.index(segment)] = duration_ns
    operations = [
        Operation(
            "query",
            500_000,
            500_000 + query_ns,
            500_000 + query_ns * 9 // 10,
            statement,
            3,
            transport="unix",
            server_address="/run/mysqld/mysqld.sock",
            namespace="shop",
            connection=1,
            fetch_ns=query_ns - query_ns * 9 // 10,
        )
    ]
    # Multiples of an odd number: all different, and they look like ids.
    trace_id = f"{(number + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}"
    nginx_span_id = trace_id[16:]
    values: dict[str, Any] = {
        "trace_id": trace_id,
        "parent_id": nginx_span_id,
        "sequence": number,
        "app_start_ns": app_start_ns,
        "closed_offset_ns": closed_ns,
        "exclusive_ns": exclusive_ns,
        "nginx_start_ns": start_ns,
        "nginx_pass_ns": start_ns + 500_000,
        "nginx_resolution_ns": resolution_ns,
        "accept_ns": start_ns + 2_500_000,
        "parsed_ns": start_ns + 3_000_000,
        "flask_start_offset_ns": 0,
        "view_start_offset_ns": 200_000,
        "view_end_offset_ns": closed_ns - 200_000,
        "response_start_offset_ns": closed_ns - 150_000,
        "cpu_ns": (closed_ns - query_ns) * 8 // 10,
        "run_queue_ns": 50_000,
        "transport": "unix",
        "host": "shop.example",
        "response_bytes": 5_120,
        "operations": operations if query_ns else [],
    }
    worker = make_worker_record(**(values | overrides))
    nginx = make_nginx_record(
        trace_id=worker.trace_id,
        span_id=worker.parent_id,
        sequence=number,
        start_ns=start_ns,
        pass_ns=start_ns + 500_000,
        end_ns=start_ns + total_ns,
        resolution_ns=resolution_ns,
        status=worker.status,
        method=worker.method,
        path=worker.path,
        attempts=[Attempt("unix:/run/uwsgi.sock", worker.status, 0, closed_ns, closed_ns)],
        protocol="HTTP/1.1",
        response_bytes=5_400,
    )
    info = make_writer_info(
        writer_id=f"{number % 2:016x}",
        worker=number % 2 + 1,
        pid=4711 + number % 2,
        processes=2,
        threads=1,
        concurrency="processes",
    )
    return RequestPath(worker, info, nginx)


def make_shop_paths(count: int = 1_000) -> list[RequestPath]:
    """Return a shop's requests, 5 ms apart: most are pages of a few ms, a hundredth are slow orders."""
    paths = []
    for number in range(count):
        common: dict[str, Any] = {"number": number, "at_ns": number * 5_000_000}
        if number % 100 == 42:
            statement = "INSERT INTO orders (customer, item) VALUES (?, ?)"
            status = 500 if number == 42 else 201
            path = make_path(
                80_000_000 + number * 10_000,
                query_ns=60_000_000,
                statement=statement,
                method="POST",
                path="/orders",
                route="/orders",
                status=status,
                **common,
            )
        elif number % 3:
            path = make_path(9_000_000 + number * 1_000, query_ns=1_000_000, **common)
        else:
            path = make_path(7_000_000 + number * 1_000, path="/about", route="/about", **common)
        paths.append(path)
    return paths
