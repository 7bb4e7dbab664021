"""A comparison as a page: the figures of `--json`, drawn as waterfalls of differences.

`render_comparison_page(comparison)` is the whole; `build_comparison_data` is what the page's script gets::

    {"comparison": {as --json prints}, "palette": {…}, "meanings": {…}, "notes": […], …}
"""

from __future__ import annotations

from html import escape
from typing import Any

from reqpath.analyse.differences import Comparison, Side
from reqpath.render.compare import comparison_to_json, describe_extent, list_notes
from reqpath.render.page import build_page
from reqpath.render.palette import PALETTE
from reqpath.render.units import clean, format_instant, format_span
from reqpath.tiers import SEGMENTS


def render_comparison_page(comparison: Comparison) -> str:
    """Render the page."""
    data = build_comparison_data(comparison)
    sentence = escape(clean(data["comparison"]["sentence"]))
    body = (
        f'<main id="page">\n<h1 id="sentence">{sentence}</h1>\n'
        "<noscript><p>This page draws its figures by a script of its own, which this browser or viewer does "
        "not run. Open the file in a browser.</p></noscript>\n</main>"
    )
    return build_page("reqpath compare", body, data, ("parts.js", "compare.js"))


def build_comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Return what the page's script draws."""
    return {
        "comparison": comparison_to_json(comparison),
        "palette": {tier: letter for tier, (letter, _) in PALETTE.items()},
        "meanings": {segment.name: [segment.meaning, segment.excludes] for segment in SEGMENTS},
        "extent": describe_extent(comparison),
        "when": [_describe_time(side) for side in (comparison.first, comparison.second)],
        "notes": list_notes(comparison),
    }


def _describe_time(side: Side) -> str:
    if side.first_ns is None or side.last_ns is None:
        return "no requests"
    first = format_instant(side.first_ns, milliseconds=False)
    return f"{format_span(side.last_ns - side.first_ns)} from {first}"
