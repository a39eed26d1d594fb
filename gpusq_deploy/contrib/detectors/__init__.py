"""Detectors with regions: their dense parts as models of their own, and what lies between, for ONNX Runtime."""
