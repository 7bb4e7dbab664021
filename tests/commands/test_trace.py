"""`reqpath trace`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reqpath.commands.trace import NoSuchRequestError, command, find_request
from tests.commands.test_report import write_paths
from tests.factories import make_path, make_shop_paths


@pytest.fixture
def spool(tmp_path: Path) -> str:
    return write_paths(tmp_path / "spool", make_shop_paths(60))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)


def test_the_slowest_request_is_drawn(spool: str) -> None:
    output = run("slowest", spool).output
    assert output.startswith("POST /orders  500  80.4 ms")
    assert "INSERT INTO orders (customer, item) VALUES (?, ?)" in output
    assert "\x1b" not in output


def test_the_last_request_is_the_one_that_ended_last(spool: str) -> None:
    last = max(make_shop_paths(60), key=lambda path: path.timing.start_ns + path.timing.total_ns)
    assert json.loads(run("last", spool, "--json").output)["trace_id"] == last.trace_id


def test_a_request_is_found_by_the_first_digits_of_its_trace_id(spool: str) -> None:
    wanted = make_shop_paths(60)[7]
    document = json.loads(run(wanted.trace_id[:10].upper(), spool, "--json").output)
    assert (document["trace_id"], document["total_ns"]) == (wanted.trace_id, wanted.timing.total_ns)


def test_a_prefix_of_several_names_them() -> None:
    paths = [make_path(trace_id="a" * 31 + digit) for digit in "123"]
    with pytest.raises(NoSuchRequestError, match=f"3 trace ids start with aaa: {'a' * 31}1, "):
        find_request(paths, "aaa")


def test_of_several_requests_of_one_trace_the_longest_is_shown_and_the_others_counted() -> None:
    paths = [make_path(total_ns, trace_id="a" * 32) for total_ns in (10_000_000, 30_000_000, 20_000_000)]
    assert find_request(paths, "aa") == (paths[1], 2)


def test_no_such_request_is_an_error(spool: str, tmp_path: Path) -> None:
    with pytest.raises(NoSuchRequestError, match="starts with zzz"):
        run("zzz", spool)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NoSuchRequestError, match="no requests yet"):
        run("slowest", str(empty))
