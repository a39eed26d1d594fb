"""Applications of the package that no build needs."""
