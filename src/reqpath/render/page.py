"""A page of HTML that is one file: style, scripts and data are in it, and it asks nothing of any network.

`build_page` makes it of a title, what is readable without a script, and data, which the page's own scripts in
`assets/` draw with D3 and Observable Plot. Nothing that comes from a request is ever markup: the data is JSON
in which no character has a meaning for HTML, and scripts put it on the page as text. A content security
policy names the scripts by their hashes and allows nothing else, so that the browser holds the page to it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any, Final

from reqpath.render.palette import PALETTE
from reqpath.render.units import clean

#: What is drawn with; as their files in `assets/` say, which have the licences beside them.
LIBRARIES: Final = (
    ("d3.min.js", "D3 7.9.2", "ISC", "Copyright 2010-2026 Mike Bostock"),
    ("plot.umd.min.js", "Observable Plot 0.6.17", "ISC", "Copyright 2020-2025 Observable, Inc."),
)
#: No text from a request is longer on a page.
_MAX_TEXT: Final = 2_000


def build_page(
    title: str, body: str, data: dict[str, Any], scripts: Sequence[str], *, live: bool = False
) -> str:
    """Build the page; `body` is HTML, `scripts` are names of files in `assets/`, run in their order.

    With `live` they may ask the server that the page came from, and still nobody else.
    """
    libraries = [_read_asset(name) for name, *_ in LIBRARIES]
    code = [*libraries, *(_read_asset(name) for name in scripts)]
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in code
    )
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:"
    style = _build_colours() + _read_asset("page.css")
    if live:
        policy += "; connect-src 'self'"
        style += _read_asset("live.css")
    licences = "\n".join(
        f"{name}, {licence} licence, {notice}: src/reqpath/render/assets/"
        for _, name, licence, notice in LIBRARIES
    )
    elements = "\n".join(f"<script>{each}</script>" for each in code)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(clean(title))}</title>\n<!--\n{licences}\n-->\n"
        f"<style>{style}</style>\n</head>\n<body>\n{body}\n"
        f'<script type="application/json" id="data">{encode_data(data)}</script>\n{elements}\n'
        "</body>\n</html>\n"
    )


def encode_data(data: Any) -> str:
    """Encode data as JSON that is safe within a script element, every text in it cleaned."""
    text = json.dumps(_clean_all(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _clean_all(value: Any) -> Any:
    if isinstance(value, str):
        text = clean(value, _MAX_TEXT)
        return f"{text}…" if len(value) > _MAX_TEXT else text
    if isinstance(value, dict):
        return {_clean_all(key): _clean_all(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        # Columns of numbers are long.
        if {int, float}.issuperset(map(type, value)):
            return value
        return [_clean_all(each) for each in value]
    return value


def _build_colours() -> str:
    return f":root{{{''.join(f'--tier-{tier}:{colour};' for tier, (_, colour) in PALETTE.items())}}}\n"


def _read_asset(name: str) -> str:
    return resources.files("reqpath.render").joinpath("assets", name).read_text(encoding="utf-8")
