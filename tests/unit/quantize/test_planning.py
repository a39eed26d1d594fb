"""The plan: every decision and every reason that it knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import msgspec
import numpy as np
import planning
import pytest

from gpusq_deploy.artifacts.base import json_from_value, value_from_json
from gpusq_deploy.artifacts.plan import FloatPrecision, Fp32Tensor, LayerDecision, LayerKind, QuantPlan
from gpusq_deploy.artifacts.recipe import SHIPPED, Recipe, Rule, load_recipe
from gpusq_deploy.artifacts.sparsity import LayerSparsity, SparsityReport
from gpusq_deploy.engines.targets import GemmNeed, check_request, find_target
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.layers import GraphLayer
from gpusq_deploy.quantize.fp16_overflow import Fp16Overflow
from gpusq_deploy.quantize.planning import PlanRequest, layers_to_quantize, make_plan
from gpusq_deploy.quantize.sites import ActivationSites

MIXED = Recipe(
    schema="gpusq.recipe/1",
    name="mixed",
    description="a test",
    rules=(
        Rule(match="head", sparse=False, reason="heads are small"),
        Rule(match="float*", precision="float", sparse=False, required=False, reason="kept in float"),
        Rule(match="fc*", required=False, reason="fc is large"),
    ),
)


def layer(name: str, *, kind: LayerKind = "linear", macs: int = 100, reads: str | None = None) -> GraphLayer:
    return GraphLayer(
        layer=name,
        node=f"node_{name}",
        kind=kind,
        input=reads or f"into_{name}",
        weight=f"{name}.weight",
        channel_axis=1,
        n=8,
        k=16,
        macs=macs,
    )


HEAD, FC, FLOAT, STRANGER = layer("head"), layer("fc1"), layer("float1"), layer("stranger")
LAYERS = (HEAD, FC, FLOAT, STRANGER)


def states(layers: tuple[GraphLayer, ...] = LAYERS, **changes: Any) -> SparsityReport:
    """Valid 2:4 everywhere, expected as the recipe says."""
    found: list[LayerSparsity] = []
    for each in layers:
        rule = MIXED.rule_for(each.layer, each.kind)
        state = LayerSparsity(
            layer=each.layer,
            tensor=each.weight,
            n=8,
            k=16,
            groups=32,
            violations=0,
            zero_fraction=0.5,
            expected=rule is not None and rule.sparse,
            reason="the recipe's reason",
        )
        found.append(msgspec.structs.replace(state, **changes))
    return SparsityReport(source="model.pt", layers=tuple(found))


def plan(
    *layers: GraphLayer,
    quantize: bool = True,
    sparse: bool = False,
    float_type: FloatPrecision = "fp16",
    ranges: Mapping[str, float] | None = None,
    sparsity: SparsityReport | None = None,
    recipe: Recipe = MIXED,
) -> QuantPlan:
    chosen = layers or LAYERS
    given = {each.input: 4.0 for each in chosen} if ranges is None else ranges
    return make_plan(
        chosen,
        PlanRequest(recipe=recipe, quantize=quantize, sparse=sparse, float_type=float_type),
        table=planning.table(given) if quantize else None,
        sparsity=states(chosen) if sparsity is None else sparsity,
    )


def decisions(of: QuantPlan) -> dict[str, LayerDecision]:
    return {each.layer: each for each in of.layers}


def test_the_recipe_decides_precision_and_its_reason_is_kept() -> None:
    got = decisions(plan())
    assert {name: each.precision for name, each in got.items()} == {
        "head": "int8",
        "fc1": "int8",
        "float1": "fp16",
        "stranger": "fp16",
    }
    assert {name: each.precision_reason for name, each in got.items()} == {
        "head": "recipe mixed: heads are small",
        "fc1": "recipe mixed: fc is large",
        "float1": "recipe mixed: kept in float",
        "stranger": "no rule of recipe mixed matches it",
    }


def test_without_int8_every_layer_is_the_remainder_and_says_so() -> None:
    got = plan(quantize=False, float_type="bf16")
    assert {each.precision for each in got.layers} == {"bf16"}
    assert {each.precision_reason for each in got.layers} == {"INT8 was not asked for"}
    assert all(each.activation is None and each.weight is None for each in got.layers)
    assert got.notes == ()


def test_an_input_that_is_always_zero_has_no_scale_and_stays_float() -> None:
    got = decisions(plan(HEAD, FC, ranges={"into_head": 0.0, "into_fc1": 1.0}))
    assert got["head"].precision == "fp16"
    assert got["head"].precision_reason.startswith("its input is zero on all calibration data (given)")
    assert got["head"].activation is None
    assert got["fc1"].precision == "int8"


def test_a_missing_range_is_named_with_its_layer_and_tensor() -> None:
    with pytest.raises(GpusqError, match="no range") as caught:
        plan(HEAD, FC, ranges={"into_head": 1.0})
    assert caught.value.place == "fc1, tensor into_fc1"


def test_a_layer_that_stays_float_needs_no_range() -> None:
    assert plan(HEAD, FLOAT, ranges={"into_head": 1.0}).layers[1].precision == "fp16"


@pytest.mark.parametrize(
    ("float_type", "amax", "fits"),
    [
        ("fp16", 65504.0, True),
        ("fp16", 65505.0, False),
        ("bf16", 1e38, True),
        ("bf16", 3.4e38, False),
        ("fp32", 3.4e38, True),
        ("fp32", 1e39, False),
    ],
)
def test_an_activation_beyond_the_remainders_type_is_refused(
    float_type: FloatPrecision, amax: float, fits: bool
) -> None:
    if fits:
        activation = plan(HEAD, ranges={"into_head": amax}, float_type=float_type).layers[0].activation
        assert activation is not None
        assert np.isfinite(activation.scale)
        return
    with pytest.raises(GpusqError, match=re.escape(f"{amax:.6g}, more than {float_type} can hold")) as caught:
        plan(HEAD, ranges={"into_head": amax}, float_type=float_type)
    assert "tensor into_head" in str(caught.value.place)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("float_type", "stored"), [("fp32", np.float32), ("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)]
)
def test_the_scale_is_amax_over_127_in_the_type_that_is_stored(float_type: FloatPrecision, stored: Any) -> None:
    activation = plan(HEAD, ranges={"into_head": 3.3}, float_type=float_type).layers[0].activation
    assert activation is not None
    assert activation.scale == float(np.asarray(3.3 / 127).astype(stored))
    assert (activation.tensor, activation.amax, activation.origin) == ("into_head", 3.3, "given")


def test_weights_are_quantized_per_output_channel() -> None:
    weight = plan(HEAD).layers[0].weight
    assert weight is not None
    assert (weight.tensor, weight.axis, weight.channels) == ("head.weight", 1, 8)


def test_a_required_rule_that_decides_nothing_stops_the_plan() -> None:
    with pytest.raises(GpusqError, match="decide no layer: match = 'head'"):
        plan(FC)
    plan(FC, quantize=False)


def test_sparsity_that_was_not_asked_for_says_so() -> None:
    assert {(each.sparse, each.sparse_reason) for each in plan().layers} == {(False, "sparsity was not asked for")}


def test_layers_that_are_expected_to_be_sparse_are_and_say_why() -> None:
    got = decisions(plan(sparse=True))
    assert {name: each.sparse for name, each in got.items()} == {
        "head": False,
        "fc1": True,
        "float1": False,
        "stranger": False,
    }
    assert got["fc1"].sparse_reason == "2:4 valid in all 32 groups; the recipe's reason"
    assert got["head"].sparse_reason == "dense: the recipe's reason"


def test_a_layer_that_should_be_sparse_and_is_not_never_counts_as_sparse() -> None:
    broken = states((HEAD, FC), violations=3, expected=True)
    for each in plan(HEAD, FC, sparse=True, sparsity=broken).layers:
        assert not each.sparse
        assert "not 2:4" in each.sparse_reason
        assert "3 of 32" in each.sparse_reason


def test_a_weight_that_the_sparsity_check_did_not_see_is_dense_and_says_so() -> None:
    got = decisions(plan(HEAD, FC, sparse=True, sparsity=states((HEAD,))))
    assert not got["fc1"].sparse
    assert "didn't see it" in got["fc1"].sparse_reason


def test_sparse_layers_may_stay_float() -> None:
    got = decisions(plan(HEAD, FC, quantize=False, sparse=True))
    assert (got["fc1"].sparse, got["fc1"].precision) == (True, "fp16")


def test_the_notes_give_the_share_of_int8_and_name_what_is_unknown() -> None:
    layers = (layer("head", macs=300), layer("float1", macs=100), layer("fc9", macs=0))
    notes = plan(*layers).notes
    assert notes[0] == "INT8: 75.0 % of the weighted layers' FLOPs"
    assert notes[1] == "output shape unknown, so without FLOPs: fc9"
    assert "softmax" in notes[2]


def test_two_layers_of_one_tensor_get_one_scale() -> None:
    got = plan(layer("head", reads="x"), layer("fc1", reads="x"), ranges={"x": 2.0})
    first, second = (each.activation for each in got.layers)
    assert first == second


def test_decisions_keep_the_graphs_order_names_and_sizes() -> None:
    got = plan()
    assert [each.node for each in got.layers] == [f"node_{each.layer}" for each in LAYERS]
    assert [(each.n, each.k, each.macs, each.kind) for each in got.layers] == [(8, 16, 100, "linear")] * 4
    assert (got.recipe, got.float_type, got.sparse_asked) == ("mixed", "fp16", False)


def test_only_what_the_recipe_wants_in_int8_needs_ranges() -> None:
    assert layers_to_quantize(LAYERS, MIXED) == (HEAD, FC)


@pytest.mark.parametrize("float_type", ["fp32", "fp16", "bf16"])
def test_a_plan_comes_back_from_its_file_and_equal_requests_give_equal_bytes(
    float_type: Literal["fp32", "fp16", "bf16"],
) -> None:
    one, other = plan(sparse=True, float_type=float_type), plan(sparse=True, float_type=float_type)
    data = json_from_value(one)
    assert value_from_json(data, QuantPlan, place="plan.json") == one
    assert json_from_value(other) == data


def low_bit(**rule: Any) -> Recipe:
    return Recipe(
        schema="gpusq.recipe/1", name="low", description="a test", rules=(Rule(reason="all of them", **rule),)
    )


def decided(of: Recipe, *layers: GraphLayer, sparse: bool = False, **ranges: float) -> list[LayerDecision]:
    request = PlanRequest(recipe=of, quantize=True, sparse=sparse, float_type="fp16")
    found = make_plan(layers, request, table=planning.table(ranges), sparsity=states(layers))
    return list(found.layers)


def test_fp8_inputs_have_a_scale_that_ends_at_448() -> None:
    assert layers_to_quantize([FC], low_bit(precision="fp8")) == (FC,)
    (fc,) = decided(low_bit(precision="fp8"), FC, into_fc1=112.0)
    assert fc.precision == "fp8"
    assert fc.activation is not None
    assert fc.activation.scale == 0.25
    assert fc.weight is not None
    assert fc.weight.block == 0


def test_int4_needs_no_range_and_says_what_it_can_t_take() -> None:
    of = low_bit(precision="int4", block=32)
    assert layers_to_quantize([FC], of) == ()
    whole, conv = replace(FC, k=64), layer("patches", kind="patch_embed")
    (fits, odd, other) = decided(of, whole, HEAD, conv, sparse=True)
    assert fits.precision == "int4"
    assert fits.activation is None
    assert fits.weight is not None
    assert fits.weight.block == 32
    assert (odd.precision, other.precision) == ("fp16", "fp16")
    assert "16 inputs are no multiple of a block of 32" in odd.precision_reason
    assert "for Linear layers" in other.precision_reason
    assert not fits.sparse
    assert "dense float GEMM" in fits.sparse_reason


def test_the_notes_have_each_precision_s_share() -> None:
    rules = (Rule(match="fc*", precision="fp8", reason="one"), Rule(reason="the other"))
    mixed = Recipe(schema="gpusq.recipe/1", name="mixed", description="a test", rules=rules)
    request = PlanRequest(recipe=mixed, quantize=True, sparse=False, float_type="fp16")
    table = planning.table({"into_fc1": 1.0, "into_head": 1.0})
    notes = make_plan([FC, HEAD], request, table=table, sparsity=states((FC, HEAD))).notes
    assert [note[:12] for note in notes[:2]] == ["FP8: 50.0 % ", "INT8: 50.0 %"]


def test_what_fp16_can_t_hold_leaves_fp8_with_a_float32_scale_and_int4_in_fp32() -> None:
    rules = (Rule(match="fc*", precision="fp8", reason="one"), Rule(precision="int4", block=32, reason="the other"))
    recipe = msgspec.structs.replace(MIXED, rules=rules)
    wider = replace(HEAD, k=64)
    request = PlanRequest(recipe=recipe, quantize=True, sparse=False, float_type="fp16")
    wide = Fp16Overflow(nodes=frozenset({FC.node, wider.node}))
    table = planning.table({"into_fc1": 1.0})
    fc, head = make_plan([FC, wider], request, table=table, sparsity=states((FC, wider)), wide=wide).layers
    assert fc.precision == "fp8"
    assert fc.activation is not None
    assert fc.activation.scale == float(np.float32(1 / 448)) != float(np.float16(1 / 448))
    assert (head.precision, head.weight) == ("fp32", None)


def test_sparse_layers_that_stay_fp32_run_dense_and_say_so() -> None:
    request = PlanRequest(recipe=MIXED, quantize=False, sparse=True, float_type="fp16")
    wide, report = Fp16Overflow(nodes=frozenset({FC.node})), states((FC,), expected=True)
    (_, kept) = make_plan([HEAD, FC], request, table=None, sparsity=report, wide=wide).layers
    assert (kept.precision, kept.sparse) == ("fp32", False)
    assert "have no FP32" in kept.sparse_reason
    # A remainder of FP32 beside INT8: an input that is zero on all data, and layers that the recipe leaves float.
    silent = plan(HEAD, FC, sparse=True, float_type="fp32", ranges={"into_head": 1.0, "into_fc1": 0.0})
    (_, fc) = silent.layers
    assert (fc.precision, fc.sparse, fc.sparse_reason) == ("fp32", False, kept.sparse_reason)
    needs = [GemmNeed(layer=fc.layer, n=fc.n, k=fc.k, precision=fc.precision, sparse=fc.sparse)]
    assert check_request(find_target("a100"), needs) == []


def test_layers_left_float_by_measurement_say_so_whatever_the_rule_made_of_them() -> None:
    recipe = low_bit(precision="fp8")
    request = PlanRequest(recipe=recipe, quantize=True, sparse=False, float_type="fp16")
    placements = ActivationSites(floats={FC.node: "it costs much"})
    table = planning.table({"into_fc1": 1.0})
    (fc,) = make_plan([FC], request, table=table, sparsity=states((FC,)), placements=placements).layers
    assert (fc.precision, fc.activation, fc.weight) == ("fp16", None, None)
    assert fc.precision_reason == f"recipe {recipe.name}, mixed: it costs much"


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_linear_too_short_for_a_tensor_core_stays_float_and_needs_no_range(precision: str) -> None:
    of = low_bit(precision=precision, least_k=32)
    short, long, conv = replace(FC, k=31), replace(HEAD, k=32, n=1), layer("conv", kind="conv")
    assert layers_to_quantize([short, long, conv], of) == (long, conv)
    found = decided(of, short, long, conv, into_head=1.0, into_conv=1.0)
    assert [each.precision for each in found] == ["fp16", precision, precision]
    assert found[0].precision_reason.startswith("K = 31 is less than 32")


def test_every_shipped_recipe_of_tensor_core_types_has_the_instructions_k() -> None:
    for name in SHIPPED:
        rule = load_recipe(Path(name)).rule_for("blocks.0.mlp.fc1", "linear")
        assert rule is not None
        assert rule.least_k == (32 if rule.ranged else 0), name


def test_a_range_too_small_for_an_fp16_scale_leaves_its_layer_float_and_is_told() -> None:
    tiny = plan(FC, ranges={FC.input: 1e-5}, recipe=low_bit(precision="int8"))
    assert decisions(tiny)[FC.layer].precision == "fp16"
    assert "too small for a scale" in decisions(tiny)[FC.layer].precision_reason
    assert [note for note in tiny.notes if FC.layer in note and "--fp32" in note]
    whole = plan(FC, ranges={FC.input: 1e-5}, float_type="fp32", recipe=low_bit(precision="int8"))
    assert decisions(whole)[FC.layer].precision == "int8"


def test_a_range_whose_scale_fp16_cannot_hold_gets_one_in_float32() -> None:
    wide = Fp16Overflow(
        tensors=(Fp32Tensor(tensor=FC.input, module="", amax=8.4e6, origin="given"),), nodes=frozenset({FC.node})
    )
    recipe = low_bit(precision="int8")
    request = PlanRequest(recipe=recipe, quantize=True, sparse=False, float_type="fp16")
    table = planning.table({FC.input: 8.4e6})
    (fc,) = make_plan([FC], request, table=table, sparsity=states((FC,)), wide=wide).layers
    assert fc.activation is not None
    assert fc.activation.scale == pytest.approx(8.4e6 / 127)
