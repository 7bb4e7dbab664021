"""Plants a known time in each query, so that a benchmark can be checked against what it has to find.

`WORKLOADS_PLANTED_NS` passes between the arrival of the database's reply and its reading. With 0 all the rest
is done too, so that two set-ups differ by just that time.
"""

from __future__ import annotations

import os
import select
import time
from typing import Any

from pymysql.connections import Connection


def plant() -> None:
    """Plant what the environment says, if anything; reqpath's hooks have to come after it, around it."""
    planted = os.environ.get("WORKLOADS_PLANTED_NS")
    if planted is None:
        return
    planted_ns = int(planted)
    read_query_result = Connection._read_query_result  # type: ignore[attr-defined]  # not in its stubs

    def read_late(connection: Any, unbuffered: bool = False) -> Any:
        # What passes while the reply is on its way would take no time more.
        select.select([connection._sock], [], [])
        end_ns = time.perf_counter_ns() + planted_ns
        # Awake: a processor that slept is slower for some 100 µs, in all that the request does next.
        while time.perf_counter_ns() < end_ns:
            pass
        return read_query_result(connection, unbuffered)

    Connection._read_query_result = read_late  # type: ignore[attr-defined]
