"""Tests of the benchmark: its plan, its load, its runs and what they say."""
