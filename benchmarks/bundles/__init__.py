"""Two bundles compared without timing: their layers and kernels matched, what changed, and budgets for it."""
