"""A file is written whole or not at all, also where the disk refuses."""

from __future__ import annotations

import resource
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gpusq_deploy.artifacts.arch import ArchSpec, Preprocessing
from gpusq_deploy.artifacts.base import written_whole
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import save_checkpoint
from gpusq_deploy.frontend.checkpoint.rewrite import rewrite_checkpoint

OLD = b"what was there"
LARGE = torch.zeros(100_000)


@contextmanager
def full_disk() -> Generator[None, None, None]:
    """No file grows beyond 50 kB: the kernel refuses as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "model.pt"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


def is_as_it_was(out: Path) -> bool:
    return out.read_bytes() == OLD and list(out.parent.iterdir()) == [out]


def stopped_halfway(out: Path) -> None:
    with written_whole(out) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("stop")


def test_a_file_is_there_whole_or_as_it_was(out: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        stopped_halfway(out)
    assert is_as_it_was(out)
    with written_whole(out) as temporary:
        temporary.write_bytes(b"new")
    assert out.read_bytes() == b"new"
    assert list(out.parent.iterdir()) == [out]


def test_bytes_that_do_not_fit(out: Path) -> None:
    refused = pytest.raises(OSError, match="File too large")
    with full_disk(), refused, written_whole(out) as temporary:
        temporary.write_bytes(bytes(100_000))
    assert is_as_it_was(out)


def test_a_checkpoint_that_does_not_fit(out: Path) -> None:
    module, preprocessing = (
        torch.nn.Linear(400, 400),
        Preprocessing(channels=1, height=1, width=4, mean=(0.0,), std=(1.0,), origin="test"),
    )
    arch = ArchSpec(source="factory", name="anywhere:made", arguments={})
    with full_disk(), pytest.raises(OSError, match="is the disk full"):
        save_checkpoint(out, module, arch=arch, preprocessing=preprocessing)
    assert is_as_it_was(out)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_repaired_checkpoint_that_does_not_fit(tmp_path: Path, out: Path, suffix: str) -> None:
    source = tmp_path / f"source{suffix}"
    if suffix == ".pt":
        torch.save({"w": LARGE}, source)
    else:
        safetensors.torch.save_file({"w": LARGE}, source)
    with full_disk(), pytest.raises(GpusqError, match="cannot write the checkpoint"):
        rewrite_checkpoint(source, out, {"w": LARGE + 1})
    assert is_as_it_was(out)
