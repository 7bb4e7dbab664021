"""Answers with what nginx and uWSGI told it; `/hang` waits for a line that never comes."""

from __future__ import annotations

import json
from typing import Any

_PREFIXES = ("REQPATH_", "HTTP_TRACE", "HTTP_X_", "HTTP_REQPATH")


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer with the params that matter, as JSON."""
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "application/json"), ("Cache-Control", "max-age=60")])
    told = {name: value for name, value in environ.items() if name.startswith(_PREFIXES)}
    return [json.dumps(told).encode()]
