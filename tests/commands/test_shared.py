"""What several commands do alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from reqpath.commands.shared import name_program


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "my venv" / "reqpath"
    path.parent.mkdir()
    path.touch(0o755)
    return path


def test_a_program_on_the_path_is_called_by_its_name(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr("sys.argv", [str(program), "demo"])
    assert name_program() == "reqpath"


@pytest.mark.parametrize("other", [False, True])
def test_one_that_a_shell_would_not_find_is_called_by_its_path(
    other: bool, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if other:
        (tmp_path / "reqpath").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", [str(program), "demo"])
    assert name_program() == f"'{program}'"


def test_a_module_that_is_run_has_the_programs_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/lib/reqpath/cli.py", "demo"])
    assert name_program() == "reqpath"
