"""Giving memory back harms no value."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import torch

from gpusq_deploy.frontend.checkpoint.tensors import drop_weights, release, release_weights


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("shape", [(0,), (3,), (300, 1024)])
def test_released_values_are_still_there(tmp_path: Path, shape: tuple[int, ...], *, mapped: bool) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.save({"first": torch.ones(5), "w": values}, tmp_path / "w.pt")
    loaded = torch.load(tmp_path / "w.pt", mmap=mapped, weights_only=True)["w"]
    assert torch.equal(loaded, values)
    release(loaded)
    assert torch.equal(loaded, values)


def test_weights_are_dropped_whoever_else_holds_them() -> None:
    module = torch.nn.Linear(64, 64)
    held, shared = module.weight, module.weight.detach()
    drop_weights(module)
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    assert (module.weight.shape, module.in_features) == ((64, 64), 64)
    assert held.untyped_storage().nbytes() == shared.untyped_storage().nbytes() == 0


def test_dropping_mapped_weights_leaves_their_file_as_it_is(tmp_path: Path) -> None:
    path, module = tmp_path / "w.pt", torch.nn.Linear(64, 64)
    torch.save(module.state_dict(), path)
    before = path.read_bytes()
    mapped = torch.load(path, mmap=True, weights_only=True)
    other = torch.nn.Linear(64, 64)
    other.load_state_dict(mapped, assign=True)
    drop_weights(other)
    assert torch.equal(mapped["weight"], module.weight)
    assert path.read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_released_weights_are_not_resident_and_still_there(tmp_path: Path) -> None:
    path, size = tmp_path / "w.pt", 64 << 20
    torch.save({"weight": torch.ones(size // 4096, 1024)}, path)
    module = torch.nn.Linear(1024, size // 4096, bias=False)
    module.load_state_dict(torch.load(path, mmap=True, weights_only=True), assign=True)
    module.requires_grad_(requires_grad=False)
    total, before = float(module.weight.sum()), resident()
    release_weights(module)
    assert before - resident() > size // 2
    assert float(module.weight.sum()) == total


def resident() -> int:
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * mmap.PAGESIZE
