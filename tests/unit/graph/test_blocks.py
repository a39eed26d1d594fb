"""Where a quantised graph is looked at: behind its blocks, and behind the layers of some."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import tiny_models

from gpusq_deploy.graph.blocks import block_sites, layer_sites
from gpusq_deploy.graph.values import NAME_SCOPES

# Two blocks of a Swin's names, a layer between them and one behind; each node's module follows.
TEXT = """
g (float[N,4] x) => (float[N,4] y) {
  a = MatMul(x, w)
  b = MatMul(a, w)
  c = Add(x, b)
  d = MatMul(c, w)
  e = MatMul(d, w)
  f = MatMul(e, w)
  shape = Shape(f)
  g = Add(d, f)
  h = MatMul(g, w)
  y = Add(h, bias)
}
"""
MODULES = {
    "a": "layers.0.blocks.0.mlp.0",
    "b": "layers.0.blocks.0.mlp.3",
    "c": "layers.0.blocks.0",
    "d": "layers.1.downsample.reduction",
    "e": "layers.1.blocks.0.fc1",
    "f": "layers.1.blocks.0.fc2",
    "shape": "layers.1.blocks.0",
    "g": "layers.1.blocks.0",
    "h": "head",
    "y": "head",
}


@pytest.fixture
def model() -> ir.Model:
    made = tiny_models.graph(TEXT, w=np.eye(4, dtype=np.float32), bias=np.zeros(4, np.float32))
    for node in made.graph:
        module = MODULES[str(node.outputs[0].name)]
        node.name = f"node_{node.outputs[0].name}"
        node.metadata_props[NAME_SCOPES] = repr(["", module, f"{module}.op"])
    return made


def test_a_block_is_an_innermost_numbered_module_and_others_stand_for_themselves(model: ir.Model) -> None:
    assert [(site.module, site.tensor) for site in block_sites(model)] == [
        ("layers.0.blocks.0", "c"),
        ("layers.1.downsample.reduction", "d"),
        ("layers.1.blocks.0", "g"),
        ("head", "y"),
    ]


def test_layers_are_looked_at_behind_their_bias_and_inside_whole_modules_only(model: ir.Model) -> None:
    assert [(site.module, site.tensor) for site in layer_sites(model, ["layers.0.blocks.0"])] == [
        ("layers.0.blocks.0.mlp.0", "a"),
        ("layers.0.blocks.0.mlp.3", "b"),
    ]
    assert [site.tensor for site in layer_sites(model, ["head"])] == ["y"]
    assert layer_sites(model, ["layers.0.blocks.0.m", "hea"]) == ()


def test_a_graph_without_modules_has_its_layers_for_sites(model: ir.Model) -> None:
    for node in model.graph:
        node.metadata_props.clear()
    assert [site.tensor for site in block_sites(model)] == ["a", "b", "d", "e", "f", "y"]


@pytest.mark.slow
def test_the_residual_stream_of_a_transformer_is_found() -> None:
    model = tiny_models.exported_vit().model
    sites = {site.module: site.tensor for site in block_sites(model)}
    assert list(sites) == ["patch_embed.proj", "blocks.0", "head"]
    reader = next(
        node for node in model.graph if any(v is not None and v.name == sites["blocks.0"] for v in node.inputs)
    )
    assert reader.op_type == "LayerNormalization"
    assert sites["head"] == "output"
