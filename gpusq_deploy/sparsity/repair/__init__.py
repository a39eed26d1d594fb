"""Mend 2:4 that was damaged."""
