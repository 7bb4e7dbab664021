"""`reqpath report`."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from reqpath.commands.report import command, matches_route
from reqpath.commands.sources import parse_since
from reqpath.errors import ConfigurationError, MissingExtraError, SpoolError
from reqpath.path import RequestPath
from reqpath.record import encode
from reqpath.spool import SpoolWriter
from tests.factories import NOW_NS, make_shop_paths, make_writer_info


def write_paths(directory: Path, paths: list[RequestPath]) -> str:
    """Write the records of paths as a worker and a collector would."""
    for kind in ("worker", "nginx"):
        writer = SpoolWriter(
            str(directory),
            lambda writer_id, kind=kind: make_writer_info(kind=kind, writer_id=writer_id),  # type: ignore[misc]
            max_bytes=1 << 26,
            report=print,
        )
        for path in paths:
            record = path.worker if kind == "worker" else path.nginx
            if record is not None:
                record.sequence = writer.next_sequence()
                writer.append(encode(record))
        writer.close()
    return str(directory)


@pytest.fixture
def spool(tmp_path: Path) -> str:
    return write_paths(tmp_path / "spool", make_shop_paths(300))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)


def test_the_report_of_a_spool_is_a_page_without_control_codes(spool: str) -> None:
    output = run(spool).output
    assert output.startswith("300 requests in 1.5 s, 199/s, 1 error")
    assert "mysql.query on POST /orders" in output
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 80


def test_json_is_one_object(spool: str) -> None:
    document = json.loads(run(spool, "--json").output)
    assert (document["requests"], document["joined"], document["lost_records"]) == (300, 300, 0)


def test_a_route_can_be_picked(spool: str) -> None:
    document = json.loads(run(spool, "--json", "--route", "/about").output)
    assert [route["route"] for route in document["routes"]] == ["GET /about"]
    assert document["requests"] == 99


def test_only_requests_since_an_instant(spool: str) -> None:
    since = "2027-01-15T08:00:01+00:00"
    assert NOW_NS == 1_800_000_000_000_000_000
    assert json.loads(run(spool, "--json", "--since", since).output)["requests"] == 100


def test_as_many_of_the_slowest_as_asked_for(spool: str) -> None:
    assert len(json.loads(run(spool, "--json", "--slowest", "2").output)["slowest_requests"]) == 2
    assert "slowest requests" not in run(spool, "--slowest", "0").output


def test_an_empty_spool_says_what_to_do(tmp_path: Path) -> None:
    text = run(str(tmp_path)).output
    assert "No requests" in text
    assert "ReqPath(app)" in text
    assert "reqpath demo" in text
    assert json.loads(run(str(tmp_path), "--json").output)["requests"] == 0


def test_a_filter_that_nothing_passes_says_so(spool: str) -> None:
    assert "None of the requests" in run(spool, "--route", "/nowhere").output


def test_a_spool_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="REQPATH_SPOOL"):
        run(str(tmp_path / "none"))


def test_without_the_extra_it_names_the_pip_line(spool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("reqpath.analyse", "reqpath.render"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'reqpath[report]'")):
        run(spool)


def read_data(page: Path) -> dict[str, Any]:
    match = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL
    )
    assert match is not None
    data: dict[str, Any] = json.loads(match[1])
    return data


def test_a_page_is_written_with_the_figures_of_json(spool: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert re.fullmatch(
        r".*report\.html: 300 requests, [\d.]+ [kM]B\n", run(spool, "--html", str(page)).output
    )
    data = read_data(page)
    assert data["report"] == json.loads(run(spool, "--json").output)
    assert data["jaeger"] is None


def test_a_page_is_of_the_requests_that_were_picked(spool: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    run(spool, "--route", "/orders", "--html", str(page), "--jaeger", "https://jaeger.example/ui/")
    data = read_data(page)
    assert [route["route"] for route in data["report"]["routes"]] == ["POST /orders"]
    assert sum(data["cells"]["requests"]) == data["report"]["requests"] == 3
    assert data["jaeger"] == "https://jaeger.example/ui"


def test_without_requests_there_is_no_page(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    output = run(str(tmp_path / "spool"), "--html", str(tmp_path / "report.html")).output
    assert output.startswith("No requests in the spool")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--html", "x", "--json"], ["--html", "x", "--watch"], ["--html", "x", "--jaeger", "javascript:1"]],
)
def test_what_goes_with_no_page_is_refused(spool: str, arguments: list[str]) -> None:
    with pytest.raises(click.UsageError):
        run(spool, *arguments)


def test_watch_reads_on_until_it_is_stopped(spool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []

    def add_more(seconds: float) -> None:
        turns.append(seconds)
        if len(turns) == 2:
            raise KeyboardInterrupt
        write_paths(Path(spool), make_shop_paths(10))

    monkeypatch.setattr("reqpath.commands.report.time.sleep", add_more)
    output = run(spool, "--watch").output
    assert len(turns) == 2
    assert "310 requests" in output


@pytest.mark.parametrize(
    ("text", "ago_s"), [("30s", 30), ("10m", 600), ("10min", 600), ("1.5h", 5400), ("1d", 86_400)]
)
def test_since_takes_a_time_ago(text: str, ago_s: int) -> None:
    assert parse_since(text, NOW_NS) == NOW_NS - ago_s * 10**9


@given(st.text(max_size=30))
def test_since_is_read_or_refused_with_what_it_takes(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        assert isinstance(parse_since(text, NOW_NS), int)


def test_since_says_what_it_takes() -> None:
    with pytest.raises(ConfigurationError, match="it takes 30s, 10m"):
        parse_since("yesterday", NOW_NS)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("GET /items/<int:id>", True),
        ("/items/<int:id>", True),
        ("/items*", True),
        ("GET *", True),
        ("/items", False),
        ("POST /items/<int:id>", False),
    ],
)
def test_a_route_is_meant_by_its_rule_its_method_or_a_star(wanted: str, *, expected: bool) -> None:
    assert matches_route("GET /items/<int:id>", wanted) is expected
