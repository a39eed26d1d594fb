"""Files that ModelOpt itself made (tests/support/producers.py), built, and held against ModelOpt's own outputs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import producers
import pytest
import torch
from commands import Finished, run_main

from gpusq_deploy.cli.build import main as build
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor

pytestmark = pytest.mark.slow

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
ARCH = ("--arch", "timm:vit_tiny_patch16_224")
ARGUMENTS = [word for name, value in producers.WIDER.arguments.items() for word in ("--arch-arg", f"{name}={value}")]
FACTORIES = {
    "int8_torchvision": "producers:torchvision_model",
    "int8_transformers": "producers:transformers_model",
    "int8_mixed": "producers:mixed_model",
}
BLOCK = {"blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"}
ALL = {*BLOCK, "patch_embed.proj", "head"}


def built(
    name: str, out: Path, *options: object, outputs: str | None = None
) -> tuple[Finished, dict[str, Any], dict[str, Any]]:
    """The command, the plan's layers by name, and the receipt."""
    model = FIXTURES / f"modelopt_{name}.pt"
    arch = ("--arch", FACTORIES[name]) if name in FACTORIES else (*ARCH, *ARGUMENTS)
    expected = ("--expect-outputs", model.with_suffix(".npz") if outputs is None else FIXTURES / outputs)
    done = run_main(build, model, *arch, *expected, "--target", "none", "--out", out, *options)
    assert done.code == 0, done.err
    plan = json.loads((out / "plan.json").read_text())
    return done, {entry["layer"]: entry for entry in plan["layers"]}, json.loads((out / "receipt.json").read_text())


def decibels(receipt: dict[str, Any]) -> float:
    """To the outputs that ModelOpt computed."""
    (given,) = [each for each in receipt["producer"] if each["source"].endswith(".npz")]
    assert given["top1_agreement"] == 1
    return float(given["outputs"][0]["sqnr_db"])


@pytest.mark.parametrize(
    ("name", "int8", "least"),
    [
        # Nothing but sums in another order: 130 dB and more were measured.
        ("wide", ALL, 100),
        ("smooth", ALL, 100),
        ("disabled", {"patch_embed.proj", "head", "blocks.0.attn.qkv", "blocks.0.attn.proj"}, 100),
        ("weights", set[str](), 100),
        ("trained", ALL, 100),  # weights beyond their grids saturate, at the code -128 too
        ("int8_mixed", {"0", "5"}, 45),  # without the quantisers of a ConvTranspose and a pooling
        ("offsets", ALL, 100),  # moved out of the layers
        ("affine", ALL, 25),  # one for each sample and token of one batch: symmetric grids are coarser
        # Without the quantisers of norms, that are on the residual stream.
        (
            "int8_torchvision",
            {"conv_proj", "heads.head"} | {f"encoder.layers.encoder_layer_0.mlp.{i}" for i in (0, 3)},
            20,
        ),
    ],
)
def test_the_built_graph_is_the_model_that_was_quantised(
    tmp_path: Path, name: str, int8: set[str], least: float
) -> None:
    done, layers, receipt = built(name, tmp_path / "out", "--int8", "--fp32")
    assert {layer for layer, entry in layers.items() if entry["precision"] == "int8"} == int8
    assert decibels(receipt) > least
    assert "as trained" in done.err


def test_with_fp16_around_it_the_codes_round_otherwise(tmp_path: Path) -> None:
    _, _, receipt = built("wide", tmp_path / "out", "--int8")
    assert decibels(receipt) > 25


def test_transformers_layers_keep_their_ranges_and_grids(tmp_path: Path) -> None:
    _, layers, receipt = built("int8_transformers", tmp_path / "out", "--int8", "--fp32")
    assert {entry["precision"] for entry in layers.values()} == {"int8"}
    assert decibels(receipt) > 20  # without the quantisers of norms
    notes = json.loads((tmp_path / "out" / "plan.json").read_text())["notes"]
    assert f"weights of {len(layers)} layers are on the grid that the checkpoint records" in notes


@pytest.mark.parametrize("name", ["int8_torchvision", "int8_transformers"])
def test_but_for_the_quantisers_of_norms_it_is_the_producers_model(tmp_path: Path, name: str) -> None:
    _, _, receipt = built(name, tmp_path / "out", "--int8", "--fp32", outputs=f"modelopt_{name}_layers.npz")
    assert decibels(receipt) > 100  # 129 and 134 were measured; 22 and 26 with those quantisers


def test_a_file_that_is_sparse_and_trained_keeps_both(tmp_path: Path) -> None:
    done, layers, receipt = built("trained", tmp_path / "out", "--int8", "--sparse", "--fp32")
    assert {layer for layer, entry in layers.items() if entry["sparse"]} == BLOCK
    assert decibels(receipt) > 100
    assert "saturate there, as in training" in done.err
    model = onnx.load(tmp_path / "out" / "model.onnx")
    stored = [each.raw_data for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8]
    assert min(int(np.frombuffer(codes, np.int8).min()) for codes in stored) == -128


def test_ranges_of_norms_are_named_once_and_the_rest_is_used(tmp_path: Path) -> None:
    done, _, _ = built("int8_torchvision", tmp_path / "out", "--int8", "--fp32")
    (said,) = [line for line in done.err.splitlines() if "modules without weights" in line]
    assert "3 modules" in said
    assert "encoder.layers.encoder_layer_0.ln_1" in said


def test_without_its_grid_the_trained_model_is_lost(tmp_path: Path) -> None:
    _, _, kept = built("wide", tmp_path / "kept", "--int8", "--fp32")
    done, _, anew = built("wide", tmp_path / "anew", "--int8", "--fp32", "--no-keep-grid")
    assert decibels(anew) < 40 < decibels(kept)
    assert "--no-keep-grid: scales of weights are computed anew" in done.err


def test_what_falls_short_of_the_producers_outputs_is_refused(tmp_path: Path) -> None:
    model = FIXTURES / "modelopt_wide.pt"
    with np.load(model.with_suffix(".npz")) as stored:
        np.savez(tmp_path / "other.npz", input=stored["input"], output=stored["output"] + 0.3)
    done = run_main(
        build,
        *(model, *ARCH, *ARGUMENTS, "--int8", "--fp32", "--target", "none", "--out", tmp_path / "out"),
        *("--expect-outputs", tmp_path / "other.npz", "--min-sqnr", 45),
    )
    assert done.code == 5
    assert "to other.npz is below --min-sqnr 45" in done.err
    assert (tmp_path / "out.failed" / "receipt.json").exists()


@pytest.mark.parametrize("name", ["fp8", "int4"])
def test_files_of_other_types_are_not_built_as_int8_in_silence(tmp_path: Path, name: str) -> None:
    done, layers, _ = built(name, tmp_path / "out", "--int8")
    assert {entry["precision"] for entry in layers.values()} == {"fp16"}
    assert all(name.upper() in entry["precision_reason"] for entry in layers.values())
    assert name.upper() in done.err


def test_an_fp8_file_is_built_as_fp8_whatever_the_recipe_leaves_float(tmp_path: Path) -> None:
    done, layers, receipt = built("fp8", tmp_path / "out", "--fp8", "--fp32")
    assert {layer for layer, entry in layers.items() if entry["precision"] == "fp8"} == ALL
    assert layers["patch_embed.proj"]["precision_reason"] == "ModelOpt quantised it to FP8"
    assert decibels(receipt) > 100  # 131 were measured; 13 with scales of weights per channel
    stored = torch.load(FIXTURES / "modelopt_fp8.pt", weights_only=False)["model_state_dict"]
    assert layers["head"]["activation"]["amax"] == float(stored["head.input_quantizer._amax"])
    assert "--recipe decides" not in done.err
    (ran,) = [each for each in receipt["producer"] if each["source"] == "ModelOpt's quantisers, run in torch"]
    assert ran["outputs"][0]["sqnr_db"] > 100


def test_without_its_scales_of_weights_an_fp8_file_is_another_model(tmp_path: Path) -> None:
    _, _, receipt = built("fp8", tmp_path / "out", "--fp8", "--fp32", "--no-keep-grid")
    assert decibels(receipt) < 20


@pytest.mark.parametrize("asked", ["--int4", "--int8"])
def test_an_int4_file_is_its_weights_on_their_grid_as_codes_or_in_floating_point(tmp_path: Path, asked: str) -> None:
    done, layers, receipt = built("int4", tmp_path / "out", asked, "--fp32")
    coded = {layer: entry["weight"]["block"] for layer, entry in layers.items() if entry["precision"] == "int4"}
    blocks = {"blocks.0.mlp.fc2": 64, **dict.fromkeys(ALL - {"patch_embed.proj", "blocks.0.mlp.fc2"}, 32)}
    assert coded == (blocks if asked == "--int4" else {})
    assert decibels(receipt) > 100  # 120 were measured
    assert "rounded to their grid" in done.err


def test_an_int4_file_keeps_its_codes_in_fp16(tmp_path: Path) -> None:
    _, _, receipt = built("int4", tmp_path / "out", "--int4")
    assert decibels(receipt) > 50  # 57 were measured


def test_blocks_that_cannot_be_built_are_told_with_their_size(tmp_path: Path) -> None:
    """As ModelOpt writes them with `block_sizes: {-1: 16}`."""
    content = torch.load(FIXTURES / "modelopt_int4.pt", weights_only=False)
    state, name = content["model_state_dict"], "blocks.0.attn.qkv"
    for _, kept in content["modelopt_state"]["modelopt_state_dict"]:
        kept["metadata"]["quantizer_state"][f"{name}.weight_quantizer"]["_block_sizes"] = {-1: 16, "type": "static"}
    state[f"{name}.weight_quantizer._amax"] = state[f"{name}.weight"].reshape(-1, 16).abs().amax(1, keepdim=True)
    torch.save(content, tmp_path / "q.pt")
    model = tmp_path / "q.pt"
    done = run_main(build, model, *ARCH, *ARGUMENTS, "--int4", "--fp32", "--target", "none", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    (layer,) = [entry for entry in plan["layers"] if entry["layer"] == name]
    assert layer["precision"] == "fp32"
    assert layer["precision_reason"] == (
        "ModelOpt's INT4 scales are for blocks of 16 inputs; what can be built are 128, 64, 32"
    )


def test_a_recipe_that_is_named_decides_in_the_producers_place(tmp_path: Path) -> None:
    samples = tmp_path / "samples.npy"
    np.save(samples, array_from_tensor(producers.images()))
    done, layers, _ = built(
        "disabled", tmp_path / "out", "--int8", "--fp32", "--recipe", "plain_wi8_ai8", "--calib", samples
    )
    assert layers["blocks.0.mlp.fc1"]["precision"] == "int8"
    assert "--recipe decides what is quantised, not what ModelOpt did" in done.err


def test_disabled_quantisers_mean_float_with_data_too(tmp_path: Path) -> None:
    samples = tmp_path / "samples.npy"
    np.save(samples, array_from_tensor(producers.images()))
    _, layers, _ = built("disabled", tmp_path / "out", "--int8", "--calib", samples)
    assert layers["blocks.0.mlp.fc1"]["precision_reason"] == "its quantisers are disabled"


def changed(name: str, path: Path, entries: dict[str, torch.Tensor]) -> Path:
    """The state dict of a file that ModelOpt made, with other entries."""
    state = torch.load(FIXTURES / f"modelopt_{name}.pt", weights_only=False)["model_state_dict"]
    torch.save({**state, **entries}, path)
    return path


def test_a_range_that_its_layer_is_far_beyond_is_refused_with_the_layer(tmp_path: Path) -> None:
    model = changed("wide", tmp_path / "q.pt", {"blocks.0.mlp.fc1.input_quantizer._amax": torch.tensor(1e-30)})
    done = run_main(build, model, *ARCH, *ARGUMENTS, "--int8", "--target", "none", "--out", tmp_path / "out")
    assert done.code == 5
    assert "1e-30" in done.err
    assert "layer blocks.0.mlp.fc1" in done.err


def test_a_range_beyond_fp16_keeps_its_layer_in_fp32(tmp_path: Path) -> None:
    model = changed("wide", tmp_path / "q.pt", {"blocks.0.mlp.fc1.input_quantizer._amax": torch.tensor(8.4e6)})
    done = run_main(build, model, *ARCH, *ARGUMENTS, "--int8", "--target", "none", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "8.4e+06" in done.err
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    (layer,) = [entry for entry in plan["layers"] if entry["layer"] == "blocks.0.mlp.fc1"]
    assert layer["activation"]["scale"] == pytest.approx(8.4e6 / 127)


def test_a_range_along_the_inputs_of_a_square_linear_leaves_it_float(tmp_path: Path) -> None:
    weight = producers.wider_model().state_dict()["blocks.0.attn.proj.weight"]
    entries = {"blocks.0.attn.proj.weight_quantizer._amax": weight.abs().amax(0, keepdim=True)}
    model = changed("wide", tmp_path / "q.pt", entries)
    done = run_main(build, model, *ARCH, *ARGUMENTS, "--int8", "--fp32", "--target", "none", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    reasons = {entry["layer"]: entry["precision_reason"] for entry in plan["layers"] if entry["precision"] != "int8"}
    assert reasons == {
        "blocks.0.attn.proj": "its weight's range runs along axis 1; TensorRT has one scale per output channel"
    }


@pytest.mark.filterwarnings("ignore")  # torch's loader about itself
def test_a_decomposed_program_is_built_as_the_one_it_was_made_of(tmp_path: Path) -> None:
    """Reference: the program itself, run by torch; its quantisers are asymmetric, which costs."""
    importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators that the program holds
    program: Any = torch.export.load(FIXTURES / "pt2e_x86.pt2").run_decompositions()
    torch.export.save(program, tmp_path / "flat.pt2")
    inputs = producers.images()
    expected = producers.answers(program.module(), inputs)
    np.savez(tmp_path / "e.npz", input=array_from_tensor(inputs), output=array_from_tensor(expected))
    arguments = [word for name, value in producers.SPEC.arguments.items() for word in ("--arch-arg", f"{name}={value}")]
    done = run_main(
        build,
        *(tmp_path / "flat.pt2", *ARCH, *arguments, "--int8", "--fp32", "--target", "none"),
        *("--out", tmp_path / "out", "--expect-outputs", tmp_path / "e.npz", "--recipe", "plain_wi8_ai8"),
    )
    assert done.code == 0, done.err
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert decibels(receipt) > 25


@pytest.mark.parametrize(
    ("name", "outputs", "least"),
    [
        ("x86_wider", "x86_wider", 100),  # 133 were measured; 27 with symmetric ranges around the asymmetric ones
        ("xnnpack_wider", "xnnpack_wider", 10),  # 13: the program quantises its residual stream and products too
        ("xnnpack_decomposed", "xnnpack_layers", 100),  # 131, without those
    ],
)
def test_programs_of_pt2e_are_built_with_their_weights_and_ranges(
    tmp_path: Path, name: str, outputs: str, least: float
) -> None:
    expected = FIXTURES / f"pt2e_{outputs}.npz"
    done = run_main(
        build,
        *(FIXTURES / f"pt2e_{name}.pt2", *ARCH, *ARGUMENTS, "--int8", "--fp32", "--target", "none"),
        *("--out", tmp_path / "out", "--expect-outputs", expected),
    )
    assert done.code == 0, done.err
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert {entry["layer"] for entry in plan["layers"] if entry["precision"] == "int8"} == ALL
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    (given,) = [each for each in receipt["producer"] if each["source"].endswith(".npz")]
    assert given["outputs"][0]["sqnr_db"] > least
    unnamed = [line for line in done.err.splitlines() if "pos_embed is the quantised constant without a name" in line]
    assert len(unnamed) == ("xnnpack" in name)


def test_torch_s_observers_are_told_and_say_what_is_missing(tmp_path: Path) -> None:
    model = FIXTURES / "torch_qat.pt"
    done = run_main(build, model, *ARCH, *ARGUMENTS, "--int8", "--target", "none", "--out", tmp_path / "out")
    assert done.code == 5
    assert "84 tensors of its quantisers" in done.err
    assert "which layer reads them only a program shows" in done.err
    assert "--calib" in done.err
