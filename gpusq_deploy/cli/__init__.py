"""The commands: parse, make a value, one call, render. `--help` imports nothing heavy."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
