"""What we need of ONNX, in one place, on onnx_ir."""
