"""The engines room: the one place that imports tensorrt, tensorrt_rtx, pycuda and onnxruntime, each of them late."""
