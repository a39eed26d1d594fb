"""The 2:4 report: who expects what, and where the first thing wrong stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpusq_deploy.artifacts.plan import LayerKind
from gpusq_deploy.artifacts.recipe import Recipe, Rule, load_recipe
from gpusq_deploy.artifacts.sparsity import LayerSparsity, SparsityRecord, SparsityReport
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.numerics.layer_weight import LayerWeight
from gpusq_deploy.numerics.two_four import magnitude_mask
from gpusq_deploy.sparsity.check import (
    require_known_layers,
    require_sparse,
    sparsity_report,
    violation_text,
    worst_text,
)

FC_ONLY = Recipe(
    schema="gpusq.recipe/1",
    name="fc",
    description="a test",
    rules=(Rule(match="fc*", reason="fc is large"), Rule(match="head", sparse=False, reason="head is small")),
)


def sparse_rows(n: int = 6, k: int = 16) -> Any:
    values = np.random.default_rng(0).uniform(1, 2, (n, k)).astype(np.float32)
    return np.where(magnitude_mask(values), values, np.float32(0))


def weight(layer: str, rows: Any, kind: LayerKind = "linear") -> LayerWeight:
    return LayerWeight(layer=layer, tensor=f"{layer}.weight", kind=kind, rows=rows)


def report(*weights: LayerWeight, record: SparsityRecord | None = None, recipe: Recipe = FC_ONLY) -> SparsityReport:
    return sparsity_report(weights, source="model.pt", recipe=recipe, record=record)


def planted(row: int = 4, group: int = 2) -> tuple[Any, list[float]]:
    """One group with three non-zeros among good ones."""
    rows = sparse_rows()
    rows[row, 4 * group : 4 * group + 4] = [0.5, 0, -0.25, 1e-30]
    return rows, [0.5, 0.0, -0.25, float(np.float32(1e-30))]


def test_the_first_violation_is_located_and_shown() -> None:
    rows, values = planted()
    (state,) = report(weight("fc", rows)).layers
    assert (state.valid, state.violations, state.groups) == (False, 1, 24)
    assert state.first is not None
    assert (state.first.row, state.first.index, list(state.first.values)) == (4, 2, values)
    text = violation_text(state)
    assert "1 of 24 groups" in text
    assert "row 4, columns 8 to 11: [0.5, 0, -0.25, 1e-30]" in text
    largest = float(np.abs(rows[4]).max())
    told = f"the worst, at row 4, columns 8 to 11, has a third value of 1e-30, {1e-30 / largest:.2g} of"
    assert worst_text(state).startswith(told)


def test_the_first_of_several_is_the_first_in_reading_order() -> None:
    rows, _ = planted(5, 0)
    rows[1, 12:16] = 7
    (state,) = report(weight("fc", rows)).layers
    assert state.first is not None
    assert (state.violations, state.first.row, state.first.index) == (2, 1, 3)


def test_a_good_weight_is_valid_and_half_zero() -> None:
    (state,) = report(weight("fc", sparse_rows())).layers
    assert (state.valid, state.violations, state.first, state.zero_fraction) == (True, 0, None, 0.5)
    assert (state.n, state.k, state.tensor) == (6, 16, "fc.weight")


def test_the_transposed_weight_is_not_valid() -> None:
    (state,) = report(weight("fc", np.ascontiguousarray(sparse_rows(16, 16).T))).layers
    assert not state.valid
    assert state.zero_fraction == 0.5


@pytest.mark.parametrize("k", [1, 3, 6, 17])
def test_a_contracted_axis_that_is_no_multiple_of_four_is_never_valid(k: int) -> None:
    (state,) = report(weight("fc", np.zeros((4, k), np.float32))).layers
    assert (state.valid, state.violations, state.first) == (False, 0, None)
    assert violation_text(state) == f"K = {k} is not a multiple of 4"


def test_the_recipe_says_what_is_expected_where_the_checkpoint_does_not() -> None:
    states = report(*(weight(name, np.ones((4, 4), np.float32)) for name in ("fc1", "head", "other"))).layers
    assert [state.expected for state in states] == [True, False, False]
    assert [state.reason for state in states] == [
        "recipe fc: fc is large",
        "recipe fc: head is small",
        "no rule of recipe fc matches it",
    ]


def test_the_checkpoints_record_beats_the_recipe() -> None:
    weights = [weight(name, sparse_rows()) for name in ("fc1", "head")]
    states = report(*weights, record=SparsityRecord(method="magnitude", layers=("head",))).layers
    assert [state.expected for state in states] == [False, True]
    assert "leaves it dense" in states[0].reason
    assert "(magnitude) names it" in states[1].reason


def test_a_record_that_names_strangers_is_refused() -> None:
    record = SparsityRecord(method="magnitude", layers=("fc1", "gone", "also.gone"))
    whole = report(weight("fc1", sparse_rows()), record=record)
    with pytest.raises(GpusqError, match=r"also\.gone, gone") as caught:
        require_known_layers(record, whole)
    assert caught.value.place == "model.pt"
    assert caught.value.hint
    require_known_layers(None, whole)
    require_known_layers(SparsityRecord(method="magnitude", layers=("fc1",)), whole)


def test_broken_layers_are_those_that_are_expected_and_not_valid() -> None:
    bad, _ = planted()
    whole = report(weight("fc1", sparse_rows()), weight("fc2", bad), weight("head", bad), weight("fc3", bad))
    assert [layer.layer for layer in whole.broken] == ["fc2", "fc3"]
    with pytest.raises(GpusqError, match="2 of 3 layers that should be 2:4 are not: fc2, fc3") as caught:
        require_sparse(whole, command="gpusq-compress model.pt")
    assert str(caught.value.place).startswith("model.pt, fc2: 1 of 24 groups")
    assert str(caught.value.hint).endswith("gpusq-compress model.pt")


def test_many_broken_layers_are_counted_not_listed() -> None:
    bad, _ = planted()
    with pytest.raises(GpusqError, match=r"fc4 and 2 more\n"):
        require_sparse(report(*(weight(f"fc{index}", bad) for index in range(7))), command="x")


def test_a_sparse_model_passes_and_a_model_without_candidates_does_not() -> None:
    require_sparse(report(weight("fc1", sparse_rows()), weight("head", np.ones((4, 4)))), command="x")
    for nothing in (report(weight("head", sparse_rows())), report()):
        with pytest.raises(GpusqError, match="no layer of the model is expected") as caught:
            require_sparse(nothing, command="x")
        assert "--sparse" in str(caught.value.hint)


def test_int8_codes_are_checked_like_weights() -> None:
    codes = np.zeros((2, 8), np.int8)
    codes[1, 4:7] = [-128, 1, 127]
    (state,) = report(weight("fc", codes)).layers
    assert state.first is not None
    assert (state.first.row, state.first.index, state.first.values) == (1, 1, (-128.0, 1.0, 127.0, 0.0))


def test_the_default_recipe_leaves_patch_embeddings_and_heads_dense() -> None:
    states = report(
        weight("patch_embed.proj", np.ones((8, 3)), "patch_embed"),
        weight("blocks.0.fc", sparse_rows(k=32)),
        weight("head", np.ones((4, 4))),
        weight("stem", np.ones((4, 4)), "conv"),
        recipe=load_recipe(None),
    ).layers
    assert [state.expected for state in states] == [False, True, False, False]


def test_nan_weights_are_counted_as_values() -> None:
    (state,) = report(weight("fc", np.full((1, 4), np.nan, np.float32))).layers
    assert isinstance(state, LayerSparsity)
    assert state.violations == 1


def test_a_linear_too_short_for_a_tensor_core_is_not_asked_to_be_sparse() -> None:
    """The heads of talking-heads attention mix by 4 x 4; a record that names such a layer is believed."""
    recipe, talk = load_recipe(None), weight("blocks.0.attn.proj_l", sparse_rows(4, 4))
    (state,) = report(talk, recipe=recipe).layers
    assert (state.expected, state.reason.startswith("K = 4 is less than 32")) == (False, True)
    record = SparsityRecord(method="test", layers=("blocks.0.attn.proj_l",))
    assert report(talk, recipe=recipe, record=record).layers[0].expected
