"""Module names of an ONNX file's nodes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import tiny_models

from gpusq_deploy.frontend.onnx_file.names import name_modules, scope_of
from gpusq_deploy.graph import NAME_SCOPES, module_of


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("/blocks/blocks.0/attn/qkv/MatMul", "blocks.0.attn.qkv"),
        ("/vit/encoder/layer.11/output/dense/MatMul", "vit.encoder.layer.11.output.dense"),
        ("/features/features.1/features.1.0/attn/MatMul_2", "features.1.0.attn"),
        ("/MatMul", ""),
        ("model/layer_0/query/Tensordot/MatMul", ""),
        ("MatMul_12", ""),
        ("", ""),
    ],
)
def test_scopes_of_torchscript(name: str, module: str) -> None:
    assert scope_of(name) == module


def product(node: str, weight: str, recorded: str = "") -> str:
    """The module of a MatMul of this name, by a weight of this name."""
    model = tiny_models.graph(f'm (float[2, 4] x) => (float[2, 4] y) {{ [named] y = MatMul(x, "{weight}") }}')
    value = ir.Value(name=weight, shape=ir.Shape([4, 4]), type=ir.TensorType(ir.DataType.FLOAT))
    value.const_value = ir.tensor(np.eye(4, dtype=np.float32), name=weight)
    (found,) = model.graph
    model.graph.register_initializer(value)
    found.replace_input_with(1, value)
    found.name = node
    if recorded:
        found.metadata_props[NAME_SCOPES] = repr(["", recorded, "linear"])
    name_modules(model)
    return module_of(found)


@pytest.mark.parametrize(
    ("node", "weight", "recorded", "module"),
    [
        ("/blocks.0/fc/MatMul", "onnx::MatMul_12", "", "blocks.0.fc"),
        ("n", "blocks.0.fc.weight", "", "blocks.0.fc"),
        ("n", "const_fold_opt__12", "", ""),
        ("/attn/MatMul", "attn.qkv.weight", "", "attn.qkv"),
        ("/blocks.1/fc/MatMul", "blocks.0.fc.weight", "", "blocks.1.fc"),
        ("/x/MatMul", "y.weight", "head", "head"),
        ("n", "head.inner.weight", "head", "head.inner"),
    ],
)
def test_what_is_recorded_goes_before_scopes_and_those_before_weights(
    node: str, weight: str, recorded: str, module: str
) -> None:
    assert product(node, weight, recorded) == module
