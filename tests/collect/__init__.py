"""Tests of what runs beside the app."""
