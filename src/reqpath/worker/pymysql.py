"""PyMySQL's time (placeholder for the first slice)."""

from __future__ import annotations

from reqpath.settings import Settings


def install(settings: Settings) -> bool:
    """Hook PyMySQL; return whether it is hooked."""
    del settings
    return False
