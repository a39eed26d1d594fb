"""The engines room: the one place that imports TensorRT, what calls CUDA, and onnxruntime, each of them late."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
