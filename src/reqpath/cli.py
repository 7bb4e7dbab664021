"""The command line: finds a command's module in `commands/` when it is called, so each loads only its own.

Errors that reqpath raises on purpose end the program with one message and exit code 2.
"""

from __future__ import annotations

import importlib
import io
import sys

import click

import reqpath
from reqpath.errors import ReqPathError

#: Command, and what its module in `commands/` is for. The module's `command` is a `click.Command`.
COMMANDS = {
    "demo": "Start nginx, uWSGI and a database, drive traffic, show where its time went.",
    "report": "Show where the time of the recorded requests went.",
    "compare": "Compare two sets of requests: what changed, and in which tier.",
    "top": "Show the last seconds live.",
    "serve": "Show the last minutes live in a browser, as the page of a report.",
    "trace": "Show one request as a waterfall.",
    "export": "Write requests for Perfetto, speedscope or a flame graph.",
    "collect": "Take nginx's log lines into the spool, send traces to a backend.",
    "bench": "Compare sockets and workers on private servers: what differs, in which tier.",
    "jaeger": "Start a Jaeger to look at single traces with.",
    "config": "Print the lines to include in nginx's and uWSGI's configuration.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"reqpath.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Without importing any of them.
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  reqpath demo              a first look, on private servers
  reqpath report            your app's requests, once `ReqPath(app)` is in it
""",
)
@click.version_option(reqpath.__version__, prog_name="reqpath")
def group() -> None:
    """Where did the time of this request go?"""


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Where the locale's encoding has no `µ` or `─`, a question mark stands for it.
            stream.reconfigure(errors="replace")
    try:
        group()
    except ReqPathError as error:
        click.echo(f"reqpath: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
