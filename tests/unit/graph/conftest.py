"""Shared by the graph tests: the tiny ViT with every layer in INT8."""

from __future__ import annotations

import planning
import pytest
import tiny_models


@pytest.fixture(scope="session")
def quantized() -> planning.Quantized:
    """Treat it as read-only."""
    model = tiny_models.exported_vit().model
    return planning.quantized(model, planning.measured(model))
