"""Weights that share a tensor: fewer of them, and the compiler makes the same kernels."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import tiny_families
import tiny_models

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.compile import CANONICAL
from gpusq_deploy.engines.cost import graph_cost, layers_at
from gpusq_deploy.export.onnx_export import export_float_model
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.light import share_weights
from gpusq_deploy.passes.base import run_passes
from gpusq_deploy.targets import find_target


def kernels(model: ir.Model, folder: Path, batch: int) -> int:
    save_model(model, folder / "model.onnx")
    layers = layers_at(folder / "model.onnx", find_target("a100"), batch, backend="tensorrt-rtx")
    return graph_cost(layers, batch=batch).kernels


def weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["swin", "transformers-vit", "detr", "deformable-detr"])
def test_a_light_graph_compiles_to_as_many_kernels(family: str, tmp_path: Path) -> None:
    batch = BatchRange(minimum=2, optimum=2, maximum=2)
    model = run_passes(export_float_model(tiny_families.checkpoint(family), batch=batch), CANONICAL)
    light = model.clone()
    assert share_weights(light) > 0
    assert weight_bytes(light) < weight_bytes(model)
    assert kernels(light, tmp_path, 2) == kernels(model, tmp_path, 2)


def test_products_of_one_input_keep_their_weights() -> None:
    model = tiny_models.exported_vit().model.clone()
    wide = ir.tensor([[0.5] * 64] * 64, dtype=ir.DataType.FLOAT)
    value = model.graph.inputs[0]
    for name in ("first", "second"):
        weight = ir.Value(name=name, shape=ir.Shape([64, 64]), type=ir.TensorType(ir.DataType.FLOAT), const_value=wide)
        model.graph.register_initializer(weight)
        model.graph.append(ir.node("MatMul", [value, weight], name=f"{name}_product"))
    share_weights(model)
    assert {"first", "second"} <= set(model.graph.initializers)
