"""The sentence that says what dominates a breakdown, or why that can't be said.

Half of the slowest 1 % is mysql.query, in the main on GET /orders: 41 ms of 80 ms. At the median it is
flask.view: 2.1 ms of 4.0 ms.
"""

from __future__ import annotations

from typing import Final

from reqpath.analyse.figures import Breakdown, Group, SegmentFigures
from reqpath.render.units import clean, format_count, format_duration, format_share
from reqpath.tiers import STAMPS

#: With fewer requests, the slowest hundredth is a single one and no slice.
FEW_REQUESTS: Final = 200
#: A segment with less of the slice than this does not dominate it.
DOMINANT_SHARE: Final = 0.3
#: With more of the total time unattributed than this, that comes first.
UNKNOWN_LIMIT: Final = 0.1


def render_sentence(breakdown: Breakdown) -> str:
    """Say in one or two sentences what the slowest requests' time goes into, against the median ones'."""
    whole = breakdown.whole
    if not whole.requests:
        return "No requests yet."
    text = _describe_slowest(whole)
    if whole.residual.absolute_share > UNKNOWN_LIMIT:
        return f"{_describe_unknown(whole)} Of the rest: {text}"
    return text


def _describe_unknown(whole: Group) -> str:
    share = format_share(whole.residual.absolute_share)
    text = f"{share} of the time is not attributed"
    if whole.missing_stamps:
        stamp, count = max(whole.missing_stamps.items(), key=lambda item: item[1])
        if stamp in STAMPS:
            of = "all" if count == whole.requests else f"{count:,} of {whole.requests:,}"
            return f"{text}: the stamp {stamp} is missing in {of} requests."
    if whole.skewed:
        return (
            f"{text}: stamps contradict each other in {format_count(sum(whole.skewed.values()), 'segment')}."
        )
    return f"{text}."


def _describe_slowest(whole: Group) -> str:
    few = whole.requests < FEW_REQUESTS
    slow = _largest(whole, slowest=True)
    median = _largest(whole, slowest=False)
    if not slow:
        return "No segment's time is known."
    first, first_ns = slow[0]
    share = first_ns / whole.slowest.mean_ns if whole.slowest.mean_ns else 0.0
    of = _of(first_ns, first, whole.slowest.mean_ns, whole)
    if few:
        text = (
            f"{format_count(whole.requests, 'request')}: too few to speak of their slowest 1 %. "
            f"{'The slowest one' if whole.slowest.requests == 1 else 'The slowest'} spent the most in "
            f"{first.name}{_where(first)}: {of}."
        )
    elif share < DOMINANT_SHARE:
        others = f", then {slow[1][0].name}" if len(slow) > 1 else ""
        text = f"Nothing dominates the slowest 1 %: the most is {first.name} with {of}{others}."
    else:
        text = f"{_part(share)} of the slowest 1 % is {first.name}{_where(first)}: {of}."
    if not median or few:
        return text
    typical, typical_ns = median[0]
    if typical.name == first.name and share >= DOMINANT_SHARE:
        text += " At the median it is the same"
    elif whole.median.mean_ns and typical_ns / whole.median.mean_ns < DOMINANT_SHARE:
        text += f" At the median the most is {typical.name}"
    else:
        text += f" At the median it is {typical.name}"
    return f"{text}: {_of(typical_ns, typical, whole.median.mean_ns, whole)}."


def _largest(whole: Group, *, slowest: bool) -> list[tuple[SegmentFigures, float]]:
    """Return the segments with time in a slice, the largest first."""
    pairs = [(segment, segment.slowest_ns if slowest else segment.median_ns) for segment in whole.segments]
    return sorted(((segment, ns) for segment, ns in pairs if ns), key=lambda pair: -pair[1])


def _where(segment: SegmentFigures) -> str:
    route, share = segment.slowest_route, segment.slowest_route_share
    if route is None or share < 0.5:
        return " over several routes" if route is not None else ""
    return f"{' on' if share > 0.95 else ', in the main on'} {clean(route, 200)}"


def _of(ns: float, segment: SegmentFigures, total_ns: float, whole: Group) -> str:
    part = format_duration(ns, segment.resolution_ns, digits=2)
    return f"{part} of {format_duration(total_ns, whole.resolution_ns, digits=2)}"


def _part(share: float) -> str:
    if share >= 0.95:
        return "Nearly all"
    if 0.47 <= share <= 0.53:
        return "Half"
    return format_share(share)
