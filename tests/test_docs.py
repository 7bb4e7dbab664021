"""The documentation says what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from reqpath import conventions, tiers
from reqpath.bench import figures, plan, result, statistics
from reqpath.settings import Settings

DOCS = Path(__file__).parents[1] / "docs"


def test_every_segment_is_documented_with_what_it_excludes() -> None:
    text = (DOCS / "tiers.md").read_text()
    for segment in tiers.SEGMENTS:
        assert f"| {segment.tier} | `{segment.name}` | {segment.meaning} | {segment.excludes} |" in text


def test_every_stamp_is_documented_with_how_to_get_it() -> None:
    text = (DOCS / "tiers.md").read_text()
    for name, (segments, remedy) in tiers.STAMPS.items():
        assert f"| `{name}` | {', '.join(f'`{segment}`' for segment in segments)} | {remedy} |" in text


def test_every_setting_is_documented() -> None:
    text = (DOCS / "how-it-works.md").read_text()
    for field in fields(Settings):
        assert f"\n| `{field.name}` |" in text


def names_on_spans() -> Iterator[str]:
    """Yield all of reqpath's own names in `conventions`; of a prefix what is documented for it."""
    patterns = {
        conventions.PREFIX: "reqpath.span",
        conventions.OWN: "reqpath.own.…",
        conventions.OF_APP: "reqpath.app.…",
        conventions.PHASE: "reqpath.phase.<name>_ns",
    }
    for constant, value in vars(conventions).items():
        if not constant.isupper():
            continue
        for name in [value] if isinstance(value, str) else value if isinstance(value, dict) else ():
            yield patterns.get(name, name)
    for mapping in (conventions.WORKER_INSTANTS, conventions.NGINX_INSTANTS):
        yield from mapping.values()
    yield from (f"reqpath.{field}" for field in conventions.INFO_FIELDS)
    yield from ("reqpath.<segment>_ns", "reqpath.version", "reqpath.created_ns", "reqpath.concurrency")


def test_every_attribute_of_the_spans_is_documented_and_no_other() -> None:
    text = (DOCS / "spans.md").read_text()
    documented = set(re.findall(r"`(reqpath\.[a-z_.<>…]+)(?: = \w+)?`", text))
    known = {name for name in names_on_spans() if name.startswith(conventions.PREFIX)}
    # Examples of a pattern.
    assert documented - {"reqpath.queue_ns", "reqpath.mysql.query_ns", "reqpath.own.<name>"} == known


def test_every_kind_of_span_is_documented() -> None:
    text = (DOCS / "spans.md").read_text()
    for role in conventions.ROLES:
        assert f"\n| `{role}` | " in text


@pytest.mark.parametrize(
    "kind",
    [
        *(result.Result, result.RunRecord, result.Slice, result.Host, result.Capacity, result.CapacityStep),
        *(result.Configuration, result.Head, result.Rates, result.Reason),
        *(plan.Plan, plan.Workload, plan.Cell, plan.Load),
        *(figures.ResultComparison, figures.CellShift),
        *(figures.Comparison, figures.Part, figures.Pair, figures.Question, figures.Control, figures.Remark),
        statistics.Estimate,
    ],
)
def test_every_field_of_a_benchmark_is_documented(kind: type) -> None:
    text = (DOCS / "bench-json.md").read_text()
    missing = [name for name in kind.__annotations__ if f"`{name}`" not in text]
    assert not missing
