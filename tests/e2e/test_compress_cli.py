"""gpusq-compress on a tiny ViT: what it writes, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import timm
import tiny_families
import torch
from class_folders import dark_and_light
from commands import Finished, run_main

from gpusq_deploy.api import compress as gpusq_compress
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.compress import main as compress
from gpusq_deploy.cli.validate import main as validate
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text, module_from_arch
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint, save_checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.sparsity.compressing.report import Compression

PRUNED = [f"blocks.{block}.{layer}" for block in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dark_and_light(tmp_path_factory.mktemp("classes"))


def run(model: Path, data: Path, out: Path, *options: object) -> Finished:
    return run_main(compress, model, "--data", data, "--out", out, "--epochs", "1", *options)


def groups_with_three(weight: torch.Tensor) -> int:
    """Groups of four along a row with more than two non-zeros."""
    return int(((weight.reshape(-1, 4) != 0).sum(dim=1) > 2).sum())


def refused(done: Finished, words: str, out: Path) -> None:
    """Exit 5, no traceback, and nothing of the output beside what was there."""
    assert done.code == 5
    assert done.out == ""
    assert "\nerror: " in f"\n{done.err}"
    assert words in done.err
    assert "Traceback" not in done.err
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))


def test_the_result_is_a_2_4_checkpoint_that_describes_itself(dense: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "model-24.pt"
    done = run(dense, folder, out, "--json")
    assert done.code == 0, done.err
    result = msgspec.json.decode(done.out, type=Compression)
    assert list(result.pruned) == PRUNED
    assert {entry.layer for entry in result.dense} == {"patch_embed.proj", "head"}
    assert (result.train_images, result.held_out_images, result.classes) == (18, 5, 2)
    assert result.held_out.measure == "accuracy"
    assert "epoch 1 of 1" in done.err
    assert "no more than chance" in done.err
    saved, original = load_checkpoint(out), load_checkpoint(dense)
    assert saved.sparsity is not None
    assert saved.sparsity.method == "magnitude + distillation"
    assert list(saved.sparsity.layers) == PRUNED
    assert saved.arch == original.arch
    assert saved.preprocessing == original.preprocessing
    for layer in PRUNED:
        weight = saved.module.get_parameter(f"{layer}.weight")
        assert groups_with_three(weight) == 0
        assert not torch.equal(weight[weight != 0], original.module.get_parameter(f"{layer}.weight")[weight != 0])
    assert list(out.parent.iterdir()) == [out]


def test_a_recipe_says_what_is_pruned(dense: Path, folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'schema = "gpusq.recipe/1"\nname = "mine"\ndescription = "x"\nbase = "static_wi8_ai8"\n'
        '[[rule]]\nmatch = "blocks.1.*"\nsparse = false\nreason = "the last block stays dense"\n',
        "utf-8",
    )
    out = tmp_path / "pruned.pt"
    done = run(dense, folder, out, "--epochs", "0", "--recipe", mine, "--dense", "*.fc2")
    assert done.code == 0, done.err
    assert "blocks.1.mlp.fc1: recipe mine: the last block stays dense" in done.out
    assert "blocks.0.mlp.fc2: asked for by --dense *.fc2" in done.out
    saved = load_checkpoint(out)
    assert saved.sparsity is not None
    assert saved.sparsity.layers == tuple(
        layer for layer in PRUNED if layer.startswith("blocks.0.") and "fc2" not in layer
    )


def test_no_epochs_prune_and_train_nothing(dense: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "pruned.pt"
    done = run(dense, folder, out, "--epochs", "0")
    assert done.code == 0, done.err
    assert "epoch" not in done.err
    assert "blocks.0.attn.qkv" in done.out
    assert "head: recipe static_wi8_ai8: classifier heads" in done.out
    saved, original = load_checkpoint(out), load_checkpoint(dense)
    assert saved.sparsity is not None
    assert saved.sparsity.method == "magnitude"
    for name, value in saved.module.state_dict().items():
        kept = value != 0
        assert torch.equal(value[kept], original.module.state_dict()[name][kept])


def test_permuted_first_the_dense_model_stays_the_same_function(dense: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "pruned.pt"
    done = run(dense, folder, out, "--permute", "--method", "activation", "--json")
    assert done.code == 0, done.err
    result = msgspec.json.decode(done.out, type=Compression)
    assert result.permuted
    assert all(item.kept[0] < item.kept[1] for item in result.permuted)
    assert "--permute: " in done.err
    saved = load_checkpoint(out)
    assert all(groups_with_three(saved.module.get_parameter(f"{layer}.weight")) == 0 for layer in PRUNED)


def test_a_flat_folder_trains_without_labels(dense: Path, folder: Path, tmp_path: Path) -> None:
    done = run(dense, folder / "dark", tmp_path / "model.pt", "--json")
    assert done.code == 0, done.err
    result = msgspec.json.decode(done.out, type=Compression)
    assert result.classes == 0
    assert result.held_out.measure == "agreement"
    assert result.held_out.dense == 1.0
    assert "predictions serve as labels" in done.err
    assert "chance" not in done.err


def test_a_seed_repeats_to_the_bit(dense: Path, folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.pt", tmp_path / "b.pt"
    assert run(dense, folder, first).code == run(dense, folder, second).code == 0
    again = load_checkpoint(second).module.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in load_checkpoint(first).module.state_dict().items())


def test_layers_can_be_left_dense(dense: Path, folder: Path, tmp_path: Path) -> None:
    done = run(dense, folder, tmp_path / "model.pt", "--dense", "blocks.0.*", "--epochs", "0", "--json")
    result = msgspec.json.decode(done.out, type=Compression)
    assert list(result.pruned) == PRUNED[4:]
    done = run(dense, folder, tmp_path / "other.pt", "--dense", "block.0.*")
    refused(done, "--dense block.0.*", tmp_path / "other.pt")


def test_overwriting_needs_force(dense: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    out.write_bytes(b"precious")
    done = run(dense, folder, out)
    assert done.code == 5
    assert "--force" in done.err
    assert out.read_bytes() == b"precious"
    assert run(dense, folder, out, "--epochs", "0", "--force").code == 0
    assert load_checkpoint(out).sparsity is not None


def test_data_that_is_no_folder_of_images_is_refused(dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    refused(run(dense, tmp_path / "nowhere", out), "no such folder", out)
    (tmp_path / "notes.txt").write_text("words")
    refused(run(dense, tmp_path, out), "no images in the folder", out)


def test_what_is_no_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    refused(run(tmp_path / "nothing.pt", folder, out), "no such file", out)
    (tmp_path / "text.pt").write_text("words")
    refused(run(tmp_path / "text.pt", folder, out), "not a PyTorch file", out)


def test_a_model_that_is_2_4_already_is_refused(dense: Path, folder: Path, tmp_path: Path) -> None:
    first, out = tmp_path / "first.pt", tmp_path / "second.pt"
    assert run(dense, folder, first, "--epochs", "0").code == 0
    refused(run(first, folder, out), "2:4 already", out)


def test_more_classes_than_logits_are_refused(folder: Path, tmp_path: Path, dense: Path) -> None:
    many = tmp_path / "many"
    for index in range(65):
        (many / f"{index:02d}").mkdir(parents=True)
        (many / f"{index:02d}" / "a.png").write_bytes((folder / "dark" / "0.png").read_bytes())
    refused(run(dense, many, tmp_path / "out.pt"), "65 classes, the model has only 64", tmp_path / "out.pt")


TOWER = """
import timm
from torch import Tensor, nn

class Tower(nn.Module):
    gpusq_preprocessing = {"channels": 3, "height": 32, "width": 32, "mean": [0.5] * 3, "std": [0.5] * 3}

    def __init__(self):
        super().__init__()
        self.vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=64, num_heads=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.vit.forward_features(x)
        return features, features[:, 0]
"""


def test_a_model_of_two_outputs_is_pruned_and_hears_what_training_needs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_tower.py").write_text(TOWER)
    monkeypatch.syspath_prepend(tmp_path)
    spec = "a_tower:Tower"
    torch.save(module_from_arch(arch_from_text(spec, ())).state_dict(), tmp_path / "tower.pt")
    done = run(tmp_path / "tower.pt", folder, tmp_path / "out.pt", "--arch", spec, "--epochs", "1")
    refused(done, "the model returns 2: [1, 5, 64], [1, 64]", tmp_path / "out.pt")
    assert "gpusq-build --prune" in done.err
    done = run(tmp_path / "tower.pt", folder, tmp_path / "out.pt", "--arch", spec, "--epochs", "0", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["held_out"]["measure"] == "cosine"
    assert 0.5 < found["held_out"]["pruned"] < 1


def test_an_output_that_can_t_be_written_is_refused_before_the_work(dense: Path, folder: Path, tmp_path: Path) -> None:
    done = run(dense, folder, tmp_path)
    assert done.code == 5
    assert "the output is a folder" in done.err
    blocker = tmp_path / "file"
    blocker.write_text("")
    done = run(dense, folder, blocker / "model.pt")
    assert done.code == 5
    assert "can't be written there" in done.err


@pytest.mark.parametrize("name", ["dense.pt", "model.safetensors"])
def test_neither_the_checkpoint_nor_another_format_is_written_over(
    dense: Path, folder: Path, tmp_path: Path, name: str
) -> None:
    source, out = tmp_path / "dense.pt", tmp_path / name
    source.write_bytes(dense.read_bytes())
    done = run(source, folder, out, "--epochs", "0", "--force")
    assert done.code == 5
    assert ("the old file is kept" if name == "dense.pt" else "name it model.pt") in done.err
    assert source.read_bytes() == dense.read_bytes()
    assert list(tmp_path.iterdir()) == [source]


def test_ranges_of_the_dense_model_are_left_out_and_said(dense: Path, folder: Path, tmp_path: Path) -> None:
    original = load_checkpoint(dense)
    source, out = tmp_path / "ranges.pt", tmp_path / "model.pt"
    save_checkpoint(
        source,
        original.module,
        arch=original.arch,
        preprocessing=original.preprocessing,
        ranges={"blocks.0.mlp.fc1": 3.0},
    )
    done = run(source, folder, out, "--epochs", "0")
    assert done.code == 0, done.err
    assert "ranges of the dense model" in done.err
    assert load_checkpoint(out).ranges == {}


def test_divergence_leaves_nothing_behind(dense: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    refused(run(dense, folder, out, "--lr", "1e30", "--epochs", "5"), "training diverged", out)


@pytest.mark.slow
def test_an_interrupt_leaves_the_state_to_go_on_from_and_nothing_else(
    dense: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.pt"
    # A shell's background jobs ignore SIGINT, and so would this one, forever.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"{listen}; from gpusq_deploy.cli.compress import main; main()"
    words = ["-c", script, str(dense), "--data", str(folder), "--out", str(out), "--epochs", "100000"]
    with subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        deadline = time.monotonic() + 60
        while "epoch 2 of" not in process.stderr.readline():
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(timeout=30) == 130
    assert os.listdir(tmp_path) == ["model.pt.resume"]
    assert sorted(os.listdir(tmp_path / "model.pt.resume")) == ["request.json", "start.pt", "training.pt"]


def test_arch_arguments_need_an_arch(dense: Path, folder: Path, tmp_path: Path) -> None:
    done = run(dense, folder, tmp_path / "model.pt", "--arch-arg", "depth=2")
    assert done.code == 2


@pytest.mark.parametrize("method", ["activation", "second-order"])
def test_one_shot_pruning_by_the_images(dense: Path, folder: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "oneshot.pt"
    done = run(dense, folder, out, "--epochs", "0", "--method", method, "--json")
    assert done.code == 0, done.err
    result = msgspec.json.decode(done.out, type=Compression)
    assert result.method == method
    assert any("on 18 images, block by block (2)" in note for note in result.notes)
    saved = load_checkpoint(out)
    assert saved.sparsity is not None
    assert saved.sparsity.method == method
    assert all(groups_with_three(saved.module.get_parameter(f"{layer}.weight")) == 0 for layer in PRUNED)


def test_a_one_shot_result_can_be_distilled(dense: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.pt"
    assert run(dense, folder, out, "--method", "second-order").code == 0
    saved = load_checkpoint(out)
    assert saved.sparsity is not None
    assert saved.sparsity.method == "second-order + distillation"
    assert all(groups_with_three(saved.module.get_parameter(f"{layer}.weight")) == 0 for layer in PRUNED)


def test_convolutions_are_pruned_by_magnitude_alone(dense: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    done = run(dense, folder, out, "--epochs", "0", "--method", "second-order", "--convolutions")
    refused(done, "prunes Linear layers only", out)


def test_without_logits_labels_play_no_part_and_nothing_claims_they_do(folder: Path, tmp_path: Path) -> None:
    arguments = (
        "img_size=32",
        "patch_size=8",
        "embed_dim=64",
        "depth=2",
        "num_heads=1",
        "num_classes=0",
        "global_pool=",
    )
    arch = arch_from_text("timm:vit_tiny_patch16_224", arguments)
    module = module_from_arch(arch)
    source, out = tmp_path / "features.pt", tmp_path / "model.pt"
    save_checkpoint(source, module, arch=arch, preprocessing=preprocessing_of(arch, module))
    done = run(source, folder, out, "--epochs", "0", "--json")
    assert done.code == 0, done.err
    result = msgspec.json.decode(done.out, type=Compression)
    assert (result.held_out.measure, round(result.held_out.dense, 5)) == ("cosine", 1.0)
    assert any("returns no logits: scored by the cosine" in note for note in result.notes)
    assert "label" not in done.err
    assert "distilling" not in done.err


def test_trained_in_int8_it_is_built_without_data(dense: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.pt"
    done = run(dense, folder, out, "--stage", "prune,qat", "--epochs", "1,2", "--json")
    assert done.code == 0, done.err
    result = msgspec.json.decode(done.out, type=Compression)
    assert set(result.int8) == {*PRUNED, "patch_embed.proj", "head"}
    assert result.held_out.quantized is not None
    assert result.held_out.trained is not None
    assert "epoch 2 of 2" in done.err
    saved = load_checkpoint(out)
    assert saved.sparsity is not None
    assert saved.sparsity.method == "magnitude + distillation + quantisation-aware training"
    assert set(saved.ranges) == set(result.int8)
    assert all(groups_with_three(saved.module.get_parameter(f"{layer}.weight")) == 0 for layer in PRUNED)
    bundle = tmp_path / "bundle"
    built = run_main(build, out, "--int8", "--sparse", "--target", "orin", "--out", bundle, "--json")
    assert built.code == 0, built.err
    weights = {layer: saved.module.get_parameter(f"{layer}.weight").numel() for layer in result.int8}
    published = (
        sum(weights.values())
        * 32
        / sum(number * 8 * (0.625 if layer in PRUNED else 1) for layer, number in weights.items())
    )
    for counting in (json.loads(built.out)["counting"], json.loads(done.out)["counting"]):
        assert counting["published"] == pytest.approx(published)
        assert 1 < counting["macs"] / counting["left"] < 2
        assert counting["quantized"] == counting["left"]
    ranges = {
        entry["layer"]: entry["amax"] for entry in json.loads((bundle / "calibration.json").read_text())["ranges"]
    }
    assert ranges == pytest.approx(saved.ranges)


def test_layers_that_stay_float_in_training_stay_so_in_the_build(dense: Path, folder: Path, tmp_path: Path) -> None:
    mine, out, bundle = tmp_path / "mine.toml", tmp_path / "int8.pt", tmp_path / "bundle"
    mine.write_text(
        'schema = "gpusq.recipe/1"\nname = "mine"\ndescription = "x"\nbase = "static_wi8_ai8"\n'
        '[[rule]]\nmatch = "blocks.1.*"\nprecision = "float"\nrequired = false\nreason = "the last block"\n',
        "utf-8",
    )
    done = run(dense, folder, out, "--stage", "prune,qat", "--epochs", "0,1", "--recipe", mine)
    assert done.code == 0, done.err
    assert "blocks.1.mlp.fc1: recipe mine makes it float: the last block" in done.out
    built = run_main(build, out, "--int8", "--target", "none", "--out", bundle)
    assert built.code == 0, built.err
    layers = json.loads((bundle / "plan.json").read_text())["layers"]
    (kept,) = [entry for entry in layers if entry["layer"] == "blocks.1.mlp.fc1"]
    assert kept["precision"] == "fp16"
    assert "recipe mine makes it float" in kept["precision_reason"]


def test_what_cant_be_trained_in_int8_is_told_before_training(dense: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.pt"
    done = run(dense, folder, out, "--stage", "prune,qat", "--recipe", "static_wf8_af8")
    refused(done, "the recipe makes no layer INT8 that can be trained", out)
    assert "epoch" not in done.err


@pytest.mark.parametrize(("stage", "epochs"), [("qat", 1), ("prune", -1), ("prune,qat", (1, 2, 3))])
def test_from_python_stages_and_epochs_are_checked(
    dense: Path, folder: Path, tmp_path: Path, stage: Any, epochs: Any
) -> None:
    with pytest.raises(GpusqError, match=r"stage|epochs"):
        gpusq_compress(dense, out=tmp_path / "o.pt", data=folder, stage=stage, epochs=epochs)


def test_a_model_without_a_classifier_isnt_trained(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "backbone.pt"
    arch = ("--arch", "timm:vit_tiny_patch16_224", "--arch-arg", "img_size=32", "--arch-arg", "depth=1")
    torch.save(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0).state_dict(), model)
    refused(
        run(model, folder, tmp_path / "o.pt", *arch, "--arch-arg", "num_classes=0"),
        "training needs logits, and the model has no classifier",
        tmp_path / "o.pt",
    )


def test_a_world_without_addresses_is_told(
    dense: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(run(dense, folder, tmp_path / "o.pt"), "WORLD_SIZE is 2, but RANK, LOCAL_RANK", tmp_path / "o.pt")


@pytest.mark.parametrize("epochs", ["ten", "1,2,3", "-1"])
def test_epochs_are_one_number_or_one_for_each_stage(dense: Path, folder: Path, tmp_path: Path, epochs: str) -> None:
    done = run_main(compress, dense, "--data", folder, "--out", tmp_path / "o.pt", "--epochs", epochs)
    assert done.code == 2
    assert "epochs" in done.err


def test_reconstruction_needs_no_labels_and_no_epochs(dense: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rebuilt.pt"
    done = run_main(compress, dense, "--data", folder / "dark", "--out", out, "--stage", "reconstruct", "--json")
    assert done.code == 0, done.err
    result = msgspec.json.decode(done.out, type=Compression)
    assert result.reconstruction is not None
    assert [entry.block for entry in result.reconstruction.blocks] == ["blocks.0", "blocks.1"]
    assert result.held_out.recovered >= result.held_out.pruned
    assert result.permuted
    assert "pass 1 of 1, block 2 of 2: relative error " in done.err
    saved = load_checkpoint(out)
    assert saved.sparsity is not None
    assert saved.sparsity.method == result.method
    assert saved.sparsity.method.startswith("second-order")
    assert list(saved.sparsity.layers) == PRUNED
    assert all(groups_with_three(saved.module.get_parameter(f"{layer}.weight")) == 0 for layer in PRUNED)
    assert list(tmp_path.iterdir()) == [out]


def test_reconstructed_in_int8_it_is_built_without_data(dense: Path, folder: Path, tmp_path: Path) -> None:
    out, bundle = tmp_path / "int8.pt", tmp_path / "bundle"
    done = run_main(compress, dense, "--data", folder, "--out", out, "--stage", "reconstruct,int8", "--json")
    assert done.code == 0, done.err
    result = msgspec.json.decode(done.out, type=Compression)
    assert result.reconstruction is not None
    assert set(result.int8) == {*PRUNED, "patch_embed.proj", "head"}
    assert result.qat_epochs is None
    quantized, fitted = result.held_out.quantized, result.held_out.trained
    assert quantized is not None
    assert fitted is not None
    assert fitted >= quantized
    assert any(note.startswith("in INT8 ") for note in result.notes)
    saved = load_checkpoint(out)
    assert saved.sparsity is not None
    assert saved.sparsity.method == result.method
    assert set(saved.ranges) == set(result.int8)
    assert all(groups_with_three(saved.module.get_parameter(f"{layer}.weight")) == 0 for layer in PRUNED)
    built = run_main(build, out, "--int8", "--sparse", "--target", "orin", "--out", bundle)
    assert built.code == 0, built.err
    found = json.loads((bundle / "calibration.json").read_text())["ranges"]
    assert {entry["layer"]: entry["amax"] for entry in found} == pytest.approx(saved.ranges)


def test_an_attention_s_own_projections_are_pruned_validated_and_built(folder: Path, tmp_path: Path) -> None:
    out, bundle = tmp_path / "pruned.pt", tmp_path / "bundle"
    torch.manual_seed(0)
    torch.save(tiny_families.torchvision_vit().state_dict(), tmp_path / "dense.pt")
    arch = ("--arch", "tiny_families:torchvision_vit")
    options = ("--method", "second-order", "--permute", "--epochs", "0", "--json")
    done = run_main(compress, tmp_path / "dense.pt", *arch, "--data", folder, "--out", out, *options)
    assert done.code == 0, done.err
    result = msgspec.json.decode(done.out, type=Compression)
    attention = "encoder.layers.encoder_layer_0.self_attention"
    assert {f"{attention}.in_proj", f"{attention}.out_proj"} < set(result.pruned)
    assert not any("by magnitude" in note for note in result.notes)
    checked = run_main(validate, out, *arch)
    assert checked.code == 0, checked.out + checked.err
    # Torch 2.9 exports it for no other batch than its example's.
    asked = ("--int8", "--calib", "random", "--sparse", "--batch", "8:8:8", "--target", "none")
    built = run_main(build, out, *arch, *asked, "--out", bundle)
    assert built.code == 0, built.err
    planned = {entry["layer"]: entry for entry in json.loads((bundle / "plan.json").read_text())["layers"]}
    for layer in ("in_proj", "out_proj"):
        entry = planned[f"{attention}.{layer}"]
        assert (entry["precision"], entry["sparse"]) == ("int8", True)


def test_what_reconstruction_does_not_take_is_refused(dense: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rebuilt.pt"
    asked = (compress, dense, "--data", folder / "dark", "--out", out, "--stage", "reconstruct")
    refused(run_main(*asked, "--epochs", "3"), "reconstruction trains no epochs, 3 are asked for", out)
    refused(run_main(*asked, "--method", "magnitude"), "from the method second-order, not from magnitude", out)
    one = tmp_path / "one"
    one.mkdir()
    (one / "a.png").write_bytes((folder / "dark" / "0.png").read_bytes())
    alone = run_main(compress, dense, "--data", one, "--out", out, "--stage", "reconstruct")
    refused(alone, "1 of 1 images can be read: training and holding out need two", out)
