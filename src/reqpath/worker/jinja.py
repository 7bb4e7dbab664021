"""Jinja's time: finding, compiling and rendering templates, by hooks on the `jinja2` classes.

On the classes, because `from flask import render_template` copies the function into the app's modules, and
because an app may render without Flask's help.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from reqpath.worker.guard import note_fault
from reqpath.worker.recorder import TEMPLATE, current

_MARK = "__reqpath__"


def install() -> bool:
    """Hook Jinja; return whether it is hooked. A second time does nothing."""
    try:
        from jinja2 import Environment, Template
    except ImportError:
        return False
    try:
        for owner, name in (
            (Environment, "get_template"),
            (Environment, "select_template"),
            (Environment, "from_string"),
            (Template, "render"),
        ):
            _replace(owner, name, timed)
        _replace(Template, "generate", _timed_steps)
    except Exception:
        note_fault("hooking Jinja")
        return False
    return True


def _replace(owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(owner, name)
    if not hasattr(original, _MARK):
        wrapped = wrap(original)
        setattr(wrapped, _MARK, True)
        setattr(owner, name, wrapped)


def timed(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `original` with its time counted as the template's."""

    @functools.wraps(original)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        recorder = current.get()
        if recorder is None or not recorder.is_own_thread():
            return original(*args, **kwargs)
        previous = recorder.switch(TEMPLATE)
        try:
            return original(*args, **kwargs)
        finally:
            recorder.switch(previous)

    return hooked


def _timed_steps(original: Callable[..., Iterator[str]]) -> Callable[..., Iterator[str]]:
    """Count a streamed template's steps; what happens between them is the server's."""

    @functools.wraps(original)
    def steps(*args: Any, **kwargs: Any) -> Iterator[str]:
        pieces = original(*args, **kwargs)
        while True:
            recorder = current.get()
            if recorder is None or not recorder.is_own_thread():
                yield from pieces
                return
            previous = recorder.switch(TEMPLATE)
            try:
                piece = next(pieces)
            except StopIteration:
                return
            finally:
                recorder.switch(previous)
            yield piece

    return steps
