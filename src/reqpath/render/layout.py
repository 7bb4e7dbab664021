"""How the sections of a page stand below each other."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.constrain import Constrain


def stack_sections(sections: Iterable[RenderableType | None], width: int) -> RenderableType:
    """Put what there is of `sections` below each other, with an empty line between, `width` columns wide."""
    spaced: list[RenderableType] = []
    for section in sections:
        if section is not None:
            spaced += ["", section] if spaced else [section]
    return Constrain(Group(*spaced), width)
