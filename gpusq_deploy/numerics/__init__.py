"""Pure array code: affine quantisation, 2:4 structure, error measures. No files, no graphs, no torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
