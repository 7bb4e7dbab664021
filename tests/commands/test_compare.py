"""`reqpath compare`."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from reqpath.collect.join import read_paths
from reqpath.collect.spans import build_spans
from reqpath.commands.compare import Span, command, parse_instant, parse_span
from reqpath.errors import ConfigurationError, SpoolError
from reqpath.spool import SpoolReader
from tests.analyse.comparisons import make_traffic
from tests.commands.test_report import write_paths
from tests.factories import NOW_NS
from tests.traces.spans import as_sdk_spans
from tests.traces.test_otlp import encode_json

SECOND_NS = 1_000_000_000


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)


def read(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").output)


@pytest.fixture
def before(tmp_path: Path) -> str:
    return write_paths(tmp_path / "before", make_traffic(1, 300))


@pytest.fixture
def after(tmp_path: Path) -> str:
    return write_paths(tmp_path / "after", make_traffic(2, 300, query_ns=7_000_000))


def at(seconds: float) -> str:
    """Return an instant of the requests as ISO, as a user would write it."""
    return datetime.fromtimestamp(NOW_NS / SECOND_NS + seconds).isoformat()


def test_two_spools_are_compared_in_a_page_without_control_codes(before: str, after: str) -> None:
    output = run(before, after).output
    assert output.startswith("B is ")
    assert "slower than A's" in output.splitlines()[0]
    assert "mysql.query" in " ".join(output.split()[:40])
    assert f"the spool {before}" in output.replace("\n", "")
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 80


def test_json_is_one_object(before: str, after: str) -> None:
    document = read(before, after)
    assert (document["outcome"], document["total"]["name"]) == ("different", "total")
    assert (document["first"]["requests"], document["second"]["requests"]) == (300, 300)
    sums = [sum(part[name] for part in document["parts"]) for name in ("first_sum_ns", "second_sum_ns")]
    assert sums == [document["first"]["total_ns"], document["second"]["total_ns"]]


def test_a_spool_against_itself_has_no_difference(before: str) -> None:
    document = read(before, before)
    assert (document["outcome"], document["total"]["difference"]["value_ns"]) == ("none", 0.0)


def test_one_spool_is_split_at_an_instant(before: str) -> None:
    document = read(before, "--split", at(3))
    assert (document["first"]["requests"], document["second"]["requests"]) == (150, 150)
    assert document["first"]["title"].endswith("before 2027-01-15 " + at(3)[11:])
    assert document["second"]["title"].endswith("from 2027-01-15 " + at(3)[11:])


def test_two_times_of_one_spool_are_compared(before: str) -> None:
    document = read(before, "--a", f"{at(1)}..{at(2)}", "--b", f"{at(4)}..")
    assert (document["first"]["requests"], document["second"]["requests"]) == (50, 100)


def test_each_of_two_spools_can_have_its_time(before: str, after: str) -> None:
    document = read(before, after, "--a", f"..{at(2)}", "--b", f"{at(1)}..{at(3)}")
    assert (document["first"]["requests"], document["second"]["requests"]) == (100, 100)


def test_the_default_spool_can_be_split(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQPATH_SPOOL", before)
    assert read("--split", at(3))["first"]["requests"] == 150


def test_a_route_can_be_picked(before: str, after: str) -> None:
    document = read(before, after, "--route", "/orders")
    assert [route["route"] for route in document["routes"]] == ["POST /orders"]
    assert document["first"]["requests"] < 60


def test_traces_are_compared_with_a_spool_and_told(before: str, tmp_path: Path) -> None:
    traces = tmp_path / "traces.jsonl"
    with traces.open("w", encoding="utf-8") as file:
        for path in read_paths(SpoolReader(before)):
            json.dump(encode_json(as_sdk_spans(build_spans(path, service_name="shop"))), file)
            file.write("\n")
    document = read(before, str(traces), "--service", "shop")
    assert document["total"]["difference"]["value_ns"] == 0.0
    assert (document["first"]["traces"], document["second"]["traces"]) == (False, True)
    assert "B is read from traces" in run(before, str(traces)).output


def test_a_page_is_written_with_the_figures_of_json(before: str, after: str, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    assert re.fullmatch(
        r".*compare\.html: 600 requests, [\d.]+ [kM]B\n", run(before, after, "--html", str(page)).output
    )
    match = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL
    )
    assert match is not None
    assert json.loads(match[1])["comparison"] == read(before, after)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("x",),
        ("x", "y", "z"),
        ("x", "--split", "14:00", "--a", "..13:00"),
        ("x", "--a", "12:00..14:00"),
        ("x", "--a", "3h..1h", "--b", "2h.."),
        ("x", "y", "--json", "--html", "z"),
    ],
)
def test_what_is_not_two_sets_of_requests_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        run(*arguments)


def test_a_service_of_spools_is_refused(before: str) -> None:
    with pytest.raises(ConfigurationError, match="a spool is of one service"):
        run(before, before, "--service", "shop")


def test_an_empty_side_says_when_there_were_requests_and_what_to_do(
    before: str, after: str, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigurationError, match=r"B has no requests: .* Its requests started from 2027-01-15"
    ):
        run(before, "--split", at(100))
    with pytest.raises(ConfigurationError, match=r"A has no requests: .* It has none of the route /nowhere"):
        run(before, after, "--route", "/nowhere")
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match=r"B has no requests: .*ReqPath\(app\)"):
        run(before, str(empty))
    with pytest.raises(SpoolError, match="there is no spool at"):
        run(before, str(tmp_path / "none"))


def local(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * SECOND_NS


NOON_NS = local("2026-03-10T12:30:00")


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("10:00..11:00", "2026-03-10T10:00", "2026-03-10T11:00"),
        ("13:00..14:00", "2026-03-09T13:00", "2026-03-09T14:00"),
        ("12:00..13:00", "2026-03-10T12:00", "2026-03-10T13:00"),
        ("23:30..0:10:05", "2026-03-09T23:30", "2026-03-10T00:10:05"),
        ("..12:00", None, "2026-03-10T12:00"),
        ("2h..", "2026-03-10T10:30", None),
        ("2h ago .. 30m ago", "2026-03-10T10:30", "2026-03-10T12:00"),
        ("2026-03-01..2026-03-02T06:00", "2026-03-01", "2026-03-02T06:00"),
    ],
)
def test_a_time_has_a_beginning_and_an_end(text: str, first: str | None, last: str | None) -> None:
    expected = Span(None if first is None else local(first), None if last is None else local(last))
    assert parse_span(text, NOON_NS, option="--a") == expected


@pytest.mark.parametrize("text", ["", "..", "14:00", "1h..2h", "25:00..", "14:61..", "x..y"])
def test_what_is_no_time_is_refused_with_what_it_takes(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--a"):
        parse_span(text, NOON_NS, option="--a")


def test_a_time_of_day_is_the_last_one_that_has_been() -> None:
    assert parse_instant("12:29", NOON_NS, option="--split") == local("2026-03-10T12:29")
    assert parse_instant("12:31", NOON_NS, option="--split") == local("2026-03-09T12:31")


@given(*[st.tuples(st.none() | st.integers(0, 20), st.none() | st.integers(0, 20)) for _ in range(2)])
def test_times_overlap_when_an_instant_is_in_both(
    first: tuple[int | None, int | None], second: tuple[int | None, int | None]
) -> None:
    spans = Span(*first), Span(*second)
    if any(span[0] is not None and span[1] is not None and span[0] >= span[1] for span in spans):
        return
    shared = any(spans[0].holds(instant) and spans[1].holds(instant) for instant in range(-1, 22))
    assert spans[0].overlaps(spans[1]) == shared
