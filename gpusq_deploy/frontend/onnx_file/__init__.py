"""An ONNX file as an input: read, brought to the form that our own export has, and given module names."""
