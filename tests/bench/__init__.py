"""Tests of what starts and measures real servers."""
