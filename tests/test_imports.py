"""The arrows between the packages: data flows one way, and reading needs nothing of writing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import reqpath

SOURCE = Path(reqpath.__file__).parent
#: A package, and those of ours that it must not import.
FORBIDDEN = {
    "worker": ("collect", "traces", "analyse", "render", "commands", "bench", "servers", "cli"),
    "collect": ("traces", "analyse", "render", "commands", "bench", "servers", "cli"),
    "traces": ("worker", "collect", "analyse", "render", "commands", "bench", "servers", "cli"),
    "analyse": ("worker", "collect", "traces", "render", "commands", "bench", "servers", "cli"),
    "render": ("worker", "collect", "traces", "commands", "bench", "servers", "cli"),
    "servers": ("worker", "collect", "traces", "analyse", "render", "commands", "bench", "cli"),
    "bench": ("worker", "commands", "cli"),
    "commands": ("cli",),
}
TOP = ("worker", "collect", "traces", "analyse", "render", "commands", "bench", "servers", "cli")
#: Modules at the top that name something of a package for its users.
FACADES = {"__init__.py": {"worker"}, "wsgi.py": {"worker"}, "cli.py": set[str]()}


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the names of all modules that a file imports anywhere, those only for types left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_for_types = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in only_for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages_imported(path: Path) -> set[str]:
    parts = (name.split(".") for name in imported_modules(path))
    return {part[1] for part in parts if part[0] == "reqpath" and len(part) > 1}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_none_that_lies_beyond_it(package: str) -> None:
    for path in (SOURCE / package).rglob("*.py"):
        wrong = packages_imported(path) & set(FORBIDDEN[package])
        assert not wrong, f"{path.relative_to(SOURCE)} imports {wrong}"


def test_the_modules_at_the_top_import_no_package() -> None:
    for path in SOURCE.glob("*.py"):
        wrong = packages_imported(path) & set(TOP) - FACADES.get(path.name, set())
        assert not wrong, f"{path.name} imports {wrong}"


def test_nothing_imports_the_command_line() -> None:
    for path in SOURCE.rglob("*.py"):
        assert "cli" not in packages_imported(path), path


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after `statement`."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


#: Modules that need OpenTelemetry's SDK, of the extra `otlp`.
EXPORTING = {"collect.encode", "collect.spans", "collect.export", "collect.metrics"}
WRITING = {"flask", "werkzeug", "jinja2", "pymysql", "opentelemetry", "uwsgi", "gevent"}


def test_importing_reqpath_loads_next_to_nothing() -> None:
    heavy = WRITING | {"numpy", "rich", "click", "msgspec"}
    assert not loaded_by("import reqpath; reqpath.__version__") & heavy


def test_the_commands_list_loads_no_command() -> None:
    assert not loaded_by("import reqpath.cli") & (WRITING | {"numpy", "rich", "msgspec"})


@pytest.mark.parametrize(
    "module",
    [
        "reqpath.record",
        "reqpath.spool",
        "reqpath.tiers",
        "reqpath.path",
        *sorted(
            f"reqpath.{package}.{path.stem}"
            for package in ("collect", "traces", "analyse", "render")
            for path in (SOURCE / package).glob("*.py")
            if path.stem not in ("__init__", "mule") and f"{package}.{path.stem}" not in EXPORTING
        ),
    ],
)
def test_reading_needs_nothing_of_writing(module: str) -> None:
    assert not loaded_by(f"import {module}") & WRITING


def test_the_middleware_needs_no_flask_and_no_driver() -> None:
    loaded = loaded_by("import reqpath.wsgi")
    assert not loaded & {"flask", "werkzeug", "jinja2", "pymysql", "numpy", "rich", "click"}
    assert "opentelemetry" in loaded


def test_the_worker_loads_no_sdk() -> None:
    code = "import sys\nfrom reqpath import ReqPath\nprint(*[name for name in sys.modules if 'sdk' in name])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
