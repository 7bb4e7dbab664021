"""`reqpath bench` on real servers, as short as it can be: whether it holds together, not what is faster."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reqpath import configuration
from reqpath.bench.plan import Load, Plan, Workload, make_plan
from reqpath.bench.result import Journal, Result, Slice, read_result
from reqpath.bench.run import Step, open_bench
from reqpath.bench.verdict import judge
from reqpath.errors import ResultError, ServerError
from reqpath.servers import deployment as module
from reqpath.servers.database import find_database_server
from reqpath.servers.topology import App

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("servers")]

_HERE = Path(__file__).parent
_DEADLINE_S = 120.0
_GRACE_S = 5.0
_RATE_PER_S = 50.0
#: The app without a database: it starts faster.
_PLAIN = App("bench_app:plain", str(_HERE))
_SHORT = ("--blocks", "1", "--seconds", "0.5", "--warm-up", "0.1", "--rate", "50", "--workers", "4x1")

needs_database = pytest.mark.skipif(find_database_server() is None, reason="no database server")


@pytest.fixture(autouse=True)
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mark what a test starts; whatever the benchmark's end, no file and no process with it may be left."""
    with tempfile.TemporaryDirectory(prefix="rq", dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield
        assert os.listdir(directory) == []
        give_up_s = time.monotonic() + _GRACE_S
        while (marked := _list_marked(directory)) and time.monotonic() < give_up_s:
            time.sleep(0.05)
        assert marked == {}
    monkeypatch.setattr(tempfile, "tempdir", None)


def make_short_plan(**choices: object) -> Plan:
    workload = Workload("plain", "a plain request", "/plain", database=False)
    defaults: dict[str, object] = {
        "workloads": (workload,),
        "workers": ("4x1",),
        "blocks": 1,
        "seconds_s": 0.5,
        "warm_up_s": 0.1,
        "load": Load(rates_per_s=(("plain", _RATE_PER_S),)),
    }
    return make_plan(**(defaults | choices))  # type: ignore[arg-type]


def ignore(_step: Step) -> None:
    pass


@needs_database
@pytest.mark.skipif(
    not (shutil.which("wrk") or shutil.which("h2load")),
    reason="neither wrk nor h2load is installed: apt install wrk",
)
def test_a_benchmark_measures_every_run_and_its_tiers_add_up(tmp_path: Path) -> None:
    output = tmp_path / "b.json"
    options = (
        "--quick",
        "--hop1",
        "unix",
        "--hop2",
        "unix",
        "--blocks",
        "1",
        "--seconds",
        "0.5",
        "--load",
        "0.1",
    )
    done = subprocess.run(
        [*_command(), *options, "--output", str(output), "--html", str(tmp_path / "b.html")],
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=True,
    )
    result = read_result(str(output))
    assert result.complete
    assert {capacity.cell for capacity in result.capacities} == {cell.key for cell in result.plan.cells}
    # A run that another process has spoilt is made once more.
    assert {(run.cell, run.twin) for run in result.runs} == {
        (cell.key, twin) for cell in result.plan.cells for twin in (False, True)
    }
    for run in result.runs:
        assert run.planned == run.answered + run.failed
        assert run.answered == run.whole.requests > 0
        assert sum(run.whole.segments_ns.values()) == run.whole.client_ns
        assert run.whole.segments_ns["mysql.query"] > 0
        assert run.whole.unknown == {}
    for cell in result.plan.cells:
        found = next(one for one in result.configurations if one.cell == cell.key)
        assert "uwsgi_pass unix:" in found.files["nginx.conf"]
    assert "A/A" in done.stdout
    assert (tmp_path / "b.html").read_text().startswith("<!doctype html>")
    assert sorted(os.listdir(tmp_path)) == ["b.html", "b.json"]


@needs_database
def test_what_is_planted_in_a_hop_is_found_in_its_tier(tmp_path: Path) -> None:
    plan = make_plan(
        workloads=("point-query",),
        hop1=("unix",),
        hop2=("unix",),
        workers=("4x1",),
        planted_us=("0", "4000"),
        blocks=1,
        seconds_s=1.0,
        warm_up_s=0.5,
        load=Load(rates_per_s=(("point-query", _RATE_PER_S),)),
    )
    journal_path = str(tmp_path / "b.jsonl")
    with open_bench(plan) as bench, Journal.create(journal_path, bench.head) as journal:
        bench.measure(journal, ignore)
    result = read_result(journal_path)
    (planted,) = (one for one in plan.cells if one.planted_ns)
    with_it = [run.whole for run in result.runs if run.cell == planted.key]
    without = [run.whole for run in result.runs if run.cell != planted.key]
    # Computed, so it can't be shorter.
    assert all(one.segments_ns["mysql.query"] >= planted.planted_ns * one.requests for one in with_it)
    added = {name: _mean_ns(with_it, name) - _mean_ns(without, name) for name in with_it[0].segments_ns}
    assert max(added, key=lambda name: added[name]) == "mysql.query"
    (question,) = judge(result).questions
    assert (question.factor, question.first, question.second) == ("planted_us", "0", "4000")


def test_an_app_of_ones_own_needs_no_database(tmp_path: Path) -> None:
    done = _run(tmp_path, "--app", "bench_app:plain", "--path", "/plain", *_SHORT, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"]
    assert "database" not in done.stderr
    (result,) = (read_result(str(path)) for path in tmp_path.glob("*.json"))
    assert "database" not in result.host.versions
    for run in result.runs:
        assert set(run.listen_queues) == {"nginx", "uwsgi"}
        # uWSGI's socket drops a packet of each connection, which is no full queue.
        assert run.listen_overflows is not None
        assert run.listen_overflows < run.answered
    assert len({(run.cell, run.twin) for run in result.runs}) == 3


def test_a_result_is_repeated_and_compared_with_itself(tmp_path: Path) -> None:
    first = _run(tmp_path, "--app", "bench_app:plain", "--path", "/plain", *_SHORT, "--output", "a.json")
    assert first.returncode == 0, first.stderr
    second = _run(tmp_path, "--like", "a.json", "--output", "b.json")
    assert second.returncode == 0, second.stderr
    assert "Compare: reqpath bench compare a.json b.json" in second.stderr
    results = [read_result(str(tmp_path / name)) for name in ("a.json", "b.json")]
    assert results[0].rates == results[1].rates
    made = [{(run.block, run.cell, run.twin, run.seed) for run in result.runs} for result in results]
    assert made[0] == made[1]
    compared = _run(tmp_path, "compare", "a.json", "b.json", "--json")
    assert compared.returncode == 0, compared.stderr
    document = json.loads(compared.stdout)
    assert (document["differences"], document["alone"]) == ([], [])
    assert len(document["cells"]) == 2


@pytest.mark.parametrize(
    ("app", "path", "words"),
    [
        ("bench_app:plain", "/fails", "the app answered 500 to GET /fails\n"),
        ("bench_app:unrecorded", "/plain", "`ReqPath(app)` must be in it"),
        ("bench_app:missing", "/plain", "uWSGI ended with status"),
    ],
)
def test_an_app_that_fails_is_told_of_before_anything_is_measured(
    tmp_path: Path, app: str, path: str, words: str
) -> None:
    done = _run(tmp_path, "--app", app, "--path", path, *_SHORT)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback (most recent call last)" not in done.stderr.partition("reqpath:")[0]
    assert os.listdir(tmp_path) == []


def test_an_app_that_fails_from_now_on_ends_the_benchmark(tmp_path: Path) -> None:
    workload = Workload("later", "a request", "/fails-later", database=False)
    plan = make_short_plan(workloads=(workload,), load=Load(rates_per_s=(("later", _RATE_PER_S),)))
    result, error = _measure(tmp_path, plan, ignore)
    assert isinstance(error, ServerError)
    assert "requests well: status 500 (" in str(error)
    assert "only the first request is served" in error.log_tail
    assert result.runs == ()


def test_a_saturated_cell_is_shown_as_saturated_and_has_no_times(tmp_path: Path) -> None:
    options = ("--blocks", "1", "--seconds", "1", "--warm-up", "0.1", "--workers", "4x1", "--rate", "400")
    done = _run(tmp_path, "--app", "bench_app:plain", "--path", "/slow", *options, "--output", "b.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saturated") >= 2
    shown = json.loads(_run(tmp_path, "show", "b.json", "--json").stdout)
    assert shown["valid"] == 0
    for cell in shown["cells"]:
        assert cell["saturated"]
        assert cell["answered_per_s"] < cell["rate_per_s"] == 400
        assert {cell[name] for name in ("mean_ns", "p50_ns", "p90_ns", "p99_ns", "slowest_ns")} == {None}
    for question in shown["questions"]:
        assert question["mean"] is question["slowest"] is None
        assert {pair["left_out"] for pair in question["pairs"]} == {"saturated"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_benchmark_goes_on_where_it_was(tmp_path: Path, number: signal.Signals) -> None:
    options = ("--app", "bench_app:plain", "--path", "/plain", *_SHORT, "--output", "b.json")
    with _start(tmp_path, *options) as bench:
        _wait_for(bench, "block 1/1", times=2)
        bench.send_signal(number)
        _stdout, stderr = bench.communicate(timeout=_DEADLINE_S)
    assert bench.returncode == 128 + number
    journal = str(tmp_path / "b.jsonl")
    before = read_result(journal)
    assert len(before.runs) == 1
    if number is signal.SIGINT:
        assert "Go on: reqpath bench --resume b.jsonl" in stderr
    done = _run(tmp_path, "--resume", "b.jsonl")
    assert done.returncode == 0, done.stderr
    result = read_result(str(tmp_path / "b.json"))
    assert result.complete
    assert result.runs[0] == before.runs[0]
    assert len({(run.cell, run.twin) for run in result.runs}) == 3
    assert os.listdir(tmp_path) == ["b.json"]


@pytest.mark.parametrize("victim", ["nginx", "uwsgi"])
def test_a_server_that_dies_ends_the_benchmark_and_what_was_measured_is_kept(
    tmp_path: Path, victim: str
) -> None:
    def kill(step: Step) -> None:
        if step.done == 1:
            for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                if victim in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(int(pid), signal.SIGKILL)

    result, error = _measure(tmp_path, make_short_plan(seconds_s=2.0), kill)
    assert isinstance(error, ServerError)
    assert "ended with status" in str(error)
    assert len(result.runs) == 1


@needs_database
def test_a_database_that_dies_ends_the_benchmark_and_what_was_measured_is_kept(tmp_path: Path) -> None:
    plan = make_short_plan(
        workloads=("point-query",),
        hop1=("unix",),
        hop2=("unix",),
        seconds_s=2.0,
        load=Load(rates_per_s=(("point-query", _RATE_PER_S),)),
    )
    path = str(tmp_path / "b.jsonl")
    with open_bench(plan) as bench, Journal.create(path, bench.head) as journal:
        database = bench.database
        assert database is not None

        def kill(step: Step) -> None:
            if step.done == 1:
                os.kill(database.pid, signal.SIGKILL)

        with pytest.raises(ServerError, match="ended with status"):
            bench.measure(journal, kill)
    assert len(read_result(path).runs) == 1


def test_a_full_disk_ends_the_benchmark_and_what_was_measured_is_kept(tmp_path: Path) -> None:
    def fill(step: Step) -> None:
        if step.done == 1:
            (descriptor,) = filter(_links_to(tmp_path / "b.jsonl"), map(int, os.listdir("/proc/self/fd")))
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, descriptor)
            os.close(full)

    result, error = _measure(tmp_path, make_short_plan(), fill)
    assert isinstance(error, ResultError)
    assert "No space left on device" in str(error)
    assert len(result.runs) == 1


def test_a_taken_port_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setattr(module, "find_free_port", lambda: port)
        _result, error = _measure(tmp_path, make_short_plan(), ignore)
    assert isinstance(error, ServerError)
    assert "Address already in use" in str(error)


def _measure(
    directory: Path, plan: Plan, tell: Callable[[Step], None]
) -> tuple[Result, ServerError | ResultError | None]:
    """Run a plan; return what is in the journal and how it ended."""
    path = str(directory / "b.jsonl")
    error: ServerError | ResultError | None = None
    with open_bench(plan, app=_PLAIN) as bench, Journal.create(path, bench.head) as journal:
        try:
            bench.measure(journal, tell)
        except (ServerError, ResultError) as raised:
            error = raised
    return read_result(path), error


def _mean_ns(slices: list[Slice], name: str) -> float:
    return statistics.fmean(one.segments_ns.get(name, 0) / one.requests for one in slices)


def _links_to(path: Path) -> Callable[[int], bool]:
    def links(descriptor: int) -> bool:
        try:
            return os.readlink(f"/proc/self/fd/{descriptor}") == str(path)
        except OSError:
            return False

    return links


def _command() -> list[str]:
    # Python ignores Ctrl-C where it was started with it ignored, as in a shell's background.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sys.argv[0] = 'reqpath'; from reqpath.cli import main; main()"
    )
    return [sys.executable, "-c", code, "bench"]


def _environment() -> dict[str, str]:
    examples = configuration.data_directory("examples")
    return os.environ | {"PYTHONPATH": f"{_HERE}:{examples}"}


def _run(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_command(), *options],
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        cwd=directory,
        env=_environment(),
        check=False,
    )


@contextlib.contextmanager
def _start(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Start a benchmark; end it when the test did not."""
    with subprocess.Popen(
        [*_command(), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        cwd=directory,
        env=_environment(),
    ) as bench:
        try:
            yield bench
        finally:
            if bench.poll() is None:
                bench.terminate()


def _wait_for(bench: subprocess.Popen[str], words: str, *, times: int) -> None:
    """Read the benchmark's standard error until it has said these words so many times."""
    assert bench.stderr is not None
    told = ""
    for line in bench.stderr:
        told += line
        if told.count(words) == times:
            return
    raise AssertionError(f"the benchmark ended without saying {words!r}: {told}")


def _list_marked(mark: str) -> dict[int, str]:
    """Return the command lines of the processes other than this one that inherited the mark, by id."""
    marked = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={mark}".encode() in (directory / "environ").read_bytes():
                marked[int(directory.name)] = (directory / "cmdline").read_text()
        except OSError:
            continue
    return marked
