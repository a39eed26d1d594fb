"""The Python API: one function for each thing that the package does. They return values, and print nothing."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
