"""Giving memory back harms no value."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpusq_deploy.checkpoint.tensors import release


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("shape", [(0,), (3,), (300, 1024)])
def test_released_values_are_still_there(tmp_path: Path, shape: tuple[int, ...], *, mapped: bool) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.save({"first": torch.ones(5), "w": values}, tmp_path / "w.pt")
    loaded = torch.load(tmp_path / "w.pt", mmap=mapped, weights_only=True)["w"]
    assert torch.equal(loaded, values)
    release(loaded)
    assert torch.equal(loaded, values)
