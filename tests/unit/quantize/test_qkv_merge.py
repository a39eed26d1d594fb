"""Which projections are packed: what recipes and 2:4 say of the three, and what becomes of recorded ranges."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import tiny_models

from gpusq_deploy.artifacts.plan import parts_of
from gpusq_deploy.artifacts.recipe import Recipe, Rule
from gpusq_deploy.artifacts.sparsity import SparsityRecord, SparsityReport
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.clean import Clean
from gpusq_deploy.graph.values import NAME_SCOPES
from gpusq_deploy.numerics.two_four import magnitude_mask
from gpusq_deploy.quantize.qkv_merge import MergedGraph, merge_qkv
from gpusq_deploy.sparsity.graph_check import graph_sparsity

NAMES = {"qq": "attn.q_proj", "kk": "attn.k_proj", "vv": "attn.v_proj"}
PACKED = "attn.q_proj+k_proj+v_proj"
EVERY = Rule(kind="linear", reason="a test")
RECIPE = Recipe(schema="gpusq.recipe/1", name="mine", description="", rules=(EVERY,))


def weights(*, sparse: str = "") -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(0)
    found = {name: random.standard_normal((8, 8), dtype=np.float32) for name in "qkv"}
    for name in sparse:
        found[name] = np.where(magnitude_mask(found[name].T), found[name].T, np.float32(0)).T.copy()
    return {f"w{name}": array for name, array in found.items()}


def attention(*, sparse: str = "") -> ir.Model:
    constants: dict[str, tiny_models.Array] = {"heads": np.array([0, 0, 2, 4]), "bq": np.zeros(8, np.float32)}
    made = run_passes(tiny_models.graph(tiny_models.ATTENTION, **constants, **weights(sparse=sparse)), [Clean()])
    for node in made.graph:
        if node.name in NAMES:
            node.metadata_props[NAME_SCOPES] = repr(["", "attn", NAMES[node.name], "linear"])
    return made


def packed(model: ir.Model, recipe: Recipe = RECIPE, record: SparsityRecord | None = None) -> MergedGraph:
    stored = graph_sparsity(model, source="m", recipe=recipe, record=record)
    return merge_qkv(model, stored, recipe, record)


def states(report: SparsityReport) -> dict[str, tuple[bool, bool]]:
    return {state.layer: (state.expected, state.valid) for state in report.layers}


def test_three_that_are_decided_alike_become_one_layer_and_the_answers_stay() -> None:
    model = attention()
    found = packed(model)
    assert [layer.layer for layer in weighted_layers(found.model)] == [PACKED]
    assert found.notes == ("merged 3 Q/K/V projections into 1 GEMM",)
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 5, 8)).astype(np.float32)}
    np.testing.assert_allclose(
        tiny_models.run_model(found.model, feeds)["y"], tiny_models.run_model(model, feeds)["y"], atol=1e-5
    )


@pytest.mark.parametrize("match", ["*.q_proj", "*.v_proj"])
def test_a_rule_for_one_of_them_keeps_them_apart_and_says_so(match: str) -> None:
    recipe = msgspec.structs.replace(RECIPE, rules=(msgspec.structs.replace(EVERY, match=match), EVERY))
    model = attention()
    found = packed(model, recipe)
    assert found.model is model
    assert found.declined == (f"Q/K/V projections not merged in {PACKED}: recipe mine decides them by different rules",)


def test_two_to_four_of_all_three_is_two_to_four_of_the_whole() -> None:
    record = SparsityRecord(method="test", layers=tuple(NAMES.values()))
    found = packed(attention(sparse="qkv"), record=record)
    assert states(found.stored) == {PACKED: (True, True)}


@pytest.mark.parametrize("sparse", ["q", "kv"])
def test_where_only_some_are_two_to_four_they_stay_apart(sparse: str) -> None:
    found = packed(attention(sparse=sparse))
    assert not found.chosen
    assert found.declined == (f"Q/K/V projections not merged in {PACKED}: some of them are 2:4 and some are not",)
    valid = {name for name, (_, valid) in states(found.stored).items() if valid}
    assert valid == {f"attn.{name}_proj" for name in sparse}


def test_the_parts_of_a_packed_layer_are_known_by_its_name() -> None:
    assert parts_of(PACKED) == tuple(NAMES.values())
    assert parts_of("blocks.0.mlp.fc1") == ("blocks.0.mlp.fc1",)
