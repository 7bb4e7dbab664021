"""Turns figures into text."""
