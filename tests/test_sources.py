"""What no source file may hold, because it goes wrong only on some machines."""

from __future__ import annotations

import re
from pathlib import Path

SOURCES = sorted((Path(__file__).resolve().parent.parent / "src").rglob("*.py"))


def test_no_pattern_repeats_a_group_possessively() -> None:
    """Python before 3.11.5, so Debian 12's, matches too much then. Source: CPython's issue 106052."""
    possessive = re.compile(r"\)(?:[*+?]|\{[\d,]+\})\+")
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if possessive.search(line)
    ]
    assert found == []
