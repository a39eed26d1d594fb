"""Shared by the checkpoint tests: a tiny model's file, and the one way in which a load may fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint

Refused = Callable[..., GpusqError]


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """The tiny ViT's weights."""
    return dict(tiny_models.vit().state_dict())


@pytest.fixture
def spec() -> ArchSpec:
    """The tiny ViT's architecture."""
    return tiny_models.vit_spec()


@pytest.fixture
def refused() -> Refused:
    """Load a file that must be refused, and give the error: it has a place that names the file, and a hint."""

    def load(path: Path, arch: ArchSpec | None = None) -> GpusqError:
        with pytest.raises(GpusqError) as caught:
            load_checkpoint(path, arch=arch or tiny_models.vit_spec())
        error = caught.value
        assert error.place is not None
        assert str(path) in error.place
        assert error.hint
        return error

    return load
