"""Prune weights to 2:4."""
