"""`reqpath bench` without servers: its plan, its mistakes, and what it shows of a result that is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from reqpath.bench.plan import Plan, make_plan, make_quick_plan
from reqpath.bench.result import Head, Journal, read_result, write_result
from reqpath.bench.verdict import judge
from reqpath.commands.bench import _check_same_host, _say_left, command
from reqpath.errors import ConfigurationError, ResultError
from reqpath.render.units import format_span
from tests.bench.results import HOST, make_result

SCENARIOS = Path(__file__).parents[2] / "benchmarks" / "scenarios"


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def read_plan(*arguments: str) -> dict[str, object]:
    result = run("--plan", "--json", *arguments)
    assert result.exit_code == 0, result.output
    document: dict[str, object] = json.loads(result.stdout)
    return document


def test_the_plan_shows_cells_blocks_and_time_and_measures_nothing() -> None:
    result = run("--plan", "--quick")
    assert result.exit_code == 0
    assert "4 cells and one of them again (A/A), in 8 blocks: 40 runs of 2 + 6 s" in result.output
    assert "point-query/tcp/tcp/4x1/pooled  and again, *" in result.output
    assert result.output.count("\nblock") == 8
    short = run("--plan", "--quick", "--hop1", "unix", "--hop2", "unix", "--blocks", "1")
    assert "1 cell and one of them again (A/A), in 1 block: 2 runs" in short.output
    assert os.listdir() == []


def test_the_plan_is_the_default_matrix() -> None:
    schedule = read_plan()["schedule"]
    assert isinstance(schedule, list)
    assert len(schedule) == len(make_plan().schedule())


@pytest.mark.parametrize(
    ("arguments", "cells"),
    [
        (("--workload", "cpu", "--workers", "4x1,1x4,2x2"), 6),
        (("--quick", "--hop1", "unix"), 2),
        (("--workload", "point-query", "--connection", "pooled,per-request", "--hop1", "unix"), 8),
        (("--quick", "--hop1", "unix", "--plant", "0,300"), 4),
        (("--app", "wsgi:app", "--path", "/x"), 4),
        (("--app", "wsgi:app", "--path", "/x", "--quick"), 2),
    ],
)
def test_levels_are_chosen(arguments: tuple[str, ...], cells: int) -> None:
    plan = read_plan(*arguments)["plan"]
    assert isinstance(plan, dict)
    assert len(plan["cells"]) == cells


@pytest.mark.parametrize(
    ("processors", "arguments", "share"),
    [(2, (), 0.35), (8, (), 0.6), (2, ("--load", "0.5"), 0.5), (8, ("--load", "0.5"), 0.5)],
)
def test_fewer_processors_are_sent_less_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, processors: int, arguments: tuple[str, ...], share: float
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(processors)))
    plan = read_plan("--quick", *arguments)["plan"]
    assert isinstance(plan, dict)
    assert plan["load"]["share"] == share


def test_a_rate_is_taken_in_the_place_of_the_capacity() -> None:
    plan = read_plan("--quick", "--rate", "120")["plan"]
    assert isinstance(plan, dict)
    assert plan["load"]["rates_per_s"] == [["point-query", 120.0]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--app", "wsgi:app"), "--app and --path go together"),
        (("--path", "/"), "--app and --path go together"),
        *(
            (("--app", "wsgi:app", "--path", path), "it begins with /, percent-encoded where needed")
            for path in ("x", "", "/a b", "/ü", "/x\r\nHost: y")
        ),
        (("--app", "wsgi:app", "--path", "/", "--hop2", "tcp"), "--hop2 is for reqpath's workloads"),
        (("--rate", "10"), "--rate is for a single workload"),
        (("--quick", "--rate", "10", "--load", "0.5"), "exclude each other"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workload", "nope"), "no workload 'nope'; there are trivial, cpu"),
        (("--workers", "3x3"), "workers can't be '3x3'; it can be 4x1, 1x4, 2x2"),
        (("--hop1", "tcp,tcp"), "hop1 has a level twice"),
    ],
)
def test_a_level_that_does_not_exist_is_named(arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, ConfigurationError)
    assert words in str(result.exception)


@pytest.mark.parametrize(("name", "options"), [("default", ()), ("quick", ("--quick",))])
def test_the_scenario_of_a_bare_command_plans_what_the_command_plans(
    name: str, options: tuple[str, ...]
) -> None:
    assert read_plan(*options) == read_plan("--scenario", str(SCENARIOS / f"{name}.toml"))


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_published_scenario_says_how_long_it_takes_and_can_come_to_a_verdict(path: Path) -> None:
    plan = msgspec.convert(read_plan("--scenario", str(path))["plan"], Plan)
    assert f"Takes about {format_span(round(plan.estimate_s() * 1e9))}." in path.read_text()
    assert judge(make_result(plan)).blocks_needed <= plan.blocks


def test_a_scenarios_options_are_those_of_the_command_which_win() -> None:
    Path("s.toml").write_text(
        'workload = "ten-queries"\nworkers = ["4x1", "2x2"]\nplant = [0, 50]\nwarm-up = 1.5\nblocks = 3\n'
    )
    words = ("--workload", "ten-queries", "--workers", "4x1,2x2", "--plant", "0,50", "--warm-up", "1.5")
    assert read_plan(*words, "--blocks", "3") == read_plan("--scenario", "s.toml")
    assert read_plan(*words, "--blocks", "7") == read_plan("--blocks", "7", "--scenario", "s.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "s.toml: No such file or directory"),
        (
            "seed = 1\nblocks 8\n",
            "s.toml is not TOML: Expected '=' after a key in a key/value pair (at line 2",
        ),
        ("\xff", "s.toml is not TOML: 'utf-8' codec can't decode"),
        (
            "block = 8",
            "s.toml has 'block'; a scenario can have hop1, hop2, workers, workload, connection, blocks",
        ),
        ("quick = true", "s.toml has 'quick'"),
        ("blocks = 8.5", "Invalid value for '--blocks': '8.5' is not a valid integer"),
        ("blocks = true", "Invalid value for '--blocks': 'True' is not a valid integer"),
        ("load = 1.5", "Invalid value for '--load': 1.5 is not in the range"),
    ],
)
def test_a_scenario_that_can_not_be_read_is_told_why(text: str | None, words: str) -> None:
    if text is not None:
        Path("s.toml").write_text(text, encoding="latin-1")
    result = run("--plan", "--scenario", "s.toml")
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--quick",), "--quick and --scenario exclude each other"),
        (("--like", "a.json"), "--scenario is a.json's"),
        (("--resume", "a.json"), "--scenario can't be changed in a benchmark that goes on"),
    ],
)
def test_a_scenario_does_not_change_a_plan_that_is_there(options: tuple[str, ...], words: str) -> None:
    write_result("a.json", make_result())
    Path("s.toml").write_text("blocks = 3\n")
    result = run("--scenario", "s.toml", *options)
    assert result.exit_code == 2
    assert words in result.output


def test_a_file_that_is_there_is_not_written_over() -> None:
    Path("mine.json").write_text("precious")
    result = run("--quick", "--output", "mine.json")
    assert isinstance(result.exception, ConfigurationError)
    assert "mine.json is there already" in str(result.exception)
    assert Path("mine.json").read_text() == "precious"


@pytest.mark.parametrize("option", ["--output", "--html"])
def test_a_directory_that_is_not_there_is_said_before_anything_is_measured(option: str) -> None:
    result = run("--quick", option, "results/quick")
    assert isinstance(result.exception, ConfigurationError)
    assert "there is no directory for results/quick; make it" in str(result.exception)


def make_journal(path: str, runs: int | None) -> None:
    """Write the journal of a benchmark that was ended after so many runs."""
    result = make_result(make_quick_plan(blocks=2), runs=runs)
    head = Head(plan=result.plan, host=result.host, created_ns=result.created_ns)
    with Journal.create(path, head) as journal:
        for record in result.runs:
            journal.append(record)


def test_an_interrupted_benchmark_keeps_its_plan_when_it_goes_on() -> None:
    make_journal("b.jsonl", 3)
    result = run("--resume", "b.jsonl", "--blocks", "5")
    assert result.exit_code == 2
    assert "--blocks can't be changed" in result.output


def test_a_benchmark_that_runs_is_not_gone_on_with_a_second_time() -> None:
    make_journal("b.jsonl", 3)
    before = Path("b.jsonl").read_bytes()
    running, _ = Journal.resume("b.jsonl")
    with running:
        result = run("--resume", "b.jsonl")
    assert isinstance(result.exception, ResultError)
    assert "another reqpath bench is writing b.jsonl" in str(result.exception)
    assert Path("b.jsonl").read_bytes() == before
    assert os.listdir() == ["b.jsonl"]


def test_a_results_plan_is_repeated_at_the_rates_that_were_sent() -> None:
    result = make_result(make_quick_plan(blocks=2, seed=7))
    write_result("a.json", result)
    plan = read_plan("--like", "a.json")["plan"]
    expected = json.loads(msgspec.json.encode(result.plan))
    assert isinstance(plan, dict)
    assert plan["load"].pop("rates_per_s") == [["point-query", result.rates["point-query"]]]
    expected["load"].pop("rates_per_s")
    assert plan == expected


def test_what_is_repeated_is_not_planned_anew() -> None:
    write_result("a.json", make_result())
    result = run("--like", "a.json", "--seconds", "3")
    assert result.exit_code == 2
    assert "--seconds is a.json's" in result.output


def test_what_ended_before_anything_was_sent_can_not_be_repeated() -> None:
    make_journal("b.jsonl", 0)
    result = run("--plan", "--like", "b.jsonl")
    assert isinstance(result.exception, ConfigurationError)
    assert "b.jsonl ended before it was known what is sent" in str(result.exception)


def test_a_benchmark_does_not_go_on_on_another_machine() -> None:
    make_journal("b.jsonl", 3)
    before = Path("b.jsonl").read_bytes()
    result = read_result("b.jsonl")
    _check_same_host(result, HOST)
    with pytest.raises(ConfigurationError, match="the host's kernel"):
        _check_same_host(result, msgspec.structs.replace(HOST, kernel="7.0"))
    assert Path("b.jsonl").read_bytes() == before


def test_a_run_that_was_made_again_is_counted_once_where_a_benchmark_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    make_journal("b.jsonl", 3)
    journal, result = Journal.resume("b.jsonl")
    with journal:
        journal.append(result.runs[-1])
    monkeypatch.setattr("reqpath.commands.bench._measure", stop)
    ended = run("--resume", "b.jsonl")
    assert ended.exit_code == 130
    assert "3 of 10 runs of" in ended.stdout
    assert "Ended after 3 of 10 runs" in ended.stderr


def test_a_complete_journal_is_sealed_without_measuring() -> None:
    make_journal("b.jsonl", None)
    result = run("--resume", "b.jsonl", "--html", "b.html")
    assert result.exit_code == 0, result.exception
    assert "The result: b.json" in result.stderr
    assert sorted(os.listdir()) == ["b.html", "b.json"]
    assert run("show", "b.json").stdout == result.stdout


def test_a_sealed_result_has_nothing_to_go_on_with() -> None:
    write_result("b.json", make_result(make_quick_plan(blocks=2)))
    result = run("--resume", "b.json")
    assert isinstance(result.exception, ConfigurationError)
    assert "b.json is complete: reqpath bench show b.json" in str(result.exception)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_page_that_can_not_be_written_leaves_the_result() -> None:
    make_journal("b.jsonl", None)
    result = run("--resume", "b.jsonl", "--html", "/dev/full")
    assert isinstance(result.exception, ConfigurationError)
    assert "No space left" in str(result.exception)
    assert os.listdir() == ["b.json"]


def test_a_result_is_shown_as_text_page_and_json() -> None:
    write_result("b.json", make_result(make_quick_plan()))
    text = run("show", "b.json")
    assert "For a point query" in text.stdout
    page = run("show", "b.json", "--html", "b.html")
    assert (page.exit_code, page.stdout) == (0, "")
    assert Path("b.html").read_text().startswith("<!doctype html>")
    document = json.loads(run("show", "b.json", "--json").stdout)
    assert document["complete"]


def test_what_is_no_result_is_refused() -> None:
    Path("b.json").write_text("{}")
    assert isinstance(run("show", "b.json").exception, ResultError)
    assert isinstance(run("show", "missing.json").exception, ResultError)


def test_results_of_other_hosts_are_compared_only_when_told() -> None:
    first = make_result(make_quick_plan())
    write_result("a.json", first)
    other = msgspec.structs.replace(first, host=msgspec.structs.replace(first.host, cores=64))
    write_result("b.json", other)
    refused = run("compare", "a.json", "b.json")
    assert isinstance(refused.exception, ResultError)
    assert "--anyway" in str(refused.exception)
    assert run("compare", "a.json", "b.json", "--anyway").exit_code == 0
    document = json.loads(run("compare", "a.json", "a.json", "--json").stdout)
    assert len(document["cells"]) == 4


@pytest.mark.parametrize(
    ("left_s", "words"),
    [(0.2, "0 s left"), (59.0, "59 s left"), (60.0, "1 min left"), (4_500.0, "1 h 15 min left")],
)
def test_the_time_left_is_told_roughly(left_s: float, words: str) -> None:
    assert _say_left(left_s) == words


def test_without_the_extra_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['scipy'] = None; sys.argv = ['reqpath', 'bench', '--plan'];"
        "from reqpath.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'reqpath[bench]'" in done.stderr
