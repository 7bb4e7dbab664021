"""The colour and the letter of each tier, wherever one is drawn.

The letters tell the tiers apart without colour. The colours are of one lightness, so that none shouts, and
stay distinct for the common kinds of colour blindness; the xterm palette has each of them exactly.
"""

from __future__ import annotations

from typing import Final

#: Tier, "client" (its own way to nginx, as a benchmark sees it), or "residual": (letter, colour as #rrggbb).
PALETTE: Final = {
    "client": ("C", "#af87af"),
    "nginx": ("N", "#87af5f"),
    "queue": ("Q", "#d7af5f"),
    "uwsgi": ("U", "#5f87af"),
    "flask": ("F", "#5fafaf"),
    "app": ("A", "#87afaf"),
    "mysql": ("M", "#d7875f"),
    "residual": ("?", "#808080"),
}
