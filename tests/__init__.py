"""The tests; `tests/live` needs real servers."""
