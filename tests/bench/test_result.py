"""Results and journals as files: what is written is read again, and what is none is refused with a reason."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from reqpath.bench.histogram import (
    HIGHEST_NS,
    decode_histogram,
    encode_histogram,
    make_histogram,
    merge_histograms,
    percentile_ns,
)
from reqpath.bench.plan import make_quick_plan
from reqpath.bench.result import (
    VERSION,
    Entry,
    Head,
    Journal,
    Rates,
    Result,
    read_result,
    write_result,
)
from reqpath.errors import ResultError
from tests.bench.results import HOST, make_result

RESULT = make_result(make_quick_plan(blocks=2))
HEAD = Head(plan=RESULT.plan, host=HOST, created_ns=RESULT.created_ns, command=RESULT.command)


def write_journal(path: str, result: Result = RESULT) -> None:
    with Journal.create(path, HEAD) as journal:
        entries: list[Entry] = [Rates(result.rates)]
        entries += [*result.capacities, *result.configurations, *result.runs]
        for entry in entries:
            journal.append(entry)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "bench.json")
    write_result(path, RESULT)
    assert read_result(path) == RESULT
    assert RESULT.complete


def test_a_journal_is_read_as_the_result_that_it_becomes(tmp_path: Path) -> None:
    path = str(tmp_path / "bench.jsonl")
    write_journal(path)
    assert read_result(path) == RESULT


@given(cut=st.integers(1, 100_000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_a_journal_that_was_cut_short_anywhere_keeps_all_whole_lines(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "bench.jsonl"
    path.unlink(missing_ok=True)
    write_journal(str(path))
    data = path.read_bytes()
    head = data.index(b"\n") + 1
    kept = data[: max(head, len(data) - cut)]
    path.write_bytes(kept)
    runs = sum(b'"type":"run"' in line for line in kept.split(b"\n")[:-1])
    assert len(read_result(str(path)).runs) == runs
    journal, before = Journal.resume(str(path))
    with journal:
        for run in RESULT.runs[len(before.runs) :]:
            journal.append(run)
    assert read_result(str(path)).runs == RESULT.runs


def test_a_benchmark_that_was_interrupted_is_not_complete(tmp_path: Path) -> None:
    path = str(tmp_path / "bench.jsonl")
    write_journal(path, replace(RESULT, runs=RESULT.runs[:3]))
    assert not read_result(path).complete


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    path.write_text("mine")
    with pytest.raises(ResultError, match="is there already"):
        Journal.create(str(path), HEAD)
    assert path.read_text() == "mine"


def test_only_one_process_at_a_time_goes_on_with_a_journal(tmp_path: Path) -> None:
    path = str(tmp_path / "bench.jsonl")
    with Journal.create(path, HEAD) as journal:
        with pytest.raises(ResultError, match=r"another reqpath bench is writing .*bench\.jsonl; wait"):
            Journal.resume(path)
        journal.append(RESULT.runs[0])
        # Who only looks is not kept out.
        assert len(read_result(path).runs) == 1
    resumed, before = Journal.resume(path)
    with resumed:
        assert len(before.runs) == 1
        with pytest.raises(ResultError, match="another reqpath bench is writing"):
            Journal.resume(path)


def test_a_journal_that_becomes_a_result_just_now_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "bench.jsonl")
    write_journal(path)
    monkeypatch.setattr(fcntl, "flock", lambda *_: os.unlink(path))
    with pytest.raises(ResultError, match=r"has ended .* this moment"):
        Journal.resume(path)


def test_a_full_disk_is_told_and_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "bench.jsonl")
    write = os.write
    with Journal.create(path, HEAD) as journal:
        journal.append(RESULT.runs[0])

        def fill(descriptor: int, data: bytes) -> int:
            if len(data) < 200:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, data[:200])

        monkeypatch.setattr(os, "write", fill)
        with pytest.raises(ResultError, match=r"bench\.jsonl: No space left on device"):
            journal.append(RESULT.runs[1])
        monkeypatch.undo()
        journal.append(RESULT.runs[2])
    assert read_result(path).runs == (RESULT.runs[0], RESULT.runs[2])


def test_a_result_that_can_not_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_result(str(path), RESULT)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_result(str(path), replace(RESULT, command=object()))
    assert path.read_bytes() == before
    assert [path] == list(tmp_path.iterdir())
    with pytest.raises(ResultError, match="No such file or directory"):
        write_result(str(tmp_path / "none" / "bench.json"), RESULT)


def change(**fields: object) -> bytes:
    return json.dumps({"format": "reqpath bench", "version": VERSION} | fields).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a result"),
        (b"\x00\xff\n", "is not a result"),
        (b"[1, 2]", "is not a result"),
        (b'{"version": 1}', "is not a result"),
        (b'{"format": "reqpath bench", "version": 1, "plan": {', "is not a result"),
        (change(version=2), "has version 2 of the format and this reqpath reads version 1"),
        (change(version=None), "has version None"),
        (change(), "is not a whole result.*missing required field `plan`"),
        (change(type="head", version=9) + b"\n", "has version 9 of the format"),
        (change(type="head"), "it is cut short"),
        (change(type="head") + b"\n", "line 1: Object missing required field"),
    ],
)
def test_what_is_no_result_of_this_version_is_refused_with_a_reason(
    tmp_path: Path, data: bytes, message: str
) -> None:
    path = tmp_path / "bench.json"
    path.write_bytes(data)
    with pytest.raises(ResultError, match=message):
        read_result(str(path))


def test_no_file_and_a_directory_are_told_as_such(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ResultError, match=message):
            read_result(str(path))


@given(st.lists(st.integers(0, HIGHEST_NS), min_size=1))
def test_a_histogram_keeps_every_value_to_three_digits(values: list[int]) -> None:
    histogram = decode_histogram(encode_histogram(make_histogram(values)))
    assert histogram.get_total_count() == len(values)
    for percent, exact in ((0, min(values)), (100, max(values))):
        found = percentile_ns(histogram, percent)
        assert found is not None
        # Below a microsecond all is one.
        assert abs(found - exact) <= max(1_024, exact / 500)


def test_what_lasts_longer_than_can_be_told_counts_as_the_longest() -> None:
    assert make_histogram([HIGHEST_NS * 10]).get_total_count() == 1
    assert make_histogram([-5]).get_total_count() == 1


def test_histograms_are_merged_and_nothing_has_no_percentile() -> None:
    texts = [encode_histogram(make_histogram([value])) for value in (1_000_000, 3_000_000)]
    assert merge_histograms(texts).get_total_count() == 2
    assert percentile_ns(merge_histograms([]), 50) is None


@pytest.mark.parametrize(
    "break_it", [lambda text: text[:20], lambda _: "", lambda _: "ö", lambda _: "HISTAAAA"]
)
def test_a_broken_histogram_is_told(break_it: Callable[[str], str]) -> None:
    with pytest.raises(ResultError, match="histogram in the result"):
        decode_histogram(break_it(encode_histogram(make_histogram([1_000_000]))))


def test_a_run_that_was_made_again_does_not_stand_in_for_one_that_was_not() -> None:
    whole = make_result(make_quick_plan(blocks=2))
    again = replace(whole, runs=(*whole.runs[:-1], whole.runs[0]))
    assert whole.complete
    assert not again.complete


@pytest.mark.parametrize(
    "field",
    [
        "in_flight",
        "in_flight_expected",
        "failures",
        "dropped",
        "listen_overflows",
        "planned",
        "answered",
        "lag",
    ],
)
def test_no_run_can_be_without_what_became_of_its_arrivals(tmp_path: Path, field: str) -> None:
    path = tmp_path / "bench.json"
    write_result(str(path), RESULT)
    document = json.loads(path.read_text())
    del document["runs"][-1][field]
    path.write_text(json.dumps(document))
    with pytest.raises(ResultError, match=f"missing required field `{field}`"):
        read_result(str(path))
