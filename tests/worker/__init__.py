"""Tests of what runs inside the app's process."""
