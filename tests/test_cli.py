"""The command line as a whole: every command is documented, and mistakes end in a message."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from reqpath import cli


def walk(command: click.Command, context: click.Context, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the words of a command and of all below it."""
    yield words
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(below, context, (*words, name))


COMMANDS = list(walk(cli.group, click.Context(cli.group), ()))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_a_description_and_an_example_on_a_line_of_its_own(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli.group, [*words, "--help"])
    assert result.exit_code == 0
    lines = [line.strip() for line in result.output.splitlines()]
    after_example = lines[lines.index("Examples:") + 1]
    assert after_example.startswith(" ".join(("reqpath", *words)))
    assert "\\b" not in result.output


@pytest.mark.parametrize("words", [words for words in COMMANDS if words], ids=" ".join)
def test_every_option_says_what_it_does(words: tuple[str, ...]) -> None:
    command: click.Command | None = cli.group
    for word in words:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    assert command.help
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.opts for option in options if not option.help] == []


def run_main(*arguments: str, program: str = "reqpath.cli.main()", **environment: str) -> str:
    """Run the command line in a process of its own, which must succeed; return what it printed."""
    code = f"import sys, reqpath.cli\nsys.argv[0] = 'reqpath'\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | environment,
    )
    return done.stdout.decode(environment.get("PYTHONIOENCODING", "utf-8"))


def test_help_names_every_command_without_loading_any() -> None:
    heavy = ("reqpath.commands.", "numpy", "rich", "flask")
    listing = f"print([name for name in sys.modules if name.startswith({heavy!r})])"
    output = run_main("--help", program=f"try: reqpath.cli.main()\nfinally: {listing}")
    assert output.endswith("[]\n")
    assert [name for name in cli.COMMANDS if f"\n  {name} " not in output] == []


def test_prints_question_marks_for_what_the_locale_can_not_show() -> None:
    assert "server_name, ?" in run_main("config", "nginx", PYTHONIOENCODING="latin-1")
