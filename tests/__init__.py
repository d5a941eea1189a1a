"""Tests, which find out what happens and not how long it takes: machines are slow, and others use them too."""

LONGEST = 300
"""Seconds after which something hangs."""
