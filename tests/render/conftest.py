"""The golden files: what a render is compared with.

`REQPATH_RECORD_GOLDEN=1 pytest tests/render` records them anew; look at the difference before
you commit it.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def compare_golden() -> Callable[[str, str], None]:
    """Compare text with the golden file of a name, or record it there."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("REQPATH_RECORD_GOLDEN"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.read_text() == text

    return compare


@pytest.fixture
def draw() -> Callable[..., str]:
    """Return what a render function prints on a console of some width, without or with colour."""

    def print_to_text(render: Callable[[Console], None], width: int = 80, *, colour: bool = False) -> str:
        output = io.StringIO()
        console = Console(
            file=output,
            width=width,
            force_terminal=colour,
            color_system="256" if colour else None,
            legacy_windows=False,
            _environ={},
        )
        render(console)
        # Cells of a table are padded; what can't be seen is not compared.
        return "\n".join(line.rstrip() for line in output.getvalue().splitlines()) + "\n"

    return print_to_text
