"""What we need of ONNX, in one place, on onnx_ir."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
