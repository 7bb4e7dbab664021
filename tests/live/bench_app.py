"""Apps for a benchmark, of no use: one with reqpath in it, one without."""

from __future__ import annotations

import mmap
import time

from flask import Flask

from reqpath import ReqPath

#: Shared by the processes that are forked from this one: whether a request was served.
_served = mmap.mmap(-1, 1)


def _fail_later() -> str:
    if _served[0]:
        raise RuntimeError("only the first request is served")
    _served[0] = 1
    return "served"


def _dawdle() -> str:
    time.sleep(0.05)
    return "slow"


def _create_plain(name: str) -> Flask:
    made = Flask(name)
    made.add_url_rule("/plain", "plain", lambda: "plain")
    made.add_url_rule("/fails", "fails", lambda: str(1 // 0))
    made.add_url_rule("/fails-later", "fails_later", _fail_later)
    # Four at a time: eighty in a second.
    made.add_url_rule("/slow", "slow", _dawdle)
    return made


plain = _create_plain("plain")
ReqPath(plain)
unrecorded = _create_plain("unrecorded")
