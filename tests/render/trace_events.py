"""Reads a trace as its viewers do, and holds it to what the Trace Event Format says.

Source: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU; that Perfetto takes
only slices that nest, and knows a thread by its number alone: https://perfetto.dev/docs/faq.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]

COMMON = {"ph": str, "name": str, "pid": int}
FIELDS: dict[str, dict[str, Any]] = {
    "X": {"tid": int, "ts": (int, float), "dur": (int, float), "cat": str},
    "M": {"args": dict},
    "C": {"ts": (int, float), "args": dict},
    "i": {"tid": int, "ts": (int, float), "s": str, "args": dict},
    "s": {"tid": int, "ts": (int, float), "id": int, "cat": str},
    "t": {"tid": int, "ts": (int, float), "id": int, "cat": str},
    "f": {"tid": int, "ts": (int, float), "id": int, "cat": str, "bp": str},
}
OPTIONAL = {"X": {"args"}, "M": {"tid"}, "i": {"cat"}}


@dataclass
class Trace:
    """What a viewer shows."""

    document: dict[str, Any]
    processes: dict[int, str] = field(default_factory=dict)
    #: By its number: (process's name, own name).
    tracks: dict[int, tuple[str, str]] = field(default_factory=dict)
    #: By the number of the track, in the order of time: (depth, event).
    slices: dict[int, list[tuple[int, Event]]] = field(default_factory=dict)
    flows: dict[int, list[Event]] = field(default_factory=dict)
    #: By (process's name, counter): (ts, value).
    counters: dict[tuple[str, str], list[tuple[float, int]]] = field(default_factory=dict)
    instants: list[Event] = field(default_factory=list)

    def on(self, process: str, track: str) -> list[tuple[int, str, int, int]]:
        """Return the slices of a track: depth, name, start from the trace's first one and duration, ns."""
        first = min(to_ns(each["ts"]) for slices in self.slices.values() for _, each in slices)
        return [
            (depth, each["name"], to_ns(each["ts"]) - first, to_ns(each["dur"]))
            for number, names in self.tracks.items()
            if names == (process, track)
            for depth, each in self.slices[number]
        ]


def to_ns(us: float) -> int:
    """Return whole ns, to which a µs in a double is exact."""
    return round(us * 1_000)


def read_trace(data: bytes) -> Trace:
    """Read a trace; fail where a viewer could not show all of it."""
    document = json.loads(data)
    assert document["displayTimeUnit"] in ("ms", "ns")
    trace = Trace(document)
    for event in document["traceEvents"]:
        expected = COMMON | FIELDS[event["ph"]]
        for name, kind in expected.items():
            assert isinstance(event[name], kind), (name, event)
        assert not event.keys() - expected.keys() - OPTIONAL.get(event["ph"], set()), event
        take(trace, event)
    assert len(trace.processes.keys() | trace.tracks.keys()) == len(trace.processes) + len(trace.tracks)
    for slices in trace.slices.values():
        nest(slices)
    for number, steps in trace.flows.items():
        check_flow(trace, number, steps)
    for steps_of_counter in trace.counters.values():
        assert steps_of_counter == sorted(steps_of_counter, key=lambda step: step[0])
        assert all(value >= 0 for _, value in steps_of_counter)
        assert steps_of_counter[-1][1] == 0
    return trace


def take(trace: Trace, event: Event) -> None:
    phase, process = event["ph"], event["pid"]
    if phase == "M":
        value = event["args"]["name" if event["name"].endswith("_name") else "sort_index"]
        if event["name"] == "process_name":
            assert trace.processes.setdefault(process, value) == value
        elif event["name"] == "thread_name":
            assert event["tid"] not in trace.tracks
            trace.tracks[event["tid"]] = (trace.processes[process], value)
        else:
            assert event["name"] in ("process_sort_index", "thread_sort_index")
            assert isinstance(value, int)
        return
    assert process in trace.processes
    if phase == "C":
        (value,) = event["args"].values()
        trace.counters.setdefault((trace.processes[process], event["name"]), []).append((event["ts"], value))
        return
    assert trace.tracks[event["tid"]][0] == trace.processes[process]
    if phase == "X":
        assert event["dur"] >= 0
        trace.slices.setdefault(event["tid"], []).append((0, event))
    elif phase == "i":
        assert event["s"] in "gpt"
        trace.instants.append(event)
    else:
        trace.flows.setdefault(event["id"], []).append(event)


def nest(slices: list[tuple[int, Event]]) -> None:
    """Find each slice's depth; viewers sort by start, and of one start take the file's order."""
    slices.sort(key=lambda entry: to_ns(entry[1]["ts"]))
    ends: list[int] = []
    for index, (_, event) in enumerate(slices):
        start_ns, duration_ns = to_ns(event["ts"]), to_ns(event["dur"])
        while ends and ends[-1] <= start_ns:
            ends.pop()
        assert not ends or start_ns + duration_ns <= ends[-1], f"crosses the slice around it: {event}"
        slices[index] = (len(ends), event)
        ends.append(start_ns + duration_ns)


def check_flow(trace: Trace, number: int, steps: list[Event]) -> None:
    assert [step["ph"] for step in steps] == ["s", *["t"] * (len(steps) - 2), "f"], number
    assert steps[-1]["bp"] == "e"
    instants = [to_ns(step["ts"]) for step in steps]
    assert instants == sorted(instants)
    for step, at_ns in zip(steps, instants, strict=True):
        assert any(
            to_ns(event["ts"]) <= at_ns <= to_ns(event["ts"]) + to_ns(event["dur"])
            for _, event in trace.slices[step["tid"]]
        ), f"an arrow begins or ends where nothing is: {step}"
