"""Latencies over time: one line per measurement in a file that only grows, and where its level changed."""
