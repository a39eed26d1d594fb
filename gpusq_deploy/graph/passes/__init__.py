"""Graph rewrites, one per file: frozen values that change a graph in place and count what they changed."""
