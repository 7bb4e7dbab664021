"""Tests of the analysis: they need no servers and no Flask."""
