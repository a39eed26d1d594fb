"""The engines room: the one place that imports TensorRT, what calls CUDA, and onnxruntime, each of them late."""
