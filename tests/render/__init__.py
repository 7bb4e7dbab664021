"""Tests of what is drawn and printed, by golden files."""
