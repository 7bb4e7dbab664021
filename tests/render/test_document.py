"""The JSON documents, and that they are documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reqpath.analyse.breakdown import build_breakdown
from reqpath.render.document import breakdown_to_json, path_to_json
from tests.factories import make_path, make_shop_paths

PAGE = (Path(__file__).parents[2] / "docs" / "report-json.md").read_text()


def names_in(value: Any) -> set[str]:
    """Return the keys that are names of the format: in lower case, and not those of counts."""
    if isinstance(value, list):
        return set().union(*map(names_in, value))
    if not isinstance(value, dict):
        return set()
    open_ended = ("statuses", "missing_stamps", "skewed", "clamped", "resolutions", "hints")
    return set(value).union(*(names_in(inner) for name, inner in value.items() if name not in open_ended))


def test_the_document_is_json_and_has_what_the_format_promises() -> None:
    document = json.loads(json.dumps(breakdown_to_json(build_breakdown(make_shop_paths()))))
    assert document["version"] == 1
    assert document["requests"] == 1_000
    assert set(document["total_ns"]) == {"mean", "p50", "p90", "p99", "max"}
    assert 0 <= document["attributed_share"] <= 1
    assert {"name", "tier", "known", "mean_ns", "p50_ns", "p99_ns", "share"} <= set(document["segments"][0])
    assert {"mean_ns", "share"} <= set(document["residual"])
    assert {"missing_stamps", "skewed", "lost_records", "workers", "transports"} <= set(document)
    shares = sum(segment["share"] for segment in document["segments"]) + document["residual"]["share"]
    assert shares == pytest.approx(1)


def test_a_route_has_the_same_figures_as_the_whole() -> None:
    document = breakdown_to_json(build_breakdown(make_shop_paths(10)))
    figures = {"requests", "total_ns", "attributed_share", "segments", "residual", "missing_stamps", "skewed"}
    assert figures <= set(document["routes"][0])
    assert document["routes"][0]["route"] == "GET /items/<int:id>"


def test_no_requests_are_a_document_too() -> None:
    document = json.loads(json.dumps(breakdown_to_json(build_breakdown([]))))
    assert (document["requests"], document["routes"], document["rate_per_s"]) == (0, [], None)


def test_every_name_is_documented() -> None:
    path = make_path(90_000_000, query_ns=3_000_000)
    document = names_in(breakdown_to_json(build_breakdown([path])))
    trace = path_to_json(path)
    records = {"worker", "process", "nginx", "retried", "segments"}
    names = (
        document
        | names_in({name: value for name, value in trace.items() if name not in records})
        | set(trace)
    )
    assert sorted(name for name in names if f"`{name}`" not in PAGE) == []


def test_a_trace_has_its_records_by_name() -> None:
    document = json.loads(json.dumps(path_to_json(make_path(90_000_000, query_ns=3_000_000))))
    assert document["segments"]["queue"] == 2_000_000
    assert document["worker"]["operations"][0]["statement"] == "SELECT name FROM items WHERE id = ?"
    assert document["nginx"]["attempts"][0]["address"] == "unix:/run/uwsgi.sock"
    assert document["process"]["worker"] == 1
