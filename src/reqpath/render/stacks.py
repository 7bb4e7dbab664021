"""Stacks of the tiers for flame graphs: speedscope's JSON, and folded lines.

The layer below is `analyse.stacks`. A folded line is one stack and its time in ns::

    GET /items;mysql;mysql.query;SELECT name FROM items 90000000

Source: https://github.com/jlfwong/speedscope/wiki/Importing-from-custom-sources for speedscope's file format,
https://github.com/brendangregg/FlameGraph for folded lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

import reqpath
from reqpath.analyse.stacks import Stack
from reqpath.render.units import clean

_SCHEMA: Final = "https://www.speedscope.app/file-format-schema.json"
_LABEL: Final = 1_000


def render_folded(stacks: Mapping[Stack, int]) -> Iterator[bytes]:
    """Yield the lines, sorted; a negative time, which no graph can show, is left out."""
    lines: dict[str, int] = {}
    for stack, duration_ns in stacks.items():
        # A semicolon ends a frame.
        line = ";".join(clean(frame, _LABEL).replace(";", ",") for frame in stack)
        lines[line] = lines.get(line, 0) + duration_ns
    for line, duration_ns in sorted(lines.items()):
        if duration_ns > 0:
            yield f"{line} {duration_ns}\n".encode()


def render_speedscope(stacks: Mapping[Stack, int], name: str) -> Iterator[bytes]:
    """Yield speedscope's JSON with one profile, the routes in it sorted by their time."""
    frames: dict[str, int] = {}
    by_route: dict[str, int] = {}
    for stack, duration_ns in stacks.items():
        by_route[stack[0]] = by_route.get(stack[0], 0) + duration_ns
    samples, weights = [], []
    # In the order of time, speedscope's first view, each frame shall be one block.
    for stack, duration_ns in sorted(stacks.items(), key=lambda item: (-by_route[item[0][0]], item[0])):
        if duration_ns > 0:
            samples.append([frames.setdefault(clean(frame, _LABEL), len(frames)) for frame in stack])
            weights.append(duration_ns)
    document: dict[str, Any] = {
        "$schema": _SCHEMA,
        "name": name,
        "exporter": f"reqpath {reqpath.__version__}",
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": frame} for frame in frames]},
        "profiles": [
            {
                "type": "sampled",
                "name": name,
                "unit": "nanoseconds",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        ],
    }
    yield msgspec.json.encode(document)
