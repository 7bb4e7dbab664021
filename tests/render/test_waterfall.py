"""One request as a waterfall."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from rich.console import Console

from reqpath.path import RequestPath
from reqpath.record import Attempt, Operation, SpanEvent
from reqpath.render.waterfall import MAX_OPERATIONS, place_rows, render_waterfall
from tests.factories import make_nginx_record, make_path, make_worker_record, make_writer_info

Draw = Callable[..., str]
Compare = Callable[[str, str], None]


def render(path: RequestPath) -> Callable[[Console], None]:
    return lambda console: render_waterfall(path, console)


def make_order() -> RequestPath:
    """Return a request with all that a record can hold."""
    path = make_path(
        90_000_000, query_ns=40_000_000, method="POST", path="/orders", route="/orders", status=500
    )
    worker = path.worker
    assert worker is not None
    worker.operations.insert(
        0,
        Operation(
            "connect",
            100_000,
            450_000,
            transport="tcp",
            server_address="db.example",
            server_port=3306,
            phases=[("tls_context", 200_000), ("socket", 50_000), ("handshake", 90_000), ("setup", 10_000)],
        ),
    )
    worker.operations.append(
        Operation(
            "query",
            60_000_000,
            61_000_000,
            60_900_000,
            "UPDATE items SET stock = stock - ? WHERE id = ?",
            error="OperationalError: 1205",
            batch_size=3,
        )
    )
    worker.attributes = {"shop.cart": 3, "shop.items": ["pen", "ink"]}
    worker.events = [SpanEvent("paid", 70_000_000, {"method": "card"})]
    worker.span_status = ("ERROR", "no stock")
    worker.exception = (
        "shop.NoStock",
        "none left of 7",
        "Traceback (most recent call last):\n  in order\nshop.NoStock",
    )
    worker.rejected_stamps = ["traceparent"]
    return path


def make_retried() -> RequestPath:
    path = make_path(30_000_000)
    assert path.nginx is not None
    path.nginx.attempts = [
        Attempt("10.0.0.1:3031", 502, 0, None, 500_000),
        Attempt("10.0.0.2:3031", 200, 0, 1, 2),
    ]
    path.retried_heads = (make_worker_record(status=None),)
    return path


CASES: dict[str, Callable[[], RequestPath]] = {
    "order": make_order,
    "plain": lambda: RequestPath(make_worker_record(parent_id=""), make_writer_info(), None),
    "refused": lambda: RequestPath(None, None, make_nginx_record(status=413, request_bytes=9_000_000)),
    "bad-gateway": lambda: RequestPath(
        None,
        None,
        make_nginx_record(status=502, attempts=[Attempt("unix:/run/a.sock", 502, None, None, 3_000_000)]),
    ),
    "retried": make_retried,
    "stock-nginx": lambda: make_path(30_000_000, query_ns=10_000_000, resolution_ns=1_000_000),
}


@pytest.mark.parametrize("name", CASES)
def test_the_waterfall_is_as_recorded(name: str, draw: Draw, compare_golden: Compare) -> None:
    compare_golden(f"trace-{name}.txt", draw(render(CASES[name]())))


def test_the_waterfall_in_colour_is_as_recorded(draw: Draw, compare_golden: Compare) -> None:
    compare_golden("trace-order.ansi", draw(render(make_order()), colour=True))


@pytest.mark.parametrize("width", [24, 40, 63, 80, 200])
@pytest.mark.parametrize("name", CASES)
def test_no_line_is_wider_than_the_terminal_or_a_hundred(name: str, width: int, draw: Draw) -> None:
    lines = draw(render(CASES[name]()), width).splitlines()
    assert max(cell_len(line) for line in lines) <= min(width, 100)


def test_rows_follow_each_other_without_gap_up_to_the_worker() -> None:
    rows = place_rows(make_path(30_000_000))
    assert [(row.label, row.start_ns, row.end_ns) for row in rows] == [
        ("nginx.receive", 0, 500_000),
        ("queue", 500_000, 2_500_000),
        ("uwsgi.read", 2_500_000, 3_000_000),
        ("uwsgi.gil", 3_000_000, 4_000_000),
        ("worker", 4_000_000, 29_500_000),
        ("  view", 4_200_000, 29_300_000),
        ("nginx.send", 29_500_000, 30_000_000),
    ]


def test_of_many_operations_the_first_are_drawn_and_the_rest_counted(draw: Draw) -> None:
    path = make_path(90_000_000)
    assert path.worker is not None
    path.worker.operations = [
        Operation("query", n * 1_000, n * 1_000 + 900, statement=f"SELECT {n}")
        for n in range(MAX_OPERATIONS + 2)
    ]
    text = draw(render(path))
    assert "and 2 operations more in --json" in text
    assert f"SELECT {MAX_OPERATIONS}" not in text


def test_what_the_request_brings_along_is_neither_markup_nor_an_escape(draw: Draw) -> None:
    evil = "\x1b[2J[bold]\u202e\n\x9b31m\x00"
    path = make_path(30_000_000, path=evil, route=evil, host=evil, span_name=evil, trace_id=evil)
    worker = path.worker
    assert worker is not None
    worker.operations = [
        Operation(
            "query",
            0,
            1_000_000,
            statement=evil,
            error=evil,
            server_address=evil,
            transport="tcp",
            namespace=evil,
        )
    ]
    worker.attributes = {evil: evil, "list": [evil]}
    worker.events = [SpanEvent(evil, 5, {evil: evil})]
    worker.exception = (evil, evil, evil)
    worker.span_status = ("ERROR", evil)
    worker.rejected_stamps = [evil]
    text = draw(render(path))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "[bold]" in text
