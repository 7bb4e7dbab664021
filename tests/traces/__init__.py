"""Tests of `reqpath.traces`."""
