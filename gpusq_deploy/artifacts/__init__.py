"""The values that flow between rooms: frozen, validated once, each with one JSON form."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
