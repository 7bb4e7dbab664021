"""The workloads, one a path."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, current_app

from workloads.database import get_connection, query_point
from workloads.work import compute

blueprint = Blueprint("workloads", __name__)
_QUERIES = 5


@blueprint.get("/trivial")
def trivial() -> str:
    """Do nothing: what lies between client and app, and the frameworks."""
    return "ok\n"


@blueprint.get("/cpu")
def cpu() -> str:
    """Compute for 5 ms, with the GIL."""
    return f"{compute(current_app.config['CPU_ROUNDS'])}\n"


@blueprint.get("/query")
def query() -> dict[str, Any]:
    """Read one row by its key."""
    return {"item": query_point()}


@blueprint.get("/queries")
def queries() -> dict[str, Any]:
    """Read ten rows, each by its key, one after another."""
    return {"items": [query_point() for _ in range(10)]}


@blueprint.get("/sleep")
def sleep() -> dict[str, Any]:
    """Wait 10 ms for the database, which waits too: no processor is busy."""
    with get_connection().cursor() as cursor:
        cursor.execute("SELECT SLEEP(0.01)")
        return {"slept": cursor.fetchone()}


@blueprint.get("/mixed")
def mixed() -> dict[str, Any]:
    """Read five rows and compute after each, 5 ms in all: the GIL is waited for after each read."""
    items = []
    for _ in range(_QUERIES):
        items.append(query_point())
        compute(current_app.config["CPU_ROUNDS"] // _QUERIES)
    return {"items": items}
