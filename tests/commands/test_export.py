"""`reqpath export`."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from reqpath.commands.export import NothingToExportError, command
from reqpath.errors import OutputError, SpoolError
from tests.commands.test_report import write_paths
from tests.factories import make_path, make_shop_paths
from tests.render.trace_events import Trace, read_trace


@pytest.fixture
def spool(tmp_path: Path) -> str:
    return write_paths(tmp_path / "spool", make_shop_paths(300))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)


def export(spool: str, *arguments: str) -> Trace:
    return read_trace(run("perfetto", spool, *arguments).stdout_bytes)


def ids(trace: Trace) -> set[str]:
    return {
        each["args"]["trace id"] for slices in trace.slices.values() for depth, each in slices if not depth
    }


def test_all_requests_are_exported(spool: str) -> None:
    assert ids(export(spool)) == {path.trace_id for path in make_shop_paths(300)}


def test_only_requests_of_a_route(spool: str) -> None:
    wanted = {path.trace_id for path in make_shop_paths(300) if path.method == "POST"}
    assert ids(export(spool, "--route", "/orders")) == wanted


def test_only_requests_since(spool: str) -> None:
    wanted = {path.trace_id for path in make_shop_paths(300)[200:]}
    assert ids(export(spool, "--since", "2027-01-15T08:00:01+00:00")) == wanted


def test_only_the_slowest(spool: str) -> None:
    wanted = {path.trace_id for path in make_shop_paths(300) if path.method == "POST"}
    assert ids(export(spool, "--slowest", "3")) == wanted
    assert ids(export(spool, "--slowest", "3", "--route", "/about")).isdisjoint(wanted)


def test_only_the_named_traces(spool: str) -> None:
    first, second = (make_shop_paths(300)[i].trace_id for i in (7, 8))
    assert ids(export(spool, "--trace", first[:12].upper(), "--trace", second)) == {first, second}
    assert ids(export(spool, "--trace", first)) == {first}


def test_a_request_and_those_that_were_there_with_it(spool: str) -> None:
    paths = make_shop_paths(300)
    slowest = max(paths, key=lambda path: path.timing.total_ns)
    begin_ns, end_ns = slowest.timing.start_ns, slowest.timing.start_ns + slowest.timing.total_ns
    wanted = {
        path.trace_id
        for path in paths
        if path.timing.start_ns <= end_ns and path.timing.start_ns + path.timing.total_ns >= begin_ns
    }
    assert 5 < len(wanted) < 30
    assert ids(export(spool, "--around", "slowest")) == wanted
    assert slowest.trace_id in ids(export(spool, "--around", slowest.trace_id[:8], "--slowest", "1"))


def test_a_file_is_written_and_told_of(spool: str, tmp_path: Path) -> None:
    target = tmp_path / "out.json.gz"
    result = run("perfetto", spool, "-o", str(target))
    assert result.stdout == ""
    assert result.stderr.startswith(f"{target}: 300 requests, ")
    assert result.stderr.endswith(" kB. Open it at https://ui.perfetto.dev\n")
    assert len(read_trace(gzip.decompress(target.read_bytes())).flows) == 300


def test_speedscope_and_folded_lines_of_the_same_requests_have_the_same_time(spool: str) -> None:
    profile = json.loads(run("speedscope", spool, "--slowest", "9").stdout)["profiles"][0]
    assert profile["name"] == f"9 requests of the spool {spool}"
    lines = run("folded", spool, "--slowest", "9").stdout.splitlines()
    slowest = sorted(path.timing.total_ns for path in make_shop_paths(300))[-9:]
    assert profile["endValue"] == sum(slowest) == sum(int(line.rpartition(" ")[2]) for line in lines)


def test_nothing_to_export_is_an_error_and_leaves_no_file(spool: str, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    with pytest.raises(NothingToExportError, match=f"none of the requests in the spool {spool}"):
        run("perfetto", spool, "--route", "/nowhere", "-o", str(target))
    assert not target.exists()


def test_no_spool_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="there is no spool at"):
        run("folded", str(tmp_path / "none"))


def test_a_full_disk_is_an_error(spool: str) -> None:
    with pytest.raises(OutputError, match="No space left on device"):
        run("speedscope", spool, "-o", "/dev/full")


def test_a_terminal_is_not_written_to(spool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reqpath.commands.export.is_terminal", lambda: True)
    with pytest.raises(click.UsageError, match="name a file with -o"):
        run("perfetto", spool)


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    spool = write_paths(tmp_path / "spool", [make_path(number=i) for i in range(3_000)])
    with subprocess.Popen(
        [sys.executable, "-m", "reqpath.cli", "export", "perfetto", spool],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 1
