"""What becomes INT8, decided as data: sites, smoothing, rounding, mixed precision, INT8 outputs, FP16 overflow."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
