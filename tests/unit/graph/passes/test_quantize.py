"""The Q/DQ graph against torch's own fake quantisation of the same layers."""

from __future__ import annotations

import copy
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import onnx_ir as ir
import planning
import pytest
import tiny_models
import torch

from gpusq_deploy.artifacts.calibration import CalibrationTable
from gpusq_deploy.artifacts.plan import FloatPrecision, QuantPlan
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.graph.findings import lint
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.clean import Clean
from gpusq_deploy.graph.passes.quantize import STORED_TYPE, Quantize
from gpusq_deploy.graph.values import array_of

ONE = "g (float[B,4] x) => (float[B,2] y) { [fc] y = MatMul(x, w) }"


def weight(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def bytes_of(model: ir.Model) -> bytes:
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def fake_quantized(module: torch.nn.Module, plan: QuantPlan) -> torch.nn.Module:
    """The module with torch's own fake quantisation on the weights and inputs of the plan's layers."""
    changed = copy.deepcopy(module)
    for decision in plan.layers:
        layer: Any = changed.get_submodule(decision.layer)
        assert decision.activation is not None
        values: torch.Tensor = layer.weight.data
        scale = values.abs().amax(dim=tuple(range(1, values.ndim))) / 127
        zeros = torch.zeros(len(scale), dtype=torch.int32)
        layer.weight.data = torch.fake_quantize_per_channel_affine(values, scale, zeros, 0, -127, 127)
        step = decision.activation.scale

        def quantize_input(_: object, inputs: tuple[torch.Tensor, ...], step: float = step) -> torch.Tensor:
            return torch.fake_quantize_per_tensor_affine(inputs[0], step, 0, -128, 127)

        layer.register_forward_pre_hook(quantize_input)
    return changed


@pytest.mark.slow
def test_the_graph_computes_what_torch_computes_with_fake_quantisation(quantized: planning.Quantized) -> None:
    """A difference of one rounding can flip a code, which the next layers see: compare with half of one step's size."""
    module = tiny_models.exported_vit().checkpoint.module
    images = tiny_models.images(6, seed=5)
    with torch.no_grad():
        expected = array_from_tensor(fake_quantized(module, quantized.plan)(torch.from_numpy(images)))
        unquantized = array_from_tensor(module(torch.from_numpy(images)))
    got = tiny_models.run_model(quantized.after, {"input": images})["output"]
    size = float(np.abs(expected).max())
    noise = float(np.sqrt(np.mean((expected - unquantized) ** 2)))
    assert np.sqrt(np.mean((got - expected) ** 2)) < 0.02 * noise
    assert np.abs(got - expected).max() < 2e-3 * size
    assert noise > 1e-3 * size  # quantisation did something


@pytest.mark.slow
def test_every_layer_is_quantized_and_a_second_run_changes_nothing(quantized: planning.Quantized) -> None:
    count = len(weighted_layers(quantized.before))
    added = {
        op: operators(quantized.after).count(op) - operators(quantized.before).count(op)
        for op in ("QuantizeLinear", "DequantizeLinear", "MatMul", "Gemm", "Conv")
    }
    assert added == {"QuantizeLinear": count, "DequantizeLinear": 2 * count, "MatMul": 0, "Gemm": 0, "Conv": 0}
    again = quantized.after.clone()
    before = bytes_of(again)
    assert Quantize(quantized.plan).run(again) == 0
    assert bytes_of(again) == before


@pytest.mark.slow
def test_the_number_of_changes_is_the_number_of_layers(quantized: planning.Quantized) -> None:
    assert Quantize(quantized.plan).run(quantized.before.clone()) == len(quantized.plan.layers)


@pytest.mark.slow
@pytest.mark.parametrize("float_type", ["fp32", "fp16", "bf16"])
def test_scales_hold_values_of_the_type_that_will_store_them(
    ranges: CalibrationTable, float_type: FloatPrecision
) -> None:
    model = tiny_models.exported_vit().model
    after = planning.quantized(model, ranges, float_type=float_type).after
    scales = [array_of(value) for name, value in after.graph.initializers.items() if name.endswith("_scale")]
    assert len(scales) == 12
    for scale in scales:
        np.testing.assert_array_equal(scale.astype(STORED_TYPE[float_type]).astype(np.float32), scale)


@pytest.mark.slow
def test_biases_that_the_exporter_shares_are_left_alone() -> None:
    exported = tiny_models.exported_vit(biases=False)
    model = exported.model
    after = planning.quantized(model, planning.measured(model)).after
    shared = model.graph.initializers["blocks.0.norm1.bias"]
    assert len(shared.uses()) > 2
    kept = after.graph.initializers["blocks.0.norm1.bias"]
    assert sorted(str(node.name) for node, _ in kept.uses()) == sorted(str(node.name) for node, _ in shared.uses())
    np.testing.assert_array_equal(array_of(kept), array_of(shared))


def test_codes_and_scales_are_those_of_a_slow_loop() -> None:
    values = weight(4, 2)
    model = tiny_models.graph(ONE, w=values)
    after = planning.quantized(model, planning.table({"x": 2.0})).after
    (layer,) = weighted_layers(after)
    codes = array_of(after.graph.initializers[layer.weight])
    for channel in range(2):
        amax = max(abs(float(value)) for value in values[:, channel])
        for k in range(4):
            assert codes[k, channel] == round(float(values[k, channel]) / (amax / 127))


SHARED = """g (float[B,4] x) => (float[B,2] y, float[B,2] z, float[B,2] sum) {
  [r] h = Relu(x)
  [one] y = MatMul(x, w)
  [two] z = MatMul(h, w)
  [add] sum = Add(y, z)
}"""


def test_two_layers_that_share_a_weight_are_both_right() -> None:
    values = weight(4, 2)
    model = tiny_models.graph(SHARED, w=values)
    after = planning.quantized(model, planning.table({"x": 3.0, "h": 3.0})).after
    np.testing.assert_array_equal(array_of(model.graph.initializers["w"]), values)
    feeds = {"x": weight(8, 4, seed=1)}
    got, exact = tiny_models.run_model(after, feeds), tiny_models.run_model(model, feeds)
    for name in ("y", "z", "sum"):
        np.testing.assert_allclose(got[name], exact[name], atol=0.2)
    assert operators(after).count("DequantizeLinear") == 4
    assert list(lint(after)) == []


def test_a_shared_weight_stays_where_only_one_layer_is_quantized() -> None:
    values = weight(4, 2)
    model = tiny_models.graph(SHARED, w=values)
    plan = planning.plan_for(model, planning.table({"x": 3.0, "h": 0.0}))
    assert [decision.precision for decision in plan.layers] == ["int8", "fp32"]
    after = run_passes(model, [Quantize(plan)])
    np.testing.assert_array_equal(array_of(after.graph.initializers["w"]), values)
    feeds = {"x": weight(8, 4, seed=1)}
    # The same product of the same numbers.
    np.testing.assert_array_equal(tiny_models.run_model(after, feeds)["z"], tiny_models.run_model(model, feeds)["z"])


def test_two_layers_that_read_one_tensor_share_one_pair() -> None:
    text = """g (float[B,4] x) => (float[B,2] y, float[B,3] z, float[B,4] r) {
      [q] y = MatMul(x, wq)
      [other] r = Relu(x)
      [k] z = MatMul(x, wk)
    }"""
    model = tiny_models.graph(text, wq=weight(4, 2), wk=weight(4, 3, seed=1))
    after = planning.quantized(model, planning.table({"x": 2.0})).after
    assert operators(after).count("QuantizeLinear") == 1
    relu = next(node for node in after.graph if node.op_type == "Relu")
    assert relu.inputs[0] is after.graph.inputs[0]  # a reader that isn't quantised keeps the float tensor
    assert list(lint(after)) == []


def test_a_product_of_a_tensor_with_two_weights_in_a_row_is_ordered() -> None:
    text = """g (float[B,4] x) => (float[B,4] y) {
      [a] h = MatMul(x, wa)
      [b] y = MatMul(h, wb)
    }"""
    model = tiny_models.graph(text, wa=weight(4, 4), wb=weight(4, 4, seed=1))
    after = planning.quantized(model, planning.table({"x": 2.0, "h": 5.0})).after
    tiny_models.run_model(after, {"x": weight(2, 4)})


@pytest.mark.parametrize("transposes", [1, 2])
def test_a_weight_behind_a_transpose_is_quantized_by_its_output_channels(transposes: int) -> None:
    steps = " ".join(f"[t{i}] w{i + 1} = Transpose<perm = [1, 0]>(w{i})" for i in range(transposes))
    text = f"g (float[B,4] x) => (float[B,2] y) {{ {steps} [fc] y = MatMul(x, w{transposes}) }}"
    values = weight(2, 4) * np.array([[1], [100]], np.float32)
    model = tiny_models.graph(text, w0=values if transposes == 1 else np.ascontiguousarray(values.T))
    after = planning.quantized(model, planning.table({"x": 3.0})).after
    feeds = {"x": weight(8, 4, seed=1)}
    got, exact = tiny_models.run_model(after, feeds)["y"], tiny_models.run_model(model, feeds)["y"]
    for channel in range(2):
        assert np.abs(got - exact)[:, channel].max() < 0.03 * np.abs(exact[:, channel]).max()
    assert list(lint(after)) == []


@pytest.mark.parametrize("flag", [0, 1])
def test_a_gemm_is_quantized_by_its_output_channels(flag: int) -> None:
    values = weight(4, 2) * np.array([1, 100], np.float32)
    text = f"g (float[B,4] x) => (float[B,2] y) {{ [fc] y = Gemm<transB = {flag}>(x, w, b) }}"
    stored = np.ascontiguousarray(values.T) if flag else values
    model = tiny_models.graph(text, w=stored, b=np.ones(2, np.float32))
    after = planning.quantized(model, planning.table({"x": 3.0})).after
    feeds = {"x": weight(8, 4, seed=1)}
    got, exact = tiny_models.run_model(after, feeds)["y"], tiny_models.run_model(model, feeds)["y"]
    for channel in range(2):
        assert np.abs(got - exact)[:, channel].max() < 0.03 * np.abs(exact[:, channel]).max()


def test_a_dead_channel_stays_zero() -> None:
    values = weight(4, 2)
    values[:, 1] = 0
    after = planning.quantized(tiny_models.graph(ONE, w=values), planning.table({"x": 3.0})).after
    assert not tiny_models.run_model(after, {"x": weight(5, 4, seed=1)})["y"][:, 1].any()


def test_a_sparse_weight_stays_sparse_along_its_contracted_axis() -> None:
    values = weight(8, 3)
    values[[0, 2, 5, 7]] = 0
    text = "g (float[B,8] x) => (float[B,3] y) { [fc] y = MatMul(x, w) }"
    after = planning.quantized(tiny_models.graph(text, w=values), planning.table({"x": 3.0})).after
    (layer,) = weighted_layers(after)
    assert not array_of(after.graph.initializers[layer.weight])[[0, 2, 5, 7]].any()


def test_a_weight_whose_scale_outgrows_fp16_is_named() -> None:
    model = tiny_models.graph(ONE, w=weight(4, 2) * np.float32(1e8))
    with pytest.raises(GpusqError, match="can't be quantised") as caught:
        planning.quantized(model, planning.table({"x": 3.0}), float_type="fp16")
    assert "tensor w" in str(caught.value.place)
    assert "--bf16" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"node": "gone"}, "a node that the graph doesn't have"),
        ({"weight": "other"}, "another weight"),
        ({"activation": "other"}, "another input"),
    ],
)
def test_a_plan_of_another_graph_is_refused(change: dict[str, str], what: str) -> None:
    model = tiny_models.graph(ONE, w=weight(4, 2))
    plan = planning.plan_for(model, planning.table({"x": 3.0}))
    (decision,) = plan.layers
    fields: dict[str, Any] = {
        name: text if name == "node" else msgspec.structs.replace(getattr(decision, name), tensor=text)
        for name, text in change.items()
    }
    wrong = msgspec.structs.replace(plan, layers=(msgspec.structs.replace(decision, **fields),))
    with pytest.raises(GpusqError, match=what):
        Quantize(wrong).run(model.clone())


def test_a_pass_is_its_repr() -> None:
    model = tiny_models.graph(ONE, w=weight(4, 2))
    plan = planning.plan_for(model, planning.table({"x": 3.0}))
    assert repr(Quantize(plan)) == f"Quantize(plan={plan!r})"
    assert Quantize(plan) == Quantize(plan)
    assert repr(Clean()) == "Clean()"


def test_bf16_scales_are_those_of_ml_dtypes() -> None:
    assert STORED_TYPE["bf16"] is ml_dtypes.bfloat16
