"""What a recipe quantises inside attentions: chosen, refused, planned with its consequences, and computed."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import planning
import pytest
import tiny_models

from gpusq_deploy.artifacts.plan import QuantPlan
from gpusq_deploy.artifacts.recipe import AttentionRule, Placement, Recipe, recipe_from_toml
from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.attention import find_attentions
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.quantize import Quantize
from gpusq_deploy.quantize.planning import PlanRequest, make_plan
from gpusq_deploy.quantize.sites import ActivationSites, attentions_to_quantize, fusion_notes, sites_of

TEXT = """
g (float[B,{n},{d}] q, float[B,{d},{n}] k, float[B,{n},{d}] v) => (float[B,{n},6] y) {{
  [first] scores = MatMul(q, k)
  p = Softmax(scores)
  [second] context = MatMul(p, v)
  [proj] y = MatMul(context, w)
}}
"""
RANGES = {"q": 3.0, "k": 2.5, "v": 2.0, "p": 1.0, "context": 1.5}
RECIPE = """
schema = "gpusq.recipe/1"
name = "mine"
description = "a test"
[[rule]]
reason = "all of them"
[attention]
placement = "{placement}"
reason = "to see"
"""


def attention(*, n: int = 8, d: int = 16) -> ir.Model:
    weight = np.random.default_rng(1).standard_normal((d, 6)).astype(np.float32)
    return tiny_models.graph(TEXT.format(n=n, d=d), w=weight)


def recipe(placement: Placement, match: str = "*") -> Recipe:
    rule = AttentionRule(placement=placement, match=match, accept_loss=placement == "full", reason="to see")
    return msgspec.structs.replace(planning.EVERYTHING, attention=rule)


def plan(model: ir.Model, of: Recipe, **changed: float) -> QuantPlan:
    chosen = attentions_to_quantize(model, of)
    return make_plan(
        weighted_layers(model),
        PlanRequest(recipe=of, quantize=True, sparse=False, float_type="fp32"),
        table=planning.table({**RANGES, **changed}),
        sparsity=SparsityReport(source="test", layers=()),
        placements=ActivationSites(sites=sites_of(chosen, of), attentions=chosen),
    )


def snapped(values: Any, amax: float) -> Any:
    """Per-tensor symmetric INT8, by its definition."""
    step = np.float32(amax / 127)
    return np.clip(np.rint(values / step), -128, 127).astype(np.float32) * step


@pytest.mark.parametrize(
    ("placement", "roles"),
    [
        ("linear", set[str]()),
        ("linear+qk", {"query", "key"}),
        ("linear+qkv", {"query", "key", "value"}),
        ("full", {"query", "key", "softmax", "value"}),
    ],
)
def test_each_placement_computes_what_rounding_its_tensors_by_hand_gives(placement: Placement, roles: set[str]) -> None:
    model, of = attention(), recipe(placement)
    decided = plan(model, of)
    assert {placed.role for placed in decided.placed} == roles
    random = np.random.default_rng(2)
    q, v = (random.standard_normal((3, 8, 16)).astype(np.float32) for _ in range(2))
    k = random.standard_normal((3, 16, 8)).astype(np.float32)
    parts = {"query": ("q", q), "key": ("k", k), "value": ("v", v)}
    feeds = dict(parts.values())
    used = {role: snapped(value, RANGES[name]) if role in roles else value for role, (name, value) in parts.items()}
    scores = used["query"].astype(np.float64) @ used["key"]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
    weights = snapped(weights, RANGES["p"]) if "softmax" in roles else weights
    matrix = np.asarray(model.graph.initializers["w"].const_value).astype(np.float32)
    step = np.abs(matrix).max(axis=0) / np.float32(127)
    expected = snapped(weights @ used["value"], RANGES["context"]) @ (np.rint(matrix / step) * step)
    built = run_passes(model, [Quantize(decided)])
    got = tiny_models.run_model(built, feeds)["y"]
    # A value beside a rounding boundary may fall on its other side: one step of the last activation.
    assert np.abs(got - expected).max() < 1.01 * (RANGES["context"] / 127) * np.abs(matrix).max()
    assert np.mean(np.abs(got - expected) < 1e-4) > 0.9
    again: list[int] = []
    run_passes(built, [Quantize(decided)], after=lambda _step, _model, count: again.append(count))
    assert again == [0]


def test_full_is_refused_with_what_it_costs_and_taken_where_the_recipe_says_so() -> None:
    text = RECIPE.format(placement="full")
    with pytest.raises(GpusqError, match=r"leaves 13\.6 dB, where `linear` keeps 28") as caught:
        recipe_from_toml(text, place="mine.toml")
    assert "accept_loss = true" in caught.value.what
    taken = recipe_from_toml(f"{text}accept_loss = true\n", place="mine.toml")
    assert taken.attention is not None
    assert taken.attention.placement == "full"


@pytest.mark.parametrize("line", ["accept_loss = true", 'plcement = "full"'])
def test_a_key_that_means_nothing_is_refused(line: str) -> None:
    with pytest.raises(GpusqError, match="not a recipe"):
        recipe_from_toml(f"{RECIPE.format(placement='linear+qk')}{line}\n", place="mine.toml")


def test_a_placement_that_decides_nothing_names_what_there_is() -> None:
    with pytest.raises(GpusqError, match="decides no attention") as caught:
        attentions_to_quantize(attention(), recipe("linear+qk", match="blocks.*"))
    assert "first" in str(caught.value.hint)
    assert attentions_to_quantize(attention(), recipe("linear", match="blocks.*")) == ()
    assert attentions_to_quantize(attention(), planning.EVERYTHING) == ()


def test_a_range_that_is_missing_or_zero_stops_the_plan() -> None:
    with pytest.raises(GpusqError, match="zero on all calibration data") as caught:
        plan(attention(), recipe("linear+qk"), k=0.0)
    assert caught.value.place == "first, tensor k"


@pytest.mark.parametrize(
    ("placement", "n", "d", "int8", "said"),
    [
        ("full", 8, 16, True, ""),
        ("full", 512, 64, True, ""),
        ("full", 513, 64, True, "up to 512 tokens; this one has 513"),
        ("full", 8, 48, True, "heads of 16, 32 or 64; these have 48"),
        ("full", 8, 16, False, "the layer that reads its result is INT8"),
        ("linear+qk", 8, 16, True, "not so here: softmax, value"),
        ("linear+qkv", 8, 16, True, "not so here: softmax"),
    ],
)
def test_the_plan_says_when_the_attention_will_not_be_fused(
    placement: Placement, n: int, d: int, int8: bool, said: str
) -> None:
    found = find_attentions(attention(n=n, d=d))
    notes = fusion_notes(found, recipe(placement), int8_nodes={"proj"} if int8 else set())
    assert len(notes) == bool(said)
    assert all(note.startswith("TensorRT won't fuse the attention of first") and note.endswith(said) for note in notes)


def test_the_plans_notes_name_what_is_int8_in_attentions() -> None:
    notes = plan(attention(), recipe("linear+qk")).notes
    assert "INT8 in 1 attentions: query, key" in notes
    assert any("won't fuse" in note for note in notes)
    assert not any("attention GEMMs" in note for note in plan(attention(), recipe("linear+qk")).notes)
    assert any("attention GEMMs" in note for note in plan(attention(), planning.EVERYTHING).notes)
