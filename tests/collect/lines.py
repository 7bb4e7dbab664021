"""Lines as nginx sends them, for the tests to vary."""

from __future__ import annotations

import json

TRACE_ID = "14e4b39ea968aa58e7c8f1e0e2c0d045"
SPAN_ID = "14e4b39ea968aa58"

#: What nginx 1.22 sent for a request to a uWSGI on a Unix socket, at its stock resolution.
FIELDS = {
    "trace": TRACE_ID,
    "span": SPAN_ID,
    "parent": "",
    "flags": "01",
    "start": "1795457262.422-0.002",
    "pass": "1795457262.422",
    "end": "1795457262.447",
    "status": "200",
    "method": "GET",
    "host": "shop.example",
    "path": "/goods/7",
    "protocol": "HTTP/1.1",
    "scheme": "https",
    "client": "203.0.113.9",
    "agent": "curl/7.88.1",
    "received": "78",
    "sent": "262",
    "cache": "",
    "upstream": "unix:/run/shop.sock",
    "upstream_status": "200",
    "connect": "0.000",
    "header": "0.024",
    "response": "0.025",
}


def build_line(header: str = "<190>Nov 23 18:07:42 reqpath: ", **changes: str) -> bytes:
    """Return a line with some fields changed; `passed` stands for `pass`."""
    fields = FIELDS | changes
    if "passed" in fields:
        fields["pass"] = fields.pop("passed")
    return (header + json.dumps(fields, separators=(",", ":"), ensure_ascii=False)).encode()


def build_numbered_line(number: int) -> bytes:
    """Return a line whose trace id is `number`, not 0."""
    return build_line(trace=f"{number:032x}")
