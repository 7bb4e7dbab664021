"""What wrk and h2load print, as figures; and when a rising load has found the capacity."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.bench import capacity
from reqpath.bench.capacity import Tool, ToolRun, find_tool, measure_capacity, parse_h2load, parse_wrk
from reqpath.errors import ServerError

_WRK = """\
Running 1s test @ http://127.0.0.1:53027/cpu
  1 threads and 200 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    71.15ms  162.42ms 874.68ms   87.27%
    Req/Sec    34.74k     2.29k   39.94k    70.00%
  Latency Distribution
     50%  513.00us
     75%    6.65ms
     90%  313.05ms
     99%    1.02s
  34564 requests in 1.02s, 10.33MB read
"""
_WRK_FAILURES = """\
  Socket errors: connect 1, read 20, write 300, timeout 4000
  Non-2xx or 3xx responses: 34443
"""
_WRK_END = """\
Requests/sec:  33844.63
Transfer/sec:     10.12MB
"""
_H2LOAD = """\
starting benchmark...
Main benchmark duration is over for thread #0. Stopping all clients.

finished in 2.00s, 3363.00 req/s, 1.05MB/s
requests: 6726 total, 6730 started, 6726 done, 6700 succeeded, 26 failed, 0 errored, 0 timeout
status codes: 6700 2xx, 0 3xx, 26 4xx, 0 5xx
                     min         max         mean         sd        +/- sd
time for request:      153us     59.44ms       593us      1.42ms    98.57%
"""


def test_wrks_figures_are_read() -> None:
    run = parse_wrk(_WRK + _WRK_END, 200)
    assert run == ToolRun("wrk", 200, 34_564, 1.02, 0, 513_000, 1_020_000_000)
    assert run.requests_per_s == pytest.approx(34_564 / 1.02)


def test_what_failed_for_wrk_is_no_throughput() -> None:
    run = parse_wrk(_WRK + _WRK_FAILURES + _WRK_END, 200)
    # Broken connections are not among the requests that it counts.
    assert (run.requests, run.failures) == (34_564 + 4_321, 34_443 + 4_321)
    assert run.requests_per_s == pytest.approx(121 / 1.02)


def test_h2loads_figures_are_read() -> None:
    run = parse_h2load(_H2LOAD, 4)
    assert run == ToolRun("h2load", 4, 6_726, 2.0, 26, None, None)
    assert run.requests_per_s == 3_350.0


@given(st.text(max_size=200))
def test_other_output_is_an_error_that_shows_it(output: str) -> None:
    for parse in (parse_wrk, parse_h2load):
        with pytest.raises(ServerError, match="no figures"):
            parse(output, 1)


@pytest.mark.parametrize(
    ("rates", "concurrencies"),
    [
        ((100.0, 190.0, 250.0), [2, 4, 8]),
        ((100.0, 101.0, 250.0), [2, 4]),
        ((100.0, 50.0, 250.0), [2, 4]),
        ((0.0, 0.0, 10.0), [2, 4, 8]),
    ],
)
def test_concurrency_rises_while_that_brings_more(
    rates: tuple[float, ...], concurrencies: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_concurrency = dict(zip((2, 4, 8), rates, strict=True))

    def answer(tool: Tool, url: str, *, concurrency: int, **_options: object) -> ToolRun:
        requests = int(by_concurrency[concurrency])
        return ToolRun("wrk", concurrency, requests, 1.0, 0, None, None)

    monkeypatch.setattr(capacity, "run_tool", answer)
    runs = measure_capacity(Tool("wrk", "/bin/wrk", "4"), "http://x/", concurrencies=(2, 4, 8))
    assert [run.concurrency for run in runs] == concurrencies


def test_failures_are_never_a_rate_below_nothing() -> None:
    run = dataclasses.replace(parse_wrk(_WRK, 1), failures=40_000)
    assert run.requests_per_s == 0.0


def test_a_tool_that_is_not_there_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def miss(name: str, remedy: str) -> str:
        raise ServerError(f"no {name}")

    monkeypatch.setattr(capacity, "find_program", miss)
    with pytest.raises(ServerError, match="h2load is not installed: apt install nghttp2-client"):
        find_tool("h2load")
    with pytest.raises(ServerError, match="wrk is not installed: apt install wrk"):
        find_tool()
