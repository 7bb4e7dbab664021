"""How the sections of a page stand below each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.table import Column, Table
from rich.text import Text


def stack_sections(sections: Iterable[RenderableType | None], width: int) -> RenderableType:
    """Put what there is of `sections` below each other, with an empty line between, `width` columns wide."""
    spaced: list[RenderableType] = []
    for section in sections:
        if section is not None:
            spaced += ["", section] if spaced else [section]
    return Constrain(Group(*spaced), width)


def build_notes(notes: Sequence[tuple[str, str]]) -> Table | None:
    """List what is to be known beside the figures, each with what it means; None when there is nothing."""
    if not notes:
        return None
    table = Table.grid(Column(width=1), Column(), padding=(0, 1, 0, 0))
    for what, meaning in notes:
        table.add_row("·", Text.assemble(what, (f": {meaning}", "dim")))
    return table
