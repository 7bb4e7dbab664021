"""The documentation says what the code does."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from reqpath import tiers
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
