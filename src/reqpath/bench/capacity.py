"""Finds how much a server can do: a closed loop of rising concurrency, driven by wrk or h2load.

The layer below is `process`. At each concurrency so many connections have one request each under way, always;
what is served meanwhile rises until something is busy all the time, and that is the capacity::

    measure_capacity(find_tool(), "http://127.0.0.1:8080/query")
        →  ToolRun(tool='wrk', concurrency=8, requests=6210, seconds_s=2.0, failures=0, …) for each step
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from reqpath.errors import ServerError
from reqpath.servers.deployment import find_program
from reqpath.servers.process import run_to_end

ToolName = Literal["wrk", "h2load"]

_PACKAGES: Final[dict[ToolName, str]] = {"wrk": "wrk", "h2load": "nghttp2-client"}
#: Beyond its load: start, and requests that hang.
_GRACE_S: Final = 30.0
#: A further step that brings no more than this was the last.
_GAIN: Final = 1.03

_UNITS_NS: Final = {
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION = r"([\d.]+)(us|ms|s|m|h)"


@dataclass(frozen=True, slots=True)
class Tool:
    """A load program that was found."""

    name: ToolName
    path: str
    version: str


@dataclass(frozen=True, slots=True)
class ToolRun:
    """What a load program told of one run."""

    tool: ToolName
    concurrency: int
    #: Responses of any status.
    requests: int
    seconds_s: float
    #: Connections that failed, time-outs, and responses of status 400 and above.
    failures: int
    #: Of all requests; None where the program doesn't tell it.
    p50_ns: int | None
    p99_ns: int | None

    @property
    def requests_per_s(self) -> float:
        """Good responses per second."""
        return max(0, self.requests - self.failures) / self.seconds_s


def find_tool(name: ToolName | None = None) -> Tool:
    """Return the program of this name; None: wrk, or else h2load.

    Raises: ServerError that says how to get it.
    """
    names: tuple[ToolName, ...] = ("wrk", "h2load") if name is None else (name,)
    for candidate in names:
        with contextlib.suppress(ServerError):
            path = find_program(candidate, "")
            return Tool(candidate, path, _read_version(path))
    raise ServerError(f"{names[0]} is not installed: apt install {_PACKAGES[names[0]]}")


def run_tool(
    tool: Tool,
    url: str,
    *,
    concurrency: int,
    seconds_s: float,
    while_running: Callable[[], None] | None = None,
) -> ToolRun:
    """Keep `concurrency` requests under way for `seconds_s`, rounded to whole seconds.

    h2load never ends when the server closes its connections; it is given up then.

    Raises: ServerError with what the program said.
    """
    seconds = max(1, round(seconds_s))
    if tool.name == "wrk":
        options = [
            "--threads",
            "1",
            "--connections",
            f"{concurrency}",
            "--duration",
            f"{seconds}s",
            "--latency",
        ]
    else:
        options = ["--h1", "--threads=1", f"--clients={concurrency}", f"--duration={seconds}"]
    with tempfile.TemporaryDirectory(prefix="reqpath-load-") as directory:
        log = os.path.join(directory, "log")
        run_to_end(
            [tool.path, *options, url], log, seconds + _GRACE_S, tool.name, while_running=while_running
        )
        with open(log, encoding="utf-8", errors="replace") as file:
            output = file.read()
    parse = parse_wrk if tool.name == "wrk" else parse_h2load
    return parse(output, concurrency)


def measure_capacity(
    tool: Tool,
    url: str,
    *,
    concurrencies: Sequence[int] = (4, 8, 16),
    seconds_s: float = 2.0,
    while_running: Callable[[], None] | None = None,
) -> tuple[ToolRun, ...]:
    """Return one run for each concurrency, ascending, until a further one brings next to nothing.

    Raises: ServerError.
    """
    runs: list[ToolRun] = []
    for concurrency in concurrencies:
        run = run_tool(tool, url, concurrency=concurrency, seconds_s=seconds_s, while_running=while_running)
        best = max((earlier.requests_per_s for earlier in runs), default=0.0)
        runs.append(run)
        if best and run.requests_per_s < best * _GAIN:
            break
    return tuple(runs)


def parse_wrk(output: str, concurrency: int) -> ToolRun:
    """Read what `wrk --latency` prints. Raises: ServerError when that is something else."""
    done = re.search(rf"(\d+) requests in {_DURATION},", output)
    if done is None:
        raise ServerError("wrk told no figures", output)
    failures = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", output)))
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    broken = sum(map(int, errors.groups())) if errors else 0
    return ToolRun(
        tool="wrk",
        concurrency=concurrency,
        # What broke is not among wrk's requests.
        requests=int(done[1]) + broken,
        seconds_s=_parse_duration_ns(done[2], done[3]) / 1e9,
        failures=failures + broken,
        p50_ns=_find_duration_ns(rf"\n\s+50%\s+{_DURATION}", output),
        p99_ns=_find_duration_ns(rf"\n\s+99%\s+{_DURATION}", output),
    )


def parse_h2load(output: str, concurrency: int) -> ToolRun:
    """Read what h2load prints; it has no percentiles. Raises: ServerError when that is something else."""
    finished = re.search(rf"finished in {_DURATION}, ", output)
    requests = re.search(
        r"requests: .* (\d+) done, \d+ succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output
    )
    if finished is None or requests is None:
        raise ServerError("h2load told no figures", output)
    done, failed, _errored, _timeout = map(int, requests.groups())
    return ToolRun(
        tool="h2load",
        concurrency=concurrency,
        requests=done,
        seconds_s=_parse_duration_ns(finished[1], finished[2]) / 1e9,
        failures=failed,
        p50_ns=None,
        p99_ns=None,
    )


def _parse_duration_ns(number: str, unit: str) -> int:
    return round(float(number) * _UNITS_NS[unit])


def _find_duration_ns(pattern: str, output: str) -> int | None:
    found = re.search(pattern, output)
    return _parse_duration_ns(found[1], found[2]) if found else None


def _read_version(path: str) -> str:
    """Return what the program says of itself; empty when it says nothing."""
    for option in ("--version", "-v"):
        # wrk takes both for a mistake, and tells its version with its usage.
        output = subprocess.run([path, option], capture_output=True, text=True, check=False, timeout=10)
        found = re.search(r"(?:wrk (?:debian/)?|h2load nghttp2/)(\d[\w.\-]*)", output.stdout + output.stderr)
        if found:
            return found[1]
    return ""
