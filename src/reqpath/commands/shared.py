"""What several commands do alike: the extra that they need, the terminal, what is being started."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import click

from reqpath.errors import MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console


#: A path as an argument. What is wrong with it is told by who reads it, with what to do about it.
ANY_PATH: Final = click.Path(readable=False)
#: Between two looks at servers that are up.
_ALIVE_S: Final = 0.5


def check_extra(extra: str, modules: Sequence[str]) -> None:
    """Raises: MissingExtraError when one of the modules that an extra brings is not installed."""
    for module in modules:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            # A package around it is not there.
            found = None
        if found is None:
            raise MissingExtraError(extra, module)


def open_console() -> Console:
    """Return the console on the standard output; a character that its encoding lacks is a question mark."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console()


def name_program() -> str:
    """Return by what a shell finds this program: its name, or the path that it was started by."""
    started = sys.argv[0]
    if os.path.basename(started) != "reqpath":
        return "reqpath"
    found = shutil.which("reqpath")
    if found is not None and os.path.samefile(found, started):
        return "reqpath"
    return shlex.quote(started)


@contextlib.contextmanager
def show_start(talk: Console) -> Iterator[Callable[[str], None]]:
    """Yield what is told of each thing before it is started."""
    if not talk.is_terminal:
        yield lambda what: talk.print(f"starting {what}", highlight=False)
        return
    with talk.status("starting") as status:
        yield lambda what: status.update(f"starting {what}")


def stay_until_ctrl_c(tell: Callable[[], None], check_alive: Callable[[], None]) -> None:
    """Tell what is up and stay until Ctrl-C, which can come as soon as it is told.

    Raises: ServerError when it ends by itself, which is `check_alive`'s to say.
    """
    with contextlib.suppress(KeyboardInterrupt):
        tell()
        while True:
            check_alive()
            time.sleep(_ALIVE_S)
