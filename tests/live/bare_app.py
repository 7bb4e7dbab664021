"""An app without a line of reqpath or of an SDK's set-up: `opentelemetry-instrument` brings both."""

from __future__ import annotations

from flask import Flask
from opentelemetry import trace

app = Flask("bare")


@app.get("/items/<int:number>")
def item(number: int) -> str:
    """Return the id of the current span."""
    return f"{trace.get_current_span().get_span_context().span_id:016x}"
