"""Apps for a benchmark: one of no use, and the workloads with a known time more over TCP to the database."""

from __future__ import annotations

import os
import select
import time
from typing import Any

from flask import Flask
from pymysql.connections import Connection

from reqpath import ReqPath

#: Computed between each statement and its reply where the app is told to reach its database over TCP.
_PLANTED_NS = int(os.environ.get("BENCH_PLANTED_NS", "0"))

_read_query_result = Connection._read_query_result  # type: ignore[attr-defined]


def _read_late(connection: Any, unbuffered: bool = False) -> Any:
    if connection.unix_socket is None:
        # What is computed while the reply is on its way would take no time more.
        select.select([connection._sock], [], [])
        end_ns = time.perf_counter_ns() + _PLANTED_NS
        while time.perf_counter_ns() < end_ns:
            pass
    return _read_query_result(connection, unbuffered)


def _create_plain(name: str) -> Flask:
    made = Flask(name)
    made.add_url_rule("/plain", "plain", lambda: "plain")
    made.add_url_rule("/fails", "fails", lambda: str(1 // 0))
    return made


if _PLANTED_NS:
    import workloads

    # Before reqpath's hooks, which are put around it.
    Connection._read_query_result = _read_late  # type: ignore[attr-defined]
    app = workloads.create_app()
plain = _create_plain("plain")
ReqPath(plain)
unrecorded = _create_plain("unrecorded")
