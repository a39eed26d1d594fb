"""ONNX Runtime as a reference."""

from __future__ import annotations

from pathlib import Path

import onnxruntime


def exact_session(model: Path) -> onnxruntime.InferenceSession:
    """A session whose INT8 kernels don't saturate on a CPU without VNNI, as those of its default do."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
