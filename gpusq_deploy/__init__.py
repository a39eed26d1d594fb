"""Deployment compiler for compressed vision transformers: checkpoint in, proven TensorRT engine out."""

__version__ = "0.1.0"
