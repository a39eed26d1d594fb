"""No pass of ours can break 2:4: whatever the weights, what was valid before a pass is valid after it."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import planning
import pytest
import tiny_families
import tiny_models
from hypothesis import given, settings, strategies as st

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.plan import FloatPrecision
from gpusq_deploy.frontend.export.onnx_export import export_float_model
from gpusq_deploy.graph import passes
from gpusq_deploy.graph.layers import GraphLayer, weight_rows, weighted_layers
from gpusq_deploy.graph.passes.base import Pass, run_passes
from gpusq_deploy.graph.passes.cast_to_float_type import CastToFloatType
from gpusq_deploy.graph.passes.keep_fp32 import KeepFp32
from gpusq_deploy.graph.passes.merge_qkv import MergeQkv, find_projections
from gpusq_deploy.graph.passes.pipelines import CANONICAL
from gpusq_deploy.graph.passes.quantize import STORED_TYPE, Quantize, RoundedWeight
from gpusq_deploy.graph.passes.smooth import Smooth, SmoothedTensor
from gpusq_deploy.graph.smoothable import Smoothable, find_smoothable
from gpusq_deploy.graph.values import array_of
from gpusq_deploy.numerics.affine import amax_per_channel, scale_from_amax
from gpusq_deploy.numerics.gptq import second_order_codes
from gpusq_deploy.numerics.smoothing import Smoothing
from gpusq_deploy.numerics.two_four import magnitude_mask, rows_from_conv
from gpusq_deploy.sparsity.check import sparsity_report
from gpusq_deploy.sparsity.graph_check import graph_weights

# One of each way to hold a weight: as rows, as columns, behind a transpose, as kernels; and one that isn't a layer.
FORMS = """g (float[B,8,4,4] image) => (float[B,8] y) {
    [conv] c = Conv<kernel_shape = [2, 2], strides = [2, 2]>(image, kernel)
    [flat] f = Reshape(c, shape)
    [twice] o = Add(other, other)
    [shift] g = Add(f, o)
    [mm] a = MatMul(g, columns)
    [gemm] b = Gemm<transB = 1>(a, rows)
    [turn] t = Transpose<perm = [1, 0]>(turned)
    [turned_mm] d = MatMul(b, t)
    [twin] y = MatMul(d, turned)
}"""
SHAPES = {"kernel": (4, 8, 2, 2), "columns": (16, 8), "rows": (8, 8), "turned": (8, 8)}
TWO = BatchRange(minimum=2, optimum=2, maximum=2)
PRECISIONS = st.sampled_from(["fp16", "bf16", "fp32"])
# The largest stays below FP16's largest number; the smallest vanish in it, and that is fine.
SIZES = st.sampled_from([1e-40, 1e-20, 1e-7, 1e-3, 1.0, 300.0])


def sparse(values: Any, layer: GraphLayer) -> Any:
    """The same weight, 2:4 along the axis that its layer contracts; three input channels have no groups of four."""
    if values.ndim == 4:
        rows = rows_from_conv(values)
        if rows.shape[1] % 4:
            return values
        kept = np.where(magnitude_mask(rows), rows, np.float32(0))
        return np.moveaxis(kept.reshape(values.shape[0], *values.shape[2:], values.shape[1]), -1, 1).copy()
    if layer.channel_axis == 0:
        return np.where(magnitude_mask(values), values, np.float32(0))
    return np.where(magnitude_mask(values.T), values.T, np.float32(0)).T.copy()


def with_sparse_weights(model: ir.Model, *, seed: int, size: float) -> ir.Model:
    """A copy whose layers hold random 2:4 weights of mixed sizes, with minus zeros and rows that are all zero."""
    copy, random = model.clone(), np.random.default_rng(seed)
    for layer in weighted_layers(copy):
        value = copy.graph.initializers[layer.weight]
        shape = array_of(value).shape
        numbers = (random.standard_normal(shape) * size * random.choice([1.0, 1e-4], shape)).astype(np.float32)
        numbers[random.random(shape) < 0.1] = -0.0
        if random.random() < 0.3:
            numbers[0] = 0
        value.const_value = tiny_models.tensor(sparse(numbers, layer), layer.weight)
    return copy


def broken(model: ir.Model) -> list[str]:
    weights = graph_weights(model, weighted_layers(model))
    report = sparsity_report(weights, source="test", recipe=planning.EVERYTHING, record=None)
    return [layer.layer for layer in report.layers if not layer.valid and layer.k % 4 == 0]


def any_smoothing(place: Smoothable, random: np.random.Generator) -> SmoothedTensor:
    """Factors and, where they are possible, offsets that no range would ask for."""
    width = place.readers[0].k
    factor = np.exp2(random.uniform(-3, 3, width)).astype(np.float32)
    offset = random.standard_normal(width).astype(np.float32) if place.shiftable else np.zeros(width, np.float32)
    return SmoothedTensor(place=place, smoothing=Smoothing(factor, offset, None))


def any_rounding(
    model: ir.Model, layer: GraphLayer, precision: FloatPrecision, random: np.random.Generator
) -> RoundedWeight:
    """Codes rounded for inputs that nobody has seen."""
    rows = weight_rows(model, layer)
    inputs = random.standard_normal((2 * layer.k, layer.k)).astype(np.float32)
    scale = scale_from_amax(amax_per_channel(rows, axis=0), dtype=STORED_TYPE[precision]).astype(np.float32)
    codes = second_order_codes(rows, scale, inputs.T @ inputs, damping=0.01)
    return RoundedWeight(codes=codes, scale=scale, bias=None)


def after_passes(model: ir.Model, precision: FloatPrecision, *, seed: int) -> Counter[str]:
    """Run all passes as a compilation does, and look after each; how much each changed."""
    random, seen = np.random.default_rng(seed), Counter[str]()

    def look(step: Pass, graph: ir.Model, changes: int) -> None:
        seen[step.name] += changes
        assert broken(graph) == [], step.name

    model = run_passes(model, CANONICAL, after=look)
    places, _ = find_smoothable(model, weighted_layers(model))
    model = run_passes(model, [Smooth(tuple(any_smoothing(place, random) for place in places))], after=look)
    model = run_passes(model, [MergeQkv(find_projections(model))], after=look)
    layers = weighted_layers(model)
    plan = planning.plan_for(model, planning.table({layer.input: 3.0 for layer in layers}), float_type=precision)
    rounded = {layer.node: any_rounding(model, layer, precision, random) for layer in layers if layer.kind == "linear"}
    for chosen in ({}, rounded):
        # Any activation may be one that FP16 can't hold.
        wide = KeepFp32((layers[int(random.integers(len(layers)))].input,), constants=True)
        built = run_passes(model, [Quantize(plan, chosen), wide, CastToFloatType(precision)], after=look)
        stored = {weight.layer: weight.rows.dtype for weight in graph_weights(built, weighted_layers(built))}
        assert set(stored.values()) == {np.dtype(np.int8)}
    # The same without INT8: the cast alone.
    run_passes(model, [CastToFloatType(precision)], after=look)
    assert set(seen) == every_pass()
    return seen


def every_pass() -> set[str]:
    """Names of all passes that there are."""
    modules = [
        importlib.import_module(f"{passes.__name__}.{found.name}") for found in pkgutil.iter_modules(passes.__path__)
    ]
    kinds: list[Any] = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    return {kind.name for kind in kinds if kind is not Pass and hasattr(kind, "run") and hasattr(kind, "name")}


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), size=SIZES, precision=PRECISIONS)
def test_every_form_of_a_weight_stays_sparse(seed: int, size: float, precision: FloatPrecision) -> None:
    constants: dict[str, Any] = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    constants["shape"] = np.array([-1, 16], np.int64)
    constants["other"] = np.ones(16, np.float32)
    model = with_sparse_weights(tiny_models.graph(FORMS, **constants), seed=seed, size=size)
    # `turned` is read both ways: 4 of 8 by 8, valid along both axes only where half of each is left empty.
    turned = model.graph.initializers["turned"]
    values = array_of(turned).copy()
    values[:, ::2], values[::2] = 0, 0
    turned.const_value = tiny_models.tensor(values, "turned")
    assert broken(model) == []
    assert after_passes(model, precision, seed=seed)["fold-constants"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fired"),
    [
        ("vit", {"attention-scale", "smooth", "quantize", "cast"}),
        ("swin", {"drop-no-ops", "window-norm", "smooth", "quantize", "cast"}),
        ("transformers-vit", {"merge-qkv", "quantize", "cast"}),
    ],
)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=SIZES, precision=PRECISIONS)
def test_an_exported_transformer_stays_sparse(
    name: str, fired: set[str], seed: int, size: float, precision: FloatPrecision
) -> None:
    exports: dict[str, Callable[[], ir.Model]] = {
        "vit": lambda: tiny_models.exported_vit().model,
        "swin": tiny_models.exported_swin,
        "transformers-vit": lambda: export_float_model(tiny_families.checkpoint(name), batch=TWO),
    }
    model = with_sparse_weights(exports[name](), seed=seed, size=size)
    assert broken(model) == []
    changes = after_passes(model, precision, seed=seed)
    expected = fired - {"cast"} if precision == "fp32" else fired
    assert expected <= {step for step, count in changes.items() if count}


def test_the_test_sees_a_pass_that_breaks_the_pattern() -> None:
    class Fill:
        name: ClassVar[str] = "fill"

        def run(self, model: ir.Model) -> int:
            value = model.graph.initializers["w"]
            value.const_value = tiny_models.tensor(np.ones((8, 4), np.float32), "w")
            return 1

    text = "g (float[B,8] x) => (float[B,4] y) { [fc] y = MatMul(x, w) }"
    model = with_sparse_weights(tiny_models.graph(text, w=np.ones((8, 4), np.float32)), seed=0, size=1.0)
    assert broken(model) == []
    assert broken(run_passes(model, [Fill()])) == ["fc"]
