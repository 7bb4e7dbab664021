"""Tells what makes a run worth nothing and what limits it, from the kernel's counters and the run's figures.

The machine is read before and after a run; the difference is `Observed`. With it and what the clients saw,
`judge_run` names each reason in words::

    before = read_counters(nginx_log, {"nginx": 8080})
    …the run…
    observed = subtract(before, read_counters(nginx_log, {"nginx": 8080}))
    judge_run(record, in_flight=outcome.in_flight[20:], shared_processors=2, realtime=True)
      →  the record with invalid=(Reason('generator lag', "the generator's p99 lag is 91 µs, 11 % of …"),)

Processors' time is the machine's: what others do meanwhile is in it too, as it is in the run's times. Full
listen queues are counted for each of the run's sockets, by the kernel for TCP and by nginx, which is refused,
for Unix sockets; docs/load.md says how well.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from scipy import stats

from reqpath.bench.histogram import decode_histogram, percentile_ns
from reqpath.bench.result import Reason, RunRecord

#: Of the median latency: what the generator's p99 lag may be.
MOST_LAG: Final = 0.05
#: By how much the sampled number under way may differ from Little's law.
MOST_LITTLE: Final = 0.05
#: Of the processors' time, what may be taken by the host of a virtual machine.
MOST_STEAL: Final = 0.02
#: Of the arrivals, what may fail: the times are those of the others.
MOST_FAILED: Final = 0.01
#: Of the processors' time, where nothing is left for a further request.
BUSY: Final = 0.97

#: How likely a run's latency is to go one way by chance as steadily as one that is called drifting.
DRIFT_P: Final = 0.01
#: And by how much of its mean it goes from the begin to the end.
DRIFT: Final = 0.1

#: What nginx's log says of a Unix socket that took no connection. Source: unix(7), connect(2), EAGAIN.
_REFUSED = re.compile(rb"\(11: Resource temporarily unavailable\) while connecting to upstream")
#: A listening socket's local port, and what it dropped: `LISTEN 0 100 127.0.0.1:8080 …  skmem:(…,d3)`.
_LISTENING = re.compile(
    r"^LISTEN +\d+ +\d+ +\S+:(\d+) [^\n]*(?:\n[ \t]+)?skmem:\([^)]*\bd(\d+)\)", re.MULTILINE
)
_SS_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Counters:
    """The machine's counters at one instant, each of which only grows."""

    #: Of all processors, in the kernel's ticks.
    total_ticks: int
    idle_ticks: int
    steal_ticks: int
    #: Connections over TCP that found a queue full, in all of the network namespace; None: not known.
    tcp_overflows: int | None
    #: Times that nginx was refused by a full queue of a Unix socket.
    unix_refusals: int
    #: What each server's TCP socket dropped, for whatever reason; None: not known by socket.
    tcp_drops: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """What the machine did between two instants; shares are of all processors' time."""

    #: Taken by the machine's host for others; None when no tick has passed.
    steal_share: float | None
    #: Not idle, what was stolen left out.
    cpu_share: float | None
    #: Connections that a full listen queue did not take, TCP and Unix, at most; None: not known.
    listen_overflows: int | None
    #: The same by server; empty when it is known only together with other programs' sockets.
    listen_queues: dict[str, int]


def read_counters(nginx_log: str, ports: Mapping[str, int]) -> Counters:
    """Read the counters now; `nginx_log` is nginx's error log, `ports` each server's that listens on TCP.

    Source: proc_stat(5), proc_net(5).
    """
    with open("/proc/stat", encoding="ascii") as file:
        ticks = parse_ticks(file.readline())
    try:
        with open("/proc/net/netstat", encoding="ascii") as file:
            overflows = parse_listen_overflows(file.read())
    except FileNotFoundError:
        overflows = None
    with open(nginx_log, "rb") as log:
        refusals = sum(1 for line in log if _REFUSED.search(line))
    return Counters(*ticks, tcp_overflows=overflows, unix_refusals=refusals, tcp_drops=_read_drops(ports))


def _read_drops(ports: Mapping[str, int]) -> dict[str, int] | None:
    """Ask the kernel, by iproute2's `ss`, what each listening socket has dropped."""
    try:
        told = subprocess.run(
            ["ss", "-ltmnH"],
            capture_output=True,
            text=True,
            timeout=_SS_S,
            check=True,
            env={"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"},
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    drops = parse_drops(told)
    return {name: drops[port] for name, port in ports.items()} if set(ports.values()) <= set(drops) else None


def subtract(before: Counters, after: Counters) -> Observed:
    """Return what happened from one to the other."""
    total = after.total_ticks - before.total_ticks
    idle = after.idle_ticks - before.idle_ticks
    steal = after.steal_ticks - before.steal_ticks
    overflows, queues = _subtract_overflows(before, after)
    return Observed(
        steal_share=steal / total if total else None,
        cpu_share=(total - idle - steal) / total if total else None,
        listen_overflows=overflows,
        listen_queues=queues,
    )


def _subtract_overflows(before: Counters, after: Counters) -> tuple[int | None, dict[str, int]]:
    """Return how many connections met a full listen queue, in all and by server."""
    if before.tcp_overflows is None or after.tcp_overflows is None:
        return None, {}
    refusals = after.unix_refusals - before.unix_refusals
    everybodys = after.tcp_overflows - before.tcp_overflows
    if before.tcp_drops is None or after.tcp_drops is None:
        return refusals + everybodys, {}
    # An overflow is in both counts. A socket drops for other reasons too: uWSGI's, which defers its accepts,
    # each connection's first empty packet. Source: tcp(7), TCP_DEFER_ACCEPT.
    queues = {
        name: min(drops - before.tcp_drops[name], everybodys) for name, drops in after.tcp_drops.items()
    }
    overflows = refusals + min(sum(queues.values()), everybodys)
    # nginx is refused by nobody else.
    queues["uwsgi"] = queues.get("uwsgi", 0) + refusals
    return overflows, queues


def parse_drops(text: str) -> dict[int, int]:
    """Return the drops of each listening port, of what `ss -ltmnH` prints.

    Source: ss(8), `--memory`.
    """
    drops: dict[int, int] = {}
    for port, count in _LISTENING.findall(text):
        # One port can have several sockets: one for each address, or for each process.
        drops[int(port)] = drops.get(int(port), 0) + int(count)
    return drops


def parse_ticks(line: str) -> tuple[int, int, int]:
    """Return the ticks in all, idle and stolen, of the first line of /proc/stat."""
    # user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in the first two already.
    ticks = [int(word) for word in line.split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4], ticks[7]


def parse_listen_overflows(text: str) -> int | None:
    """Return `ListenOverflows` of /proc/net/netstat, which has a line of names before each of numbers."""
    lines = text.splitlines()
    for names, numbers in zip(lines[::2], lines[1::2], strict=False):
        found = dict(zip(names.split(), numbers.split(), strict=False))
        if "ListenOverflows" in found:
            return int(found["ListenOverflows"])
    return None


def count_shared_processors(generator: Sequence[int] = ()) -> int:
    """Return on how many processors both the load's generator and the servers run.

    `generator` are those that the generator keeps to, none: any. The servers run where this process may.
    """
    servers = os.sched_getaffinity(0)
    return len(servers & set(generator) if generator else servers)


def judge_run(
    record: RunRecord, *, in_flight: Sequence[float], shared_processors: int, realtime: bool
) -> RunRecord:
    """Return the record with all that speaks against it: `saturated`, `invalid` and `limits`.

    `in_flight` are means over equal slices of the measured time, without the warm-up. A saturated run is not
    also called invalid for what saturation does.
    """
    saturation = _find_saturation(record, in_flight)
    limits = [*saturation, *_find_limits(record, shared_processors, realtime)]
    invalid = _find_faults(record, saturated=bool(saturation))
    return msgspec.structs.replace(
        record, saturated=bool(saturation), invalid=tuple(invalid), limits=tuple(limits)
    )


def _find_saturation(record: RunRecord, in_flight: Sequence[float]) -> list[Reason]:
    found = []
    if record.dropped:
        share = record.dropped / max(1, record.planned)
        found.append(f"{record.dropped} arrivals ({share:.1%}) found all connections waiting for an answer")
    if record.listen_overflows:
        queues = [name for name, count in record.listen_queues.items() if count]
        whose = f"of {' and '.join(queues)} " if queues else ""
        found.append(f"the listen queue {whose}was full {record.listen_overflows} times")
    if record.cpu_share is not None and record.cpu_share > BUSY:
        found.append(f"the processors were busy {record.cpu_share:.0%} of the time")
    third = len(in_flight) // 3
    if third:
        first, last = statistics.fmean(in_flight[:third]), statistics.fmean(in_flight[-third:])
        # A queue that no longer empties grows from end to end; chance makes short ones come and go.
        if last > 2 * first + 4:
            found.append(f"requests under way grew from {first:.1f} to {last:.1f}")
    return [Reason("saturated", text) for text in found]


def _find_faults(record: RunRecord, *, saturated: bool) -> list[Reason]:
    found = []
    median_ns = percentile_ns(decode_histogram(record.latency), 50)
    lag_ns = percentile_ns(decode_histogram(record.lag), 99)
    if median_ns is None or lag_ns is None:
        found.append(Reason("nothing answered", "no request was answered well"))
    elif lag_ns > MOST_LAG * median_ns:
        found.append(
            Reason(
                "generator lag",
                f"the generator's p99 lag is {lag_ns / 1e3:.0f} µs, {lag_ns / median_ns:.0%} of the median "
                f"latency; at most {MOST_LAG:.0%} may be",
            )
        )
    if record.steal_share is not None and record.steal_share > MOST_STEAL:
        found.append(
            Reason("steal", f"the machine's host took {record.steal_share:.1%} of the processors' time")
        )
    failed = record.failed / max(1, record.planned)
    if not saturated and failed > MOST_FAILED:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(record.failures.items()))
        found.append(Reason("failures", f"{failed:.1%} of the requests failed: {kinds}"))
    sampled, expected = record.in_flight, record.in_flight_expected
    if not saturated and sampled is not None and expected:
        off = abs(sampled / expected - 1)
        if off > MOST_LITTLE:
            found.append(
                Reason(
                    "Little's law",
                    f"{sampled:.2f} requests were under way; the arrival rate times a request's time is "
                    f"{expected:.2f}, {off:.0%} off",
                )
            )
    return found


def _find_limits(record: RunRecord, shared_processors: int, realtime: bool) -> list[Reason]:
    found = []
    if shared_processors:
        found.append(
            Reason(
                "shared processors",
                f"client and servers shared {shared_processors} processors: what the client takes, "
                "they wait for",
            )
        )
    found += _find_drift(record)
    if record.listen_overflows is not None and not record.listen_queues:
        found.append(
            Reason(
                "all programs' listen queues",
                "full listen queues were counted for all programs here together: `ss` tells them apart",
            )
        )
    if not realtime:
        found.append(
            Reason(
                "ordinary priority",
                "the generator waited its turn among the servers: it may run before them as root",
            )
        )
    if record.resolution_ns >= 1_000_000:
        found.append(
            Reason(
                "nginx's millisecond",
                "nginx's stamps are good to 1 ms: tiers that they bound are means with that in them",
            )
        )
    return found


def _find_drift(record: RunRecord) -> list[Reason]:
    """Tell a latency that went one way all the while; the run is left as it is."""
    known = [(part, mean_ns) for part, mean_ns in enumerate(record.tenths_ns) if mean_ns is not None]
    if len({mean_ns for _, mean_ns in known}) < 2:
        return []
    parts, means_ns = zip(*known, strict=True)
    if not stats.kendalltau(parts, means_ns).pvalue <= DRIFT_P:
        return []
    # The median of the slopes between all pairs of tenths, which one odd tenth does not move.
    change_ns = stats.theilslopes(means_ns, parts).slope * (len(record.tenths_ns) - 1)
    share = change_ns / statistics.fmean(means_ns)
    if abs(share) <= DRIFT:
        return []
    what = "rose" if share > 0 else "fell"
    return [
        Reason(
            "drift",
            f"the latency {what} by {abs(share):.0%} of its mean from its begin to its end",
        )
    ]
