"""Work for the processor, in pure Python, which holds the GIL all the while.

It is an amount and not a duration: what switching between threads or cold caches make slower takes longer.
"""

from __future__ import annotations


def compute(rounds: int) -> int:
    """Do so much work; the result is for nobody."""
    value = 1
    for number in range(rounds):
        for step in range(20):
            value = (value * 31 + number ^ step) & 0xFFFF_FFFF
    return value
