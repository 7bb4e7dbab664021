"""Turns request paths into figures; imports nothing of the worker's or the collector's."""
