"""The one guard of the request path: what breaks in reqpath is counted and said once, and the app goes on."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter

_logger = logging.getLogger("reqpath")
# Reentrant: the collector of cycles may end a request, and that fail, anywhere.
_lock = threading.RLock()
#: Faults by the place they happened in; the only module-level state besides the current recorder.
faults: Counter[str] = Counter()


def note_fault(place: str) -> None:
    """Count the exception being handled; log it with its stack the first time that `place` fails.

    Call it in an `except` block.
    """
    # Faults are no part of a healthy request, so a lock held for an increment is no wait.
    with _lock:
        faults[place] += 1
        first = faults[place] == 1
    if first:
        # A handler of the app's may raise, too.
        with contextlib.suppress(Exception):
            _logger.exception("reqpath failed in %s; the request is not affected. Said once.", place)


def note_problem(message: str) -> None:
    """Count and log a problem that has its own words, such as a spool that can't be written."""
    with _lock:
        faults[message] += 1
        first = faults[message] == 1
    if first:
        with contextlib.suppress(Exception):
            _logger.error("reqpath: %s", message)
