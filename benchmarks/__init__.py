"""Latency: measured with every raw sample kept, summed up honestly, and compared by a gate that CI can trust."""
