"""FP8 and INT4 layers: what the graph computes against torch, and what it stores."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import planning
import pytest
import tiny_models
import torch

from gpusq_deploy.artifacts.plan import QuantPlan
from gpusq_deploy.artifacts.recipe import Recipe, Rule
from gpusq_deploy.graph.findings import lint
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.cast_to_float_type import CastToFloatType
from gpusq_deploy.graph.passes.quantize import Quantize, RoundedWeight
from gpusq_deploy.graph.values import array_of
from gpusq_deploy.sparsity.check import sparsity_report

PLAIN = "g (float[B,64] x) => (float[B,6] y) { [fc] y = MatMul(x, w) }"
TURNED = """g (float[B,64] x) => (float[B,6] y) {
  v = Transpose<perm = [1, 0]>(w)
  [fc] y = MatMul(x, v)
}"""
GEMM = "g (float[B,64] x) => (float[B,6] y) { [fc] y = Gemm<transB = 1>(x, w, b) }"


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def graph(text: str) -> tuple[ir.Model, Any]:
    """A graph of one layer, opset 21, and its weight [6, 64]."""
    rows = random(6, 64)
    constants = {"w": rows.T.copy() if text == PLAIN else rows}
    model = tiny_models.graph(text, **constants, **({"b": random(6, seed=2)} if text == GEMM else {}))
    model.graph.opset_imports[""] = 21
    return model, rows


def recipe(**rule: Any) -> Recipe:
    return Recipe(schema="gpusq.recipe/1", name="low", description="a test", rules=(Rule(reason="all", **rule),))


def plan(model: ir.Model, **rule: Any) -> QuantPlan:
    return planning.plan_for(model, planning.table({"x": 4.0}), recipe=recipe(**rule))


@pytest.mark.parametrize("text", [PLAIN, TURNED, GEMM])
def test_fp8_computes_what_torch_s_float8_does(text: str) -> None:
    model, rows = graph(text)
    built = run_passes(model, [Quantize(plan(model, precision="fp8"))])
    assert list(lint(built)) == []
    x = random(5, 64, seed=1)

    def coded(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (values / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(torch.float32) * scale

    weight = torch.from_numpy(rows)
    step = torch.tensor(4.0 / 448, dtype=torch.float32)
    answer = coded(torch.from_numpy(x), step) @ coded(weight, weight.abs().amax(1, keepdim=True) / 448).T
    expected: npt.NDArray[np.float32] = np.asarray(answer, np.float32)
    expected += random(6, seed=2) if text == GEMM else 0
    got = tiny_models.run_model(built, {"x": x})["y"]
    assert np.allclose(got, expected, atol=1e-4)
    assert np.abs(got - tiny_models.run_model(model, {"x": x})["y"]).max() > 1e-2  # it did something


@pytest.mark.parametrize("text", [PLAIN, TURNED, GEMM])
@pytest.mark.parametrize("float_type", ["fp32", "fp16"])
def test_int4_computes_with_a_scale_for_each_block_and_packs_two_codes_into_a_byte(text: str, float_type: Any) -> None:
    model, rows = graph(text)
    decided = planning.plan_for(
        model, planning.table({}), float_type=float_type, recipe=recipe(precision="int4", block=32)
    )
    built = run_passes(model, [Quantize(decided), CastToFloatType(float_type)])
    assert list(lint(built)) == []
    stored = built.graph.initializers["fc_weight_int4"]
    scale = array_of(built.graph.initializers["fc_weight_scale"]).astype(np.float32)
    assert stored.dtype == ir.DataType.INT4
    assert stored.const_value is not None
    assert stored.const_value.nbytes == rows.size // 2
    codes = array_of(stored).astype(np.float32)
    codes, scale = (codes.T, scale.T) if codes.shape[0] == 64 else (codes, scale)
    assert scale.shape == (6, 2)
    expected = random(5, 64, seed=1) @ (codes * np.repeat(scale, 32, axis=1)).T
    expected += random(6, seed=2) if text == GEMM else 0
    got = tiny_models.run_model(built, {"x": random(5, 64, seed=1)})["y"]
    assert np.allclose(got, expected, atol=1e-4 if float_type == "fp32" else 0.05)
    assert np.abs(codes * np.repeat(scale, 32, axis=1) - rows).max() < 0.6  # half a step, or what is clipped


def test_a_second_run_changes_nothing() -> None:
    for rule in ({"precision": "fp8"}, {"precision": "int4", "block": 32}):
        model, _ = graph(PLAIN)
        decided = plan(model, **rule)
        built = run_passes(model, [Quantize(decided)])
        assert Quantize(decided).run(built) == 0


def test_an_int8_and_an_fp8_layer_that_read_one_tensor_have_a_pair_each() -> None:
    text = "g (float[B,64] x) => (float[B,6] y, float[B,6] z) { [a] y = MatMul(x, w) [b] z = MatMul(x, v) }"
    model = tiny_models.graph(text, w=random(64, 6), v=random(64, 6, seed=1))
    rules = (Rule(match="a", precision="fp8", reason="one"), Rule(reason="the other"))
    mixed = Recipe(schema="gpusq.recipe/1", name="mixed", description="a test", rules=rules)
    built = run_passes(model, [Quantize(planning.plan_for(model, planning.table({"x": 4.0}), recipe=mixed))])
    types = [node.outputs[0].dtype for node in built.graph if node.op_type == "QuantizeLinear"]
    assert types == [ir.DataType.FLOAT8E4M3FN, ir.DataType.INT8]


def test_int4_weights_that_were_rounded_beforehand_are_stored_with_their_bias() -> None:
    model, _ = graph(GEMM)
    codes, scale = np.full((6, 64), -3, np.int8), np.full((6, 2), 0.5, np.float32)
    weights = {"fc": RoundedWeight(codes=codes, scale=scale, bias=np.arange(6.0))}
    built = run_passes(model, [Quantize(plan(model, precision="int4", block=32), weights)])
    x = random(3, 64, seed=4)
    expected = x @ np.full((64, 6), -1.5, np.float32) + random(6, seed=2) + np.arange(6)
    assert np.allclose(tiny_models.run_model(built, {"x": x})["y"], expected, atol=1e-3)


def test_2_4_stays_in_either_precision_and_the_check_reads_their_codes() -> None:
    from gpusq_deploy.graph.layers import weighted_layers
    from gpusq_deploy.numerics.two_four import magnitude_mask
    from gpusq_deploy.sparsity.graph_check import graph_weights

    rows = random(8, 64)
    rows *= magnitude_mask(rows)
    text = PLAIN.replace("6]", "8]")
    for rule, name in (({"precision": "fp8"}, "float8_e4m3fn"), ({"precision": "int4", "block": 64}, "int4")):
        model = tiny_models.graph(text, w=rows.T.copy())
        model.graph.opset_imports[""] = 21
        built = run_passes(model, [Quantize(plan(model, **rule))])
        weights = graph_weights(built, weighted_layers(built))
        (state,) = sparsity_report(weights, source="t", recipe=recipe(**rule), record=None).layers
        assert state.valid
        assert state.dtype == name
        assert state.zero_fraction >= 0.5


def test_ml_dtypes_and_onnx_agree_on_the_bits_of_fp8() -> None:
    model, _ = graph(PLAIN)
    built = run_passes(model, [Quantize(plan(model, precision="fp8"))])
    stored = array_of(built.graph.initializers["fc_weight_fp8"])
    assert stored.dtype == ml_dtypes.float8_e4m3fn
    assert np.abs(stored.astype(np.float32)).max() <= 448
