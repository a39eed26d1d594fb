"""Subgraphs of constants are worked out, whatever they compute: against torch, and ONNX Runtime on the graph before."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import timm
import torch
from tiny_models import DYNAMIC, graph, run_model

from gpusq_deploy.artifacts.arch import ArchSpec, Preprocessing
from gpusq_deploy.frontend.checkpoint.load import Checkpoint
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.frontend.export.onnx_export import example_input, export_float_model
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.clean import Clean
from gpusq_deploy.graph.passes.fold_constants import FoldConstants
from gpusq_deploy.graph.passes.pipelines import SIMPLE
from gpusq_deploy.graph.values import array_of

Array = npt.NDArray[Any]
EPS = float(np.finfo(np.float32).eps)


def random(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def folded(model: ir.Model) -> ir.Model:
    return run_passes(model, [Clean(), FoldConstants()])


# As torch's exporter writes them.
_SAME = 'nearest_mode = "floor", coordinate_transformation_mode = "half_pixel"'
RESIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "cubic": (f'mode = "cubic", cubic_coeff_a = -0.75, {_SAME}', {"mode": "bicubic"}),
    "linear": (f'mode = "linear", {_SAME}', {"mode": "bilinear"}),
    "cubic, antialias": (
        f'mode = "cubic", antialias = 1, exclude_outside = 1, cubic_coeff_a = -0.5, {_SAME}',
        {"mode": "bicubic", "antialias": True},
    ),
    "linear, antialias": (
        f'mode = "linear", antialias = 1, exclude_outside = 1, {_SAME}',
        {"mode": "bilinear", "antialias": True},
    ),
}


@pytest.mark.parametrize("size", [(10, 9), (23, 14)])
@pytest.mark.parametrize("name", RESIZES)
def test_a_resized_table_is_what_torch_makes_of_it(name: str, size: tuple[int, int]) -> None:
    attributes, asked = RESIZES[name]
    table = random(1, 64, 14, 14)
    text = f"""g (float[batch, 64, {size[0]}, {size[1]}] x) => (float[batch, 64, {size[0]}, {size[1]}] y) {{
      whole = Shape(table)
      front = Slice(whole, zero, two)
      sizes = Concat<axis = 0>(front, size)
      small = Resize<{attributes}>(table, , , sizes)
      y = Add(x, small)
    }}"""
    constants = {"zero": np.array([0]), "two": np.array([2]), "size": np.array(size)}
    found = folded(graph(text, table=table, **constants))
    (node,) = found.graph
    assert node.inputs[1] is not None
    resized = torch.nn.functional.interpolate(torch.from_numpy(table), size=size, **asked)
    # Rows and columns are each sums of at most a dozen float32 products; positions are rounded to 24 bits.
    np.testing.assert_allclose(array_of(node.inputs[1]), array_from_tensor(resized), rtol=0, atol=14 * 12 * EPS)


EVERY = {
    "pool": ("c = AveragePool<kernel_shape = [2, 2]>(table)", [1, 4, 7, 7]),
    "conv": ("c = Conv(table, kernel)", [1, 3, 7, 7]),
    "grid": ('c = GridSample<mode = "linear">(table, grid)', [1, 4, 2, 2]),
    "norm": ("c = InstanceNormalization(table, four, four)", [1, 4, 8, 8]),
    "reduce": ("c = ReduceL2<keepdims = 1>(table, axes)", [1, 4, 1, 1]),
    "einsum": ('c = Einsum<equation = "nchw,nchv->ncwv">(table, table)', [1, 4, 8, 8]),
    "topk": ("c, i = TopK(table, two)", [1, 4, 8, 2]),
    "split": ("a, b = Split<axis = 1, num_outputs = 2>(table)\n c = Concat<axis = 1>(b, a)", [1, 4, 8, 8]),
    "dropout": ("c = Dropout(table)", [1, 4, 8, 8]),
}


@pytest.mark.parametrize("name", EVERY)
def test_whatever_constants_go_through_is_worked_out(name: str) -> None:
    body, shape = EVERY[name]
    listed = ", ".join(map(str, shape))
    model = graph(
        f"g (float[batch, 1, 1, 1] x) => (float[batch, {listed[3:]}] y) {{ {body}\n y = Add(x, c) }}",
        table=random(1, 4, 8, 8),
        kernel=random(3, 4, 2, 2),
        grid=random(1, 2, 2, 2),
        four=random(4),
        axes=np.array([2, 3]),
        two=np.array([2]),
    )
    found = folded(model)
    assert operators(found) == {"Add": 1}
    feeds = {"x": random(2, 1, 1, 1)}
    # Sums of at most 64 float32 numbers, by ONNX Runtime both times or by numpy once.
    np.testing.assert_allclose(run_model(found, feeds)["y"], run_model(model, feeds)["y"], rtol=64 * EPS, atol=64 * EPS)


@pytest.mark.parametrize(
    "body",
    [
        "c = RandomNormalLike(table)",
        "c = RandomUniformLike(table)",
        "c = Bernoulli(table)",
        "c, m = Dropout(table, half, yes)",
    ],
)
def test_numbers_that_are_drawn_stay_drawn(body: str) -> None:
    text = f"g (float[batch, 4] x) => (float[batch, 4] y) {{ {body}\n y = Add(x, c) }}"
    model = graph(text, table=random(4) ** 2 % 1, half=np.array(0.5, np.float32), yes=np.array(True))
    assert FoldConstants().run(model) == 0


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("c = Expand(one, shape)", [1 << 20, 1 << 20]),
        ("c = Tile(one, shape)", [1 << 20, 1 << 20]),
        ("c = ConstantOfShape(shape)", [1 << 20, 1 << 20]),
        ("c = Add(column, row)", [3000, 2000]),
    ],
)
def test_what_would_blow_up_is_not_even_tried(body: str, shape: list[int]) -> None:
    """Some of these are four terabytes. Their shapes are not declared, so they have to be worked out first."""
    text = f"g (float[1, 1] x) => (float[n, m] y) {{ {body}\n y = Add(x, c) }}"
    model = graph(
        text, one=np.ones((1, 1), np.float32), shape=np.array(shape), column=random(3000, 1), row=random(1, 2000)
    )
    for value in (output for node in model.graph for output in node.outputs):
        value.shape = None
    assert FoldConstants().run(model) == 0


def test_a_large_table_is_resized_and_what_is_computed_from_it_is_no_larger() -> None:
    text = """g (float[batch, 4356, 1152] x) => (float[batch, 4356, 1152] y) {
      large = Resize<mode = "nearest">(table, , , sizes)
      flat = Reshape(large, shape)
      turned = Transpose<perm = [0, 2, 1]>(flat)
      y = Add(x, turned)
    }"""
    model = graph(text, table=random(1, 1152, 3, 3), sizes=np.array([1, 1152, 66, 66]), shape=np.array([1, 1152, -1]))
    (node,) = folded(model).graph
    assert node.inputs[1] is not None
    assert cast("ir.Shape", node.inputs[1].shape).numpy() == (1, 4356, 1152)


def test_what_nobody_can_work_out_stays() -> None:
    model = graph("g (float[4] x) => (float[4] y) { c = Neg(table)\n y = Add(x, c) }", table=random(4))
    model.graph[0].op_type = "NoSuchOperator"
    assert FoldConstants().run(model) == 0


class Resized(torch.nn.Module):
    """A position table of its own, resized in every forward, as many repositories write it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 64, 8, 8)
        self.positions = torch.nn.Parameter(torch.randn(1, 64, 14, 14))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 3, 32, 32] to [n, 64, 4, 4]."""
        patches: torch.Tensor = self.patches(images)
        size = patches.shape[2:]
        return patches + torch.nn.functional.interpolate(self.positions, size, mode="bicubic", antialias=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["own", "timm"])
def test_an_exported_model_that_resizes_its_positions_has_no_resize(family: str) -> None:
    torch.manual_seed(0)
    changes: dict[str, Any] = {"depth": 1, "num_classes": 5, "dynamic_img_size": True}
    module = Resized() if family == "own" else timm.create_model("vit_tiny_patch16_224", **changes)
    size = 32 if family == "own" else 96
    arch = ArchSpec(source="factory", name="a test")
    shape = Preprocessing(channels=3, height=size, width=size, mean=(0.5,) * 3, std=(0.5,) * 3, origin="test")
    checkpoint = Checkpoint(file="m", digest="", format="", arch=arch, module=module.eval(), preprocessing=shape)
    exported = export_float_model(checkpoint, batch=DYNAMIC)
    assert operators(exported)["Resize"] == 1
    simple = run_passes(exported, SIMPLE)
    assert operators(simple)["Resize"] == 0
    feed = example_input(checkpoint, 3)
    with torch.no_grad():
        wanted = array_from_tensor(module(feed))
    got = run_model(simple, {str(simple.graph.inputs[0].name): array_from_tensor(feed)})["output"]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
