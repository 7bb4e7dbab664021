"""Flame graphs: speedscope's JSON, and folded lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import given
from hypothesis import strategies as st

from reqpath.analyse.stacks import sum_stacks
from reqpath.path import RequestPath
from reqpath.render.stacks import render_folded, render_speedscope
from tests.factories import make_path, make_shop_paths
from tests.strategies import request_paths

MS = 1_000_000
#: Of the npm package speedscope 1.25.0, MIT licence: dist/release/file-format-schema.json.
SCHEMA = json.loads((Path(__file__).parent / "speedscope-1.25.0.schema.json").read_text())


def render(paths: list[RequestPath]) -> dict[str, Any]:
    document = json.loads(b"".join(render_speedscope(sum_stacks(paths), "a test")))
    jsonschema.validate(document, SCHEMA)
    assert isinstance(document, dict)
    return document


def test_speedscope_has_each_stack_with_its_time() -> None:
    document = render([make_path(20 * MS, query_ns=5 * MS)])
    (profile,) = document["profiles"]
    names = [frame["name"] for frame in document["shared"]["frames"]]
    stacks = {
        ";".join(names[index] for index in sample): weight
        for sample, weight in zip(profile["samples"], profile["weights"], strict=True)
    }
    assert stacks["GET /items/<int:id>;mysql;mysql.query;SELECT name FROM items WHERE id = ?"] == 4_500_000
    assert stacks["GET /items/<int:id>;queue"] == 2 * MS
    assert (profile["unit"], profile["endValue"]) == ("nanoseconds", 20 * MS)


def test_the_route_with_the_most_time_is_the_first_and_in_one_piece() -> None:
    document = render(make_shop_paths(300))
    names = [frame["name"] for frame in document["shared"]["frames"]]
    routes = [names[sample[0]] for sample in document["profiles"][0]["samples"]]
    assert list(dict.fromkeys(routes)) == ["GET /items/<int:id>", "GET /about", "POST /orders"]
    assert routes == sorted(routes, key=list(dict.fromkeys(routes)).index)


@given(st.lists(request_paths(), max_size=5))
def test_whatever_a_spool_holds_is_of_speedscope_s_schema(paths: list[RequestPath]) -> None:
    (profile,) = render(paths)["profiles"]
    assert len(profile["samples"]) == len(profile["weights"])
    assert sum(profile["weights"]) == profile["endValue"]


def test_a_folded_line_is_a_stack_and_its_time() -> None:
    lines = b"".join(render_folded(sum_stacks([make_path(20 * MS, query_ns=5 * MS)]))).decode().splitlines()
    assert "GET /items/<int:id>;mysql;mysql.fetch;SELECT name FROM items WHERE id = ? 500000" in lines
    assert "GET /items/<int:id>;queue 2000000" in lines
    assert sum(int(line.rpartition(" ")[2]) for line in lines) == 20 * MS


def test_no_text_breaks_a_folded_line() -> None:
    path = make_path(20 * MS, query_ns=5 * MS, statement="SELECT 1; \n DROP\x1b[0m TABLE", route="/a;b\n<x>")
    for line in b"".join(render_folded(sum_stacks([path]))).decode().splitlines():
        stack, _, count = line.rpartition(" ")
        assert int(count) > 0
        assert stack.startswith("GET /a,b <x>;")
        assert stack.count(";") <= 3
        assert "\x1b" not in line


def test_a_negative_residual_is_not_drawn() -> None:
    lines = b"".join(render_folded({("GET /", "residual"): -5, ("GET /", "flask", "flask.view"): 7}))
    assert lines == b"GET /;flask;flask.view 7\n"
