"""A benchmark's page: its data are the verdict's; the browser's own view of it is in tests/browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from msgspec.structs import replace

from reqpath.bench.detail import describe_result
from reqpath.bench.plan import Load, Workload, make_quick_plan
from reqpath.bench.result import Configuration, Result
from reqpath.bench.verdict import judge
from reqpath.render.bench import verdict_to_json
from reqpath.render.bench_sentence import render_control, render_verdicts
from reqpath.render.page_bench import build_bench_data, render_bench_page
from tests.bench.results import CASES, HOST, make_result


def render(result: Result) -> str:
    return render_bench_page(judge(result), describe_result(result))


def build(result: Result) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(build_bench_data(judge(result), describe_result(result))))
    return data


class Page(HTMLParser):
    """Checks that every tag is closed, and notes what the page would load and what is on it as text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.items: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "li":
            self.items.append("")
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["li"]:
            self.items[-1] += data


@pytest.mark.parametrize("name", CASES)
def test_the_page_is_whole_loads_nothing_and_begins_with_the_sentences(name: str) -> None:
    result = CASES[name]()
    verdict = judge(result)
    page = Page()
    page.feed(render(result))
    assert page.open == []
    assert page.loads == []
    assert page.items == [*render_verdicts(verdict), render_control(verdict.control)]


@pytest.mark.parametrize("name", CASES)
def test_its_figures_are_those_of_json(name: str) -> None:
    result = CASES[name]()
    data = build(result)
    document = json.loads(json.dumps(verdict_to_json(judge(result))))
    assert [question["sentence"] for question in data["questions"]] == document["sentences"]
    for question in data["questions"]:
        of_json = find_question(document, question, data)
        for metric in ("mean", "slowest", "own"):
            assert (question[metric] is None) == (of_json[metric] is None)
            if question[metric] is not None:
                check_comparison(question[metric], of_json[metric])
        if question["mean"] is not None:
            shown = [(part["name"], part["tier"], part["base_ns"]) for part in question["parts"]]
            assert shown == [
                (part["name"], part["tier"], part["base_ns"]) for part in of_json["mean"]["parts"]
            ]
            assert len(question["lens"]) == len(of_json["mean"]["lens"])
        assert [pair["blocks"] for pair in question["pairs"]] == [pair["blocks"] for pair in of_json["pairs"]]
    for cell, of_json in zip(data["cells"], document["cells"], strict=True):
        for field in ("mean_ns", "p50_ns", "p90_ns", "p99_ns", "lag_p99_ns", "little", "capacity_per_s"):
            assert cell[field] == of_json[field]
        for field in (
            "rate_per_s",
            "answered_per_s",
            "planned",
            "dropped",
            "listen_overflows",
            "valid",
            "runs",
        ):
            assert cell[field] == of_json[field]
        assert {segment: ns for segment, _, ns in cell["segments"]} == of_json["segments_ns"]
        assert {segment: ns for segment, _, ns in cell["slowest_segments"]} == of_json["slowest_segments_ns"]


def find_question(document: dict[str, Any], question: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    title = data["workloads"][question["workload"]]["title"]
    (found,) = (
        each
        for each in document["questions"]
        if each["workload"]["title"] == title
        and f"{each['first']} → {each['second']}" == question["levels"]
        and (each["factor"] == "hop1") == question["compared"].startswith("nginx")
    )
    assert isinstance(found, dict)
    return found


def check_comparison(shown: dict[str, Any], of_json: dict[str, Any]) -> None:
    for field in ("base_ns", "resolvable_ns", "outcome"):
        assert shown[field] == of_json[field]
    assert shown["p"] == of_json["p_adjusted"]
    for field in ("value_ns", "low_ns", "high_ns"):
        assert shown["client"][field] == of_json["client"][field]


def test_what_a_plan_says_can_not_become_markup() -> None:
    evil = Workload("<b>x", "<script>alert(1)</script>\x1b[31m", "/</script>")
    result = make_result(make_quick_plan(workloads=[evil], app="<img src=x>:app"))
    result = replace(
        result,
        host=replace(HOST, cpu_model="<i>cpu</i>\u202e"),
        command="reqpath bench --app '<img src=x>:app'",
    )
    page = render(result)
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    for text in ("<b>x", "<script>alert", "<img", "<i>"):
        assert text not in markup
    assert page.count("<script") == 5
    assert not re.search("[\x1b\u202e]", page)


def test_a_configuration_is_there_once_with_its_lines_as_they_are() -> None:
    result = make_result(make_quick_plan(blocks=1))
    text = "http {\n    server {\n\tlisten 80;\n    }\n}\n"
    result = replace(
        result,
        configurations=tuple(
            Configuration(cell=cell.key, files={"nginx.conf": text, "uwsgi.ini": f"socket = {number}\n"})
            for number, cell in enumerate(result.plan.cells)
        ),
    )
    data = build(result)
    assert data["files"][0] == [[0, "http {"], [4, "server {"], [4, "listen 80;"], [4, "}"], [0, "}"]]
    assert [cell["files"] for cell in data["cells"]] == [
        [["nginx.conf", 0], ["uwsgi.ini", number]] for number in (1, 2, 3, 4)
    ]


def test_how_it_was_loaded_is_told_as_it_was_decided() -> None:
    by_share = dict(build(make_result(make_quick_plan(blocks=1)))["plan"])
    assert by_share["load"] == "60 % of the slowest set-up's capacity"
    assert by_share["a point query"] == "GET /query, 240/s planned"
    given = dict(
        build(make_result(make_quick_plan(load=Load(rates_per_s=(("point-query", 240.0),)))))["plan"]
    )
    assert given["load"] == "rates that were given"
    assert "capacity" not in given


def test_a_page_stays_small() -> None:
    result = CASES["matrix"]()
    libraries = len(render(CASES["nothing"]()))
    assert len(render(result)) - libraries < 300_000
