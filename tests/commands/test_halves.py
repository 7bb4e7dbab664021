"""A large spool is read by two processes, and the report is the same."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from reqpath.analyse.breakdown import BreakdownBuilder
from reqpath.analyse.cube import Cube, CubeBuilder
from reqpath.collect.join import read_paths
from reqpath.commands import halves
from reqpath.commands.halves import Builders, find_large_spool, take_in_halves
from reqpath.commands.report import command
from reqpath.errors import SpoolError
from reqpath.path import RequestPath
from reqpath.spool import SpoolLosses, SpoolReader
from tests.commands.test_report import write_paths
from tests.factories import make_shop_paths

PARENT = os.getpid()


@pytest.fixture
def spool(tmp_path: Path) -> str:
    return write_paths(tmp_path / "spool", make_shop_paths(300))


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "LARGE_BYTES", 1)


def report(spool: str, *options: str) -> Any:
    return json.loads(CliRunner().invoke(command, [spool, "--json", *options], catch_exceptions=False).output)


def take_all(paths: Iterator[RequestPath], builders: Builders) -> None:
    builders.breakdown.extend(paths)


def take(spool: str, take: halves.Take) -> SpoolLosses:
    builders = Builders(BreakdownBuilder(), None)
    return take_in_halves(spool, find_large_spool(spool), take, builders, show=lambda paths: paths)


@pytest.mark.parametrize("options", [(), ("--route", "/orders"), ("--slowest", "7")])
def test_the_report_is_that_of_one_process(
    spool: str, options: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    by_one = report(spool, *options)
    request.getfixturevalue("all_are_large")
    assert by_one == report(spool, *options)


@pytest.mark.usefixtures("all_are_large")
def test_a_page_is_of_the_requests_of_both(spool: str) -> None:
    def take_watched(paths: Iterator[RequestPath], builders: Builders) -> None:
        assert builders.cube is not None
        builders.breakdown.extend(builders.cube.watch(paths))

    def build(builders: Builders) -> Cube:
        assert builders.cube is not None
        return builders.cube.build(builders.breakdown.build())

    alone, both = (Builders(BreakdownBuilder(), CubeBuilder()) for _ in range(2))
    take_watched(read_paths(SpoolReader(spool)), alone)
    take_in_halves(spool, find_large_spool(spool), take_watched, both, show=lambda paths: paths)
    of_one, of_both = build(alone), build(both)
    assert of_one.grid == of_both.grid
    assert [path.trace_id for path in of_one.samples] == [path.trace_id for path in of_both.samples]


@pytest.mark.usefixtures("all_are_large")
def test_a_process_that_is_killed_is_told_of(spool: str) -> None:
    def die_in_the_other(paths: Iterator[RequestPath], builders: Builders) -> None:
        if os.getpid() != PARENT:
            os.kill(os.getpid(), signal.SIGKILL)
        take_all(paths, builders)

    with pytest.raises(SpoolError, match="was ended before it was done"):
        take(spool, die_in_the_other)


@pytest.mark.usefixtures("all_are_large")
def test_an_error_in_the_other_process_is_the_command_s(spool: str) -> None:
    def fail_in_the_other(paths: Iterator[RequestPath], builders: Builders) -> None:
        if os.getpid() != PARENT:
            raise SpoolError("no more")
        take_all(paths, builders)

    with pytest.raises(SpoolError, match="no more"):
        take(spool, fail_in_the_other)


@pytest.mark.usefixtures("all_are_large")
def test_an_interrupt_ends_the_other_process_too(spool: str) -> None:
    def interrupt_the_first(paths: Iterator[RequestPath], builders: Builders) -> None:
        if os.getpid() == PARENT:
            raise KeyboardInterrupt
        signal.pause()

    with pytest.raises(KeyboardInterrupt):
        take(spool, interrupt_the_first)


def test_a_small_spool_is_read_by_one_process(spool: str) -> None:
    assert find_large_spool(spool) == []
