"""The sentence that says what dominates."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from reqpath.analyse.breakdown import build_breakdown
from reqpath.path import RequestPath
from reqpath.render.sentence import render_sentence
from tests.factories import make_path, make_shop_paths, make_worker_record, make_writer_info


def make_unknown() -> list[RequestPath]:
    """Return requests of which uWSGI's stamps are missing, with 3.5 of 9 ms between the known ones."""
    return [make_path(9_000_000, number=n, accept_ns=None, parsed_ns=None) for n in range(300)]


def make_even() -> list[RequestPath]:
    """Return requests in which no segment has three tenths of the time."""
    return [make_path(7_500_000, query_ns=1_000_000, number=n) for n in range(300)]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (list, "No requests yet."),
        (
            make_shop_paths,
            "64 % of the slowest 1 % is mysql.query on POST /orders: 54 ms of 85 ms. "
            "At the median it is flask.view: 3.4 ms of 9.3 ms.",
        ),
        (
            lambda: make_shop_paths(5),
            "5 requests: too few to speak of their slowest 1 %. The slowest one spent the most in flask.view "
            "on GET /items/<int:id>: 3.1 ms of 9.0 ms.",
        ),
        (
            make_even,
            "Nothing dominates the slowest 1 %: the most is queue with 2.0 ms of 7.5 ms, then flask.view. "
            "At the median the most is queue: 2.0 ms of 7.5 ms.",
        ),
        (
            make_unknown,
            "39 % of the time is not attributed: the stamp accept is missing in all requests. "
            "Of the rest: 46 % of the slowest 1 % is flask.view on GET /items/<int:id>: 4.1 ms of 9.0 ms. "
            "At the median it is the same: 4.1 ms of 9.0 ms.",
        ),
    ],
)
def test_the_sentence_is_honest(make: Callable[[], list[RequestPath]], expected: str) -> None:
    assert render_sentence(build_breakdown(make())) == expected


def test_a_segment_spread_over_routes_is_said_to_be() -> None:
    paths = [
        make_path(9_000_000 + number, number=number, route=f"/page{number % 3}") for number in range(900)
    ]
    assert "is flask.view over several routes: " in render_sentence(build_breakdown(paths))


def test_half_and_nearly_all_are_said_in_words() -> None:
    half = [make_path(80_000_000, query_ns=44_000_000, number=n) for n in range(200)]
    assert render_sentence(build_breakdown(half)).startswith("Half of the slowest 1 % is mysql.query on GET ")
    alone = make_worker_record()
    alone.exclusive_ns[alone.exclusive_ns.index(1_000_000)] = 1_000
    alone.closed_offset_ns = 8_001_000
    paths = [RequestPath(alone, make_writer_info(), None)] * 200
    assert render_sentence(build_breakdown(paths)).startswith("Nearly all of the slowest 1 % is flask.view")
