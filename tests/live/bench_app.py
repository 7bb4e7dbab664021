"""Apps for a benchmark, of no use: one with reqpath in it, one without."""

from __future__ import annotations

from flask import Flask

from reqpath import ReqPath


def _create_plain(name: str) -> Flask:
    made = Flask(name)
    made.add_url_rule("/plain", "plain", lambda: "plain")
    made.add_url_rule("/fails", "fails", lambda: str(1 // 0))
    return made


plain = _create_plain("plain")
ReqPath(plain)
unrecorded = _create_plain("unrecorded")
