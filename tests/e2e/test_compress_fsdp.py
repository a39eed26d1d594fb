"""gpusq-compress --fsdp: two processes, each with a part of the model, write what one writes, killed or not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from class_folders import dark_and_light
from commands import run_main
from ranks import start_ranks

from gpusq_deploy.cli.compress import main as compress
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text, module_from_arch
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint, save_checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of

# AdamW's step is of one size however small a gradient is, which may be rounding alone.
ASKED = ("--batch-size", "6", "--optimizer", "sgd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dark_and_light(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT that draws nothing: each process would draw for itself."""
    arguments = ("img_size=32", "embed_dim=64", "depth=2", "num_heads=1", "num_classes=2")
    arch = arch_from_text("timm:vit_tiny_patch16_224", arguments)
    torch.manual_seed(0)
    module = module_from_arch(arch)
    path = tmp_path_factory.mktemp("model") / "dense.pt"
    save_checkpoint(path, module, arch=arch, preprocessing=preprocessing_of(arch, module))
    return path


@pytest.fixture(scope="module")
def alone(model: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "model.pt"
    assert run_main(compress, model, "--data", folder, "--out", out, "--epochs", 3, *ASKED).code == 0
    return out


def command(model: Path, folder: Path, out: Path, *options: str) -> tuple[str, ...]:
    words = ("compress", str(model), "--data", str(folder), "--out", str(out), "--fsdp")
    return ("-m", "gpusq_deploy", *words, *ASKED, *options)


def require_same(found: Path, wanted: Path) -> None:
    ours, theirs = load_checkpoint(found), load_checkpoint(wanted)
    assert ours.sparsity == theirs.sparsity
    for name, value in theirs.module.state_dict().items():
        torch.testing.assert_close(ours.module.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    require_two_four(found)


def require_two_four(path: Path) -> None:
    found = load_checkpoint(path)
    assert found.sparsity is not None
    assert len(found.sparsity.layers) == 8
    for layer in found.sparsity.layers:
        weight = found.module.get_parameter(f"{layer}.weight")
        assert int((weight.reshape(-1, 4) != 0).sum(dim=1).max()) <= 2


@pytest.mark.slow
def test_two_processes_write_once_and_what_one_writes(model: Path, folder: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    processes = start_ranks(2, *command(model, folder, out, "--epochs", "3"))
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert told[0].count("epoch 3 of 3") == 1
    assert told[1] == ""
    assert "Warning" not in told[0]
    require_same(out, alone)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_killed_it_goes_on_in_one_process(model: Path, folder: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    options = ("--epochs", "3", "--checkpoint-every", "1")
    processes = start_ranks(2, *command(model, folder, out, *options))
    state = tmp_path / "model.pt.resume" / "training.pt"
    try:
        ends = time.monotonic() + 240
        while not state.exists() and time.monotonic() < ends and processes[0].poll() is None:
            time.sleep(0.01)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert state.exists()
    assert not out.exists()
    done = run_main(compress, *command(model, folder, out, *options, "--resume")[3:])
    assert done.code == 0, done.err
    assert "--fsdp shards nothing: one process holds all of the model" in done.err
    assert "goes on from the state of the interrupted run" in done.err
    require_same(out, alone)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_int8_is_trained_sharded(model: Path, folder: Path, tmp_path: Path) -> None:
    """A rounding to the other side is a step of INT8, so the ranges are near to those of one process, not the same."""
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    options = ("--stage", "prune,qat", "--epochs", "1,2", "--lr", "1e-2")
    assert run_main(compress, model, "--data", folder, "--out", one, *ASKED, *options).code == 0
    processes = start_ranks(2, *command(model, folder, two, *options))
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    require_two_four(two)
    ours, theirs = load_checkpoint(two).ranges, load_checkpoint(one).ranges
    assert len(theirs) >= 8
    assert ours == pytest.approx(theirs, rel=1e-2)


def test_what_isnt_trained_isnt_sharded(model: Path, folder: Path, tmp_path: Path) -> None:
    done = run_main(compress, *command(model, folder, tmp_path / "o.pt", "--epochs", "0")[3:])
    assert done.code == 5
    assert "only training is sharded, and none is asked for" in done.err
    assert not list(tmp_path.iterdir())
