"""A checkpoint that someone shuffled or trained on is repaired, and then passes the check that it failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny_families
import torch

from gpusq_deploy.cli.validate import main as validate
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint, save_checkpoint
from gpusq_deploy.frontend.checkpoint.rewrite import rewrite_checkpoint, tensors_in_file
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.numerics.two_four import magnitude_mask

from commands import run_main  # isort: skip

NEAR = "blocks.1.mlp.fc1.weight"
# As the fixtures make it.
ARGUMENTS = ("img_size=32", "patch_size=8", "embed_dim=64", "depth=2", "num_heads=1", "num_classes=64")
ARCHITECTURE = (
    "--arch",
    "timm:vit_tiny_patch16_224",
    *(word for argument in ARGUMENTS for word in ("--arch-arg", argument)),
)


def planted(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Small values where zeros were: every one of 60 groups then holds three."""
    weight = tensors[NEAR].clone()
    rows = np.arange(60)
    for row in rows.tolist():
        column = int((weight[row, :4] == 0).nonzero()[0, 0])
        weight[row, column] = -1e-4 * float(weight[row].abs().max())
    return {NEAR: weight}


def shuffled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The hidden channels of the first MLP and the value channels of the second attention, in another order."""
    generator = torch.Generator().manual_seed(3)
    hidden, value = torch.randperm(256, generator=generator), torch.randperm(64, generator=generator)
    qkv = torch.cat([torch.arange(128), 128 + value])
    orders = {
        "blocks.0.mlp.fc1.weight": (0, hidden),
        "blocks.0.mlp.fc1.bias": (0, hidden),
        "blocks.0.mlp.fc2.weight": (1, hidden),
        "blocks.1.attn.qkv.weight": (0, qkv),
        "blocks.1.attn.qkv.bias": (0, qkv),
        "blocks.1.attn.proj.weight": (1, value),
    }
    return {name: tensors[name].index_select(axis, order) for name, (axis, order) in orders.items()}


@pytest.fixture
def broken(sparse: Path, tmp_path: Path) -> Path:
    tensors = tensors_in_file(sparse)
    rewrite_checkpoint(sparse, tmp_path / "broken.pt", shuffled(tensors) | planted(tensors))
    return tmp_path / "broken.pt"


def answers(path: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = load_checkpoint(path).module(images)
    return answer


@pytest.mark.slow
def test_shuffled_channels_and_near_misses_are_mended_and_the_old_file_is_kept(broken: Path, tmp_path: Path) -> None:
    before, out = broken.read_bytes(), tmp_path / "mended.pt"
    assert run_main(validate, broken).code == 1
    done = run_main(validate, broken, "--repair", out, "--permute", "--json")
    assert (done.code, done.json()["findings"]) == (0, []), done.err
    assert run_main(validate, out).code == 0
    assert broken.read_bytes() == before

    repair = done.json()["repair"]
    permuted = {entry["channels"]["place"]: entry for entry in repair["permuted"]}
    assert permuted.keys() == {"blocks.0.mlp", "blocks.1.attn"}
    for entry in permuted.values():
        assert (entry["found"], entry["violations"][1]) == ("valid pattern", 0)
        assert entry["kept"][0] < entry["kept"][1] == pytest.approx(1)
    (near,) = repair["near_misses"]
    old, new = tensors_in_file(broken)[NEAR], tensors_in_file(out)[NEAR]
    change = (old - new).abs().double()
    assert (near["zeroed"], near["groups"], near["left"]) == (int((change > 0).sum()), 60, 0)
    assert near["largest"] == float(change.max())
    assert near["largest_ratio"] == pytest.approx(1e-4, rel=1e-5)
    assert near["total"] == pytest.approx(float(change.sum()))
    assert near["relative_norm"] == pytest.approx(float((change**2).sum() ** 0.5 / (old.double() ** 2).sum() ** 0.5))
    order = torch.tensor(permuted["blocks.0.mlp"]["order"])
    fc2 = "blocks.0.mlp.fc2.weight"
    assert torch.equal(tensors_in_file(out)[fc2], tensors_in_file(broken)[fc2][:, order])

    assert repair["proof"]["permutation"] < 1e-12
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(answers(out, images), answers(broken, images), rtol=1e-3, atol=1e-3)


def test_near_misses_alone_keep_everything_else_of_a_plain_file(broken: Path, tmp_path: Path) -> None:
    state = {f"module.{name}": tensor.half() for name, tensor in tensors_in_file(broken).items()}
    path, out = tmp_path / "plain.pt", tmp_path / "out.pt"
    torch.save({"model": state, "epoch": 7, "history": [1.5, {"lr": 0.1}]}, path)
    done = run_main(validate, path, "--repair", out)
    assert done.code == 1  # the shuffled layers are still broken
    assert "60 groups repaired" in done.out
    assert f"{path} is as it was" in done.out
    content = torch.load(out, weights_only=True)
    assert (content["epoch"], content["history"]) == (7, [1.5, {"lr": 0.1}])
    assert content["model"].keys() == state.keys()
    differing = [name for name in state if not torch.equal(content["model"][name], state[name])]
    assert differing == [f"module.{NEAR}"]
    assert content["model"][differing[0]].dtype == torch.float16


def test_a_safetensors_file_keeps_its_metadata(broken: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    safetensors.torch.save_file(tensors_in_file(broken), path, {"made by": "a test"})
    done = run_main(validate, path, *ARCHITECTURE, "--repair", out, "--permute", "--json")
    assert (done.code, done.json()["findings"]) == (0, []), done.err
    untyped: Any = safetensors
    with untyped.safe_open(out, framework="pt") as opened:
        assert opened.metadata() == {"made by": "a test"}


def test_what_is_recorded_in_a_checkpoint_stays(sparse: Path, tmp_path: Path) -> None:
    found = load_checkpoint(sparse)
    path, out = tmp_path / "ranges.pt", tmp_path / "out.pt"
    with torch.no_grad():
        found.module.get_parameter(NEAR).copy_(planted(tensors_in_file(sparse))[NEAR])
    save_checkpoint(
        path, found.module, arch=found.arch, preprocessing=found.preprocessing, ranges={"blocks.0.mlp.fc1": 2.5}
    )
    done = run_main(validate, path, "--repair", out, "--json")
    assert done.code == 0, done.err
    mended = load_checkpoint(out)
    assert (mended.ranges, mended.arch) == ({"blocks.0.mlp.fc1": 2.5}, found.arch)
    assert "measured before" in done.json()["repair"]["notes"][0]


def test_a_valid_checkpoint_makes_no_file(sparse: Path, tmp_path: Path) -> None:
    done = run_main(validate, sparse, "--repair", tmp_path / "out.pt", "--permute")
    assert done.code == 0
    assert "nothing to repair" in done.out
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.slow
def test_a_dense_model_is_left_with_more_magnitude_in_reach(dense: Path, tmp_path: Path) -> None:
    done = run_main(validate, dense, "--repair", tmp_path / "out.pt", "--permute", "--json")
    assert done.code == 1
    repair = done.json()["repair"]
    assert {entry["found"] for entry in repair["permuted"]} == {"most magnitude"}
    assert {entry["channels"]["kind"] for entry in repair["permuted"]} == {
        "hidden channels",
        "value channels",
        "residual stream",
    }
    assert all(entry["kept"][1] > entry["kept"][0] for entry in repair["permuted"])
    assert repair["proof"]["whole"] < 1e-12


def test_a_packed_projection_that_is_valid_is_not_given_for_other_readers_of_the_stream(tmp_path: Path) -> None:
    module = tiny_families.torchvision_vit()
    name = "encoder.layers.encoder_layer_0.self_attention.in_proj"
    weight = module.get_parameter(f"{name}_weight").detach()
    weight.mul_(torch.from_numpy(magnitude_mask(array_from_tensor(weight))))
    torch.save(module.state_dict(), tmp_path / "m.pt")
    architecture = ("--arch", "tiny_families:torchvision_vit")
    done = run_main(validate, tmp_path / "m.pt", *architecture, "--repair", tmp_path / "out.pt", "--permute", "--json")
    assert done.code == 1, done.err
    repair = done.json()["repair"]
    assert [entry["place"] for entry in repair["declined"] if entry["kind"] == "residual stream"] == ["the model"]
    assert "residual stream" not in {entry["channels"]["kind"] for entry in repair["permuted"]}
    states = {layer["layer"]: layer for layer in done.json()["sparsity"]["layers"]}
    assert (states[name]["n"], states[name]["violations"], states[name]["expected"]) == (192, 0, True)


def test_the_old_file_is_never_the_output(broken: Path, tmp_path: Path) -> None:
    before = broken.read_bytes()
    for out, options in ((broken, ("--force",)), (tmp_path, ()), (tmp_path / "x.safetensors", ())):
        assert run_main(validate, broken, "--repair", out, *options).code == 5
    there = tmp_path / "there.pt"
    there.write_bytes(b"something")
    assert run_main(validate, broken, "--repair", there).code == 5
    assert (there.read_bytes(), broken.read_bytes()) == (b"something", before)
    assert run_main(validate, broken, "--repair", there, "--force").code == 1
    assert there.read_bytes() != b"something"


@pytest.mark.parametrize("options", [("--permute",), ("--near-miss", "0.1"), ("--force",)])
def test_options_of_a_repair_need_one(sparse: Path, options: tuple[str, ...]) -> None:
    done = run_main(validate, sparse, *options)
    assert done.code == 2
    assert "needs --repair" in done.err


def test_permuting_needs_an_architecture(broken: Path, tmp_path: Path) -> None:
    torch.save(tensors_in_file(broken), tmp_path / "bare.pt")
    done = run_main(validate, tmp_path / "bare.pt", "--repair", tmp_path / "out.pt", "--permute")
    assert done.code == 5
    assert "--arch" in done.err


def test_a_graph_is_not_repaired(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    done = run_main(validate, tmp_path / "model.onnx", "--repair", tmp_path / "out.onnx")
    assert done.code == 5
    assert "only checkpoints" in done.err
