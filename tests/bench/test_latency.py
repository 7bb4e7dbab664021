"""What benchmarks/latency.py makes of blocks, which are made up."""

from __future__ import annotations

import importlib
from array import array
from pathlib import Path
from typing import Any

import click
import pytest

from reqpath.bench.generator import DROPPED, Outcome, Traffic

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TRAFFIC = Traffic(("127.0.0.1", 1), "/", 100.0, 1.0, 1)


@pytest.fixture
def latency(monkeypatch: pytest.MonkeyPatch) -> Any:
    # Programs, in no package: each imports the others by name.
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("latency")


def make_outcome(latencies_us: list[int], statuses: list[int]) -> Outcome:
    nothing = array("q", [0] * len(statuses)).tobytes()
    latencies_ns = array("q", [1_000 * us for us in latencies_us]).tobytes()
    return Outcome(
        traffic=TRAFFIC,
        start_ns=0,
        ids=b"",
        planned=nothing,
        lags=nothing,
        latencies=latencies_ns,
        statuses=array("h", statuses).tobytes(),
        in_flight=(),
        cpu_ns=0,
        elapsed_ns=1,
        realtime=False,
    )


def test_a_block_is_its_mean_and_percentiles(latency: Any) -> None:
    latencies_us = list(range(1, 102))
    assert latency.summarise_block(make_outcome(latencies_us, [200] * 101)) == ((51.0, 51.0, 100.0), 0)


@pytest.mark.parametrize("status", [500, DROPPED])
def test_what_failed_is_counted_and_in_no_figure(latency: Any, status: int) -> None:
    assert latency.summarise_block(make_outcome([7, 1], [200, status])) == ((7.0, 7.0, 7.0), 1)
    with pytest.raises(click.ClickException, match="all failed"):
        latency.summarise_block(make_outcome([1], [status]))


def test_what_is_added_is_within_a_round(latency: Any) -> None:
    measurement = latency.Measurement("/query", 0.6, 1.0)
    for start in range(3):
        for round_number in range(4):
            # The machine's speed changes from start to start, and from round to round.
            off_us = 1_000.0 + 300.0 * start + 10.0 * round_number
            measurement.blocks["off"].append((off_us, off_us, 4 * off_us))
            measurement.blocks["on"].append((1.05 * off_us, 1.05 * off_us, 4.4 * off_us))
            measurement.lags_us += [20.0, 20.0]
    summary = measurement.summarise(3)
    assert summary["lag_p99_us"] == 20.0
    assert summary["figures"]["mean"]["ratio"]["value"] == pytest.approx(0.05)
    ratio = summary["figures"]["p99"]["ratio"]
    assert ratio["value"] == pytest.approx(0.1)
    assert ratio["low"] == pytest.approx(ratio["high"])
    assert summary["figures"]["p50"]["off_us"] == pytest.approx(1_315.0)
