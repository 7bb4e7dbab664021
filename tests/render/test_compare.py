"""A comparison as a sentence, as a terminal page, as JSON and as a page's data."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from reqpath.analyse import differences
from reqpath.analyse.differences import Comparison
from reqpath.analyse.estimate import Estimate
from reqpath.path import RequestPath
from reqpath.render.compare import comparison_to_json, list_notes, render_comparison, render_sentence
from reqpath.render.page import encode_data
from reqpath.render.page_compare import build_comparison_data, render_comparison_page
from tests.analyse.comparisons import compare, make_traffic
from tests.factories import make_path

Draw = Callable[..., str]
Compare = Callable[[str, str], None]
DOCS = Path(__file__).parents[2] / "docs" / "compare.md"


def render(comparison: Comparison) -> Callable[[Console], None]:
    return lambda console: render_comparison(comparison, console)


def make_slower() -> Comparison:
    return compare(make_traffic(1), make_traffic(2, query_ns=5_000_000))


def make_bad_day() -> Comparison:
    """Return a comparison in which everything that can be unlike is."""
    paths = make_traffic(2, slow_share=0.3, transport="tcp", resolution_ns=1_000_000)
    for number, path in enumerate(paths):
        assert path.worker is not None
        path.worker.accept_ns = None
        if number == 7:
            paths[number] = RequestPath(path.worker, path.info, None)
    return compare(make_traffic(1), paths, traces=True)


CASES: dict[str, Callable[[], Comparison]] = {
    "slower": make_slower,
    "same": lambda: compare(make_traffic(1), make_traffic(1)),
    "mix": lambda: compare(make_traffic(1), make_traffic(2, slow_share=0.4)),
    "few": lambda: compare(make_traffic(1, 12), make_traffic(2)),
    "bad-day": make_bad_day,
    "nothing": lambda: compare([], []),
}


@pytest.mark.parametrize("name", CASES)
def test_the_page_is_as_recorded(name: str, draw: Draw, compare_golden: Compare) -> None:
    compare_golden(f"compare-{name}.txt", draw(render(CASES[name]())))


def test_a_narrow_page_is_as_recorded(draw: Draw, compare_golden: Compare) -> None:
    compare_golden("compare-slower-narrow.txt", draw(render(make_slower()), width=50))


def test_the_page_in_colour_is_as_recorded(draw: Draw, compare_golden: Compare) -> None:
    compare_golden("compare-slower.ansi", draw(render(make_slower()), colour=True))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_no_line_is_longer_than_the_terminal(name: str, width: int, draw: Draw) -> None:
    page = draw(render(CASES[name]()), width=width)
    assert max(map(cell_len, page.splitlines())) <= min(width, 100)


def test_the_first_line_says_what_changed_and_where(draw: Draw) -> None:
    first = draw(render(make_slower()), width=200).splitlines()[0]
    assert re.match(r"B is [\d.]+ ms \[[\d.]+, [\d.]+\] slower than A's [\d.]+ ms: ", first)
    assert "of it in mysql.query" in first


def estimates(value_ns: float, reach_ns: float | None) -> Estimate:
    if reach_ns is None:
        return Estimate(4, value_ns, None, None, None, None)
    return Estimate(24, value_ns, value_ns - reach_ns, value_ns + reach_ns, reach_ns, 0.01)


def change(comparison: Comparison, **total: Any) -> Comparison:
    return dataclasses.replace(comparison, total=dataclasses.replace(comparison.total, **total))


def test_sentences_of_each_outcome() -> None:
    slower = make_slower()
    assert render_sentence(slower).endswith(" of it in mysql.query.")
    faster = render_sentence(compare(make_traffic(2, query_ns=5_000_000), make_traffic(1)))
    assert re.search(r"^B is [\d.]+ ms \[[\d.]+, [\d.]+\] faster than A's", faster)
    same = render_sentence(CASES["same"]())
    assert re.fullmatch(r"No difference between A and B above [\d.]+ ms of 1[\d.]+ ms\.", same)
    few = render_sentence(CASES["few"]())
    assert few.startswith(
        "No verdict: A has 12 requests to compare, and at least 30 are needed. So far B's mean"
    )
    mix = render_sentence(CASES["mix"]())
    assert "It comes from another mix of routes; within routes, no difference above" in mix
    hidden = change(CASES["same"](), within=estimates(2e6, 1e5), mix=estimates(-2e6, 1e5))
    assert "Within routes it is +2.00 ms [+1.90, +2.10]" in render_sentence(hidden)
    both = change(slower, within=estimates(2e6, 1e5), mix=estimates(1e6, 1e5))
    assert "Of it +1.00 ms [+0.90, +1.10] is another mix of routes" in render_sentence(both)
    # One that the coarser stamps could have made.
    coarse = change(CASES["same"](), floor_ns=5_000_000)
    assert render_sentence(coarse).startswith("No difference between A and B above 5.0 ms")


def test_what_hides_in_a_whole_without_difference_is_named() -> None:
    comparison = CASES["same"]()
    parts = tuple(
        dataclasses.replace(part, difference=estimates(sign * 1e6, 1e5), differs=True) if sign else part
        for part, sign in zip(comparison.parts, [1, -1, *[0] * (len(comparison.parts) - 2)], strict=True)
    )
    text = render_sentence(dataclasses.replace(comparison, parts=parts))
    assert "; but +1.00 ms [+0.90, +1.10] in nginx.receive and -1.00 ms [-1.10, -0.90] in queue." in text
    different = make_slower()
    against = tuple(
        dataclasses.replace(part, difference=estimates(-1e6, 1e5), differs=True)
        if part.name == "queue"
        else part
        for part in different.parts
    )
    text = render_sentence(dataclasses.replace(different, parts=against))
    assert text.endswith(", against -1.00 ms [-1.10, -0.90] in queue.")
    nowhere = tuple(dataclasses.replace(part, differs=False) for part in different.parts)
    assert render_sentence(dataclasses.replace(different, parts=nowhere)).endswith(", in no single segment.")


def test_what_is_not_compared_is_named_with_how_to_get_it() -> None:
    notes = dict(list_notes(make_bad_day()))
    assert notes["queue is unknown in B"] == "its time is in both residuals"
    assert notes["missing accept"].startswith("to have it, add `route-run = addvar:")
    assert "left out 1 request of B" in notes
    assert "A is read from traces" in notes
    assert notes["nginx to uWSGI: unix in A, tcp in B"] == "the difference can be due to this"
    assert any(note.startswith("nginx's stamps are good to: 1 µs in A, 1 ms in B") for note in notes)


def test_hostile_routes_and_titles_are_text(draw: Draw) -> None:
    text = "\x1b[31m[bold]<script>\u202e"
    paths = [make_path(number=n, at_ns=n * 10_000_000, route=f"/{text}", transport="unix") for n in range(60)]
    page = draw(render(compare(paths, paths)), width=100)
    assert "\x1b" not in page
    assert "<script>" in page
    html = render_comparison_page(compare(paths, paths))
    assert "<script>\u202e" not in html


@pytest.mark.parametrize("name", CASES)
def test_json_is_json_and_has_the_sentence(name: str) -> None:
    comparison = CASES[name]()
    document = json.loads(json.dumps(comparison_to_json(comparison), allow_nan=False))
    assert document["sentence"] == render_sentence(comparison)
    assert document["version"] == 1
    assert json.loads(encode_data(build_comparison_data(comparison)))["comparison"] == document


@pytest.mark.parametrize(
    "kind",
    [
        *(
            differences.Comparison,
            differences.Side,
            differences.SliceMean,
            differences.Part,
            differences.Changed,
        ),
        *(differences.RouteDifference, differences.RoutePart, differences.Unknown, Estimate),
    ],
)
def test_every_field_is_documented(kind: type) -> None:
    text = DOCS.read_text()
    assert [name for name in kind.__annotations__ if f"`{name}`" not in text] == []


@given(st.floats(-1e10, 1e10), st.none() | st.floats(0, 1e9))
def test_any_total_has_a_sentence(value_ns: float, reach_ns: float | None) -> None:
    comparison = change(SLOWER, difference=estimates(value_ns, reach_ns))
    assert render_sentence(comparison).endswith(".")


SLOWER = make_slower()
