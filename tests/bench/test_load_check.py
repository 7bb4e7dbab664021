"""What benchmarks/load.py makes of loads, which are made up."""

from __future__ import annotations

import importlib
import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

# It is a program, in no package.
load = importlib.import_module("benchmarks.load")


def make_sent(*, gap_us: int = 10_000, requests: int = 100, failures: int = 0) -> Any:
    return load.Sent(
        requests=requests,
        latencies_us=[float(number + 1) for number in range(requests - failures)],
        begun_ns=[number * gap_us * 1_000 for number in range(requests)],
        served_us=[50.0] * requests,
    )


def test_the_rounds_of_a_load_are_put_together() -> None:
    found = load.summarise("h2load", 100.0, 1.0, [make_sent(), make_sent(failures=1)])
    assert (found.requests, found.failures) == (200, 1)
    assert found.percentiles_us[0] == pytest.approx(50.0)
    assert found.max_us == 100.0
    # What failed reached nginx too.
    assert (found.nginx_rate_per_s, found.nginx_mean_us) == (100.0, 50.0)
    # From one round's end to the next one's begin there is no gap.
    assert found.gap_variation == 0.0


@given(st.floats(50, 6_000))
def test_clients_that_begin_a_step_apart_send_evenly(rate: float) -> None:
    step_ms, requests = load.choose_step(rate)
    nearest = requests / step_ms * 1e3
    assert nearest == pytest.approx(rate, rel=0.17)
    assert load.choose_step(nearest) == (step_ms, requests)
    # In the time that one client takes from a request to its next, in 127ths.
    assert {client * requests % load.CLIENTS for client in range(load.CLIENTS)} == set(range(load.CLIENTS))


def test_a_program_that_sent_another_rate_misses_a_target() -> None:
    right = load.summarise("h2load", 100.0, 1.0, [make_sent()])
    wrong = replace(right, load="reqpath, Poisson", nginx_rate_per_s=94.0)
    loop = {name: [load.Closed(100.0, 1.0, 2.0)] for name in load.PROGRAMS}
    targets = load.judge({8: loop}, [], [right, wrong])
    assert targets == {
        "at saturation within 5% of wrk": True,
        "at saturation within 5% of h2load": True,
        "100/s of h2load, in nginx within 5%": True,
        "100/s of reqpath, Poisson, in nginx within 5%": False,
    }


def test_the_loads_are_shown_side_by_side() -> None:
    loads = [load.summarise(name, rate, 1.0, [make_sent()]) for rate in (100.0, 200.0) for name in load.LOADS]
    written = io.StringIO()
    Console(width=80, file=written).print(load.make_side_by_side(loads))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in written.getvalue().splitlines()]
    assert ["100", "failures", "0.00%", "0.00%", "0.00%"] in lines
    assert ["", "p99.9, µs", "100", "100", "100"] in lines
    assert [cells[0] for cells in lines if cells and cells[0]] == ["100", "200"]
