"""Make the checkpoints that the rest compiles: 2:4 pruning, then distillation from the dense model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
