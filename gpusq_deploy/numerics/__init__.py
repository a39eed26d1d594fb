"""Pure array code: affine quantisation, 2:4 structure, error measures. No files, no graphs, no torch."""
