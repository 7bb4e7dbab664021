"""Have a Jaeger ready for the tests: `python tests/jaeger_program.py`.

Where Go is all there is to have one by, it is built, which takes some minutes once and leaves 120 MB in the
user's cache; the tests find it there. Printed is where the tests will have it from.
"""

from __future__ import annotations

import os
import sys
import tempfile

import click

from reqpath.errors import ReqPathError
from reqpath.servers.jaeger import build_jaeger, find_jaeger, jaeger_program_path


def main() -> int:
    """Build Jaeger where that is what there is to do."""
    source = find_jaeger(private=True)
    if source is None:
        click.echo("there is no jaeger program, no container engine that answers, and no Go", err=True)
        return 1
    if source.kind == "build":
        with tempfile.TemporaryDirectory(prefix="reqpath-jaeger-") as directory:
            log_path = os.path.join(directory, "build.log")
            try:
                build_jaeger(
                    source.where, jaeger_program_path(), log_path, lambda what: click.echo(what, err=True)
                )
            except ReqPathError as error:
                click.echo(error, err=True)
                return 1
    click.echo(jaeger_program_path() if source.kind == "build" else source.where)
    return 0


if __name__ == "__main__":
    sys.exit(main())
