"""The colour and the letter of each tier, wherever one is drawn.

The letters tell the tiers apart without colour. The colours are calm and differ in lightness too, so that
they stay distinct for the common kinds of colour blindness, as a test holds; dark letters are readable on
each of them, and the xterm palette has each of them exactly.
"""

from __future__ import annotations

from typing import Final

#: Tier, "client" (its own way to nginx, as a benchmark sees it), or "residual": (letter, colour as #rrggbb).
PALETTE: Final = {
    "client": ("C", "#af87d7"),
    "nginx": ("N", "#afd787"),
    "queue": ("Q", "#ffffaf"),
    "uwsgi": ("U", "#5f87af"),
    "flask": ("F", "#5fafaf"),
    "app": ("A", "#87d7d7"),
    "mysql": ("M", "#d7875f"),
    "residual": ("?", "#8a8a8a"),
}
