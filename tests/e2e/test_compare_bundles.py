"""gpusq-compare of real bundles: one model by two exporters, with attention broken on purpose, and in INT8."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import pytest
import torch
from commands import run_main

from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.compare import main as compare
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(dense: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense model as a checkpoint in FP16 and INT8, as TorchScript exports it, and that with attention broken."""
    folder = tmp_path_factory.mktemp("compared")
    module = load_checkpoint(dense).module.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own end
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, 32, 32),),
            folder / "traced.onnx",
            dynamo=False,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
        )
    onnx.save(_broken(onnx.load(folder / "traced.onnx")), folder / "broken.onnx")
    for name, source, options in (
        ("fp16", dense, ()),
        ("int8", dense, ("--int8", "--calib", photos)),
        ("traced", folder / "traced.onnx", ()),
        ("broken", folder / "broken.onnx", ()),
    ):
        done = run_main(build, source, *options, "--target", "a100", "--out", folder / f"{name}.gpusq")
        assert done.code == 0, done.err
    return folder


def _broken(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every node by another name, and between softmax and values an operator that no fused attention has."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        node.name = node.name.replace("/blocks/", "/model/layers/").replace("blocks.", "layers.")
        nodes.append(node)
        if node.op_type == "Softmax":
            shares = node.output[0]
            node.output[0] = f"{shares}_before"
            nodes.append(
                onnx.NodeProto(op_type="Sin", input=[f"{shares}_before"], output=[shares], name=f"{node.name}_sin")
            )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def test_another_exporter_changes_no_fusion(folder: Path) -> None:
    """TorchScript and dynamo name every node otherwise; of 24 kernels one differs, by the bytes of an Add in it."""
    done = run_main(compare, folder / "fp16.gpusq", folder / "traced.gpusq", "--json")
    assert done.code == 0, done.out
    found = done.json()
    assert [(change["modules"], change["what"]) for change in found["kernels"]] == [(["head"], ["moves more bytes"])]
    assert not [change for change in found["changes"] if change["layers"]]


def test_broken_attention_is_told_though_every_layer_is_renamed(folder: Path) -> None:
    done = run_main(compare, folder / "fp16.gpusq", folder / "broken.gpusq", "--json")
    assert done.code == 1
    found = done.json()
    lost = [change for change in found["kernels"] if "attention no longer fused" in change["what"]]
    assert [change["modules"][0] for change in lost] == ["blocks.0.attn", "blocks.1.attn"]
    assert all(len(change["base"]) == 1 < len(change["head"]) for change in lost)
    assert not [change for change in found["changes"] if "absent" in (change["base"], change["head"])]
    budgets = folder / "budgets.toml"
    budgets.write_text(
        'schema = "gpusq.expect-change/1"\n[engine.a100]\nattention_lost = "= 0"\nbytes_growth = "<= 50"\n'
    )
    done = run_main(compare, folder / "fp16.gpusq", folder / "broken.gpusq", "--expect", budgets)
    assert done.code == 1
    assert "FAILED  a100: attention_lost = 0: 2 (blocks.0.attn, blocks.1.attn)" in done.out
    assert "ok      a100: bytes_growth" in done.out


def test_int8_changes_types_and_fewer_bytes_are_moved(folder: Path) -> None:
    done = run_main(compare, folder / "fp16.gpusq", folder / "int8.gpusq", "--json")
    found = done.json()
    moved = [change for change in found["kernels"] if "multiplies in fp16 -> int8" in change["what"]]
    assert len({module for change in moved for module in change["modules"]}) >= 10
    assert not [change for change in found["kernels"] if not (change["base"] and change["head"])]
    sizes = {change["what"]: change for change in found["changes"] if change["engine"] == "a100"}
    before, after = (
        float(sizes["bytes moved at the optimal batch alone"][side].split()[0]) for side in ("base", "head")
    )
    assert after < before
    assert all(
        len(line) <= 200 for line in run_main(compare, folder / "fp16.gpusq", folder / "int8.gpusq").out.splitlines()
    )
