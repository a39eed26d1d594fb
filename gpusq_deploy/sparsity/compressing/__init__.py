"""gpusq-compress, step by step."""
