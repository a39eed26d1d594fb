"""Latency: measured with every raw sample kept, summed up honestly, and compared by a gate that CI can trust."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
