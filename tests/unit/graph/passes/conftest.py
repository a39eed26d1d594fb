"""Shared by the pass tests: the tiny ViT's ranges and its layers in INT8. Treat the models as read-only."""

from __future__ import annotations

import planning
import pytest
import tiny_models

from gpusq_deploy.artifacts.calibration import CalibrationTable


@pytest.fixture(scope="session")
def ranges() -> CalibrationTable:
    """Ranges of every layer of the tiny ViT."""
    return planning.measured(tiny_models.exported_vit().model)


@pytest.fixture(scope="session")
def quantized(ranges: CalibrationTable) -> planning.Quantized:
    """The tiny ViT with every layer in INT8 and an FP32 remainder."""
    return planning.quantized(tiny_models.exported_vit().model, ranges)
