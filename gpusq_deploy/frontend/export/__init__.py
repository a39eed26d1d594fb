"""From a module to a float ONNX graph."""
