"""Weights that are to go into an engine must be 2:4 where the engine's were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from gpusq_deploy.artifacts.recipe import load_recipe
from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.sparsity.check import sparsity_report
from gpusq_deploy.sparsity.graph_check import graph_weights, require_same_sparsity


def weights(*, sparse: bool, k: int = 8, seed: int = 0) -> Any:
    values = np.random.default_rng(seed).uniform(1, 2, (k, 4)).astype(np.float32)
    if sparse:
        values[[0, 1, 6, 7]] = 0
    return values


def save(path: Path, *, first: Any, second: Any, name: str = "two") -> Path:
    k = len(first)
    text = f"""g (float[B,{k}] x) => (float[B,4] y) {{
  [one] h = MatMul(x, a)
  [pad] p = Concat<axis = 1>(h, h)
  [{name}] y = MatMul(p, b)
}}"""
    save_model(tiny_models.graph(text, a=first, b=second), path)
    return path


def report(path: Path) -> SparsityReport:
    from gpusq_deploy.graph.mapped import map_model

    model = map_model(path)
    found = graph_weights(model, weighted_layers(model))
    return sparsity_report(found, source="test", recipe=load_recipe(None), record=None)


@pytest.fixture
def built(tmp_path: Path) -> SparsityReport:
    return report(save(tmp_path / "old.onnx", first=weights(sparse=True), second=weights(sparse=False)))


def test_new_values_with_the_same_zeros_fit(tmp_path: Path, built: SparsityReport) -> None:
    new = save(tmp_path / "new.onnx", first=weights(sparse=True, seed=1), second=weights(sparse=True, seed=2))
    require_same_sparsity(new, built)


def test_all_that_doesnt_fit_is_told_at_once(tmp_path: Path, built: SparsityReport) -> None:
    new = save(tmp_path / "new.onnx", first=weights(sparse=False), second=weights(sparse=False), name="other")
    with pytest.raises(GpusqError, match="one is no longer 2:4: 8 of 8 groups; two is missing") as caught:
        require_same_sparsity(new, built)
    assert caught.value.place == str(new)


def test_another_shape_doesnt_fit(tmp_path: Path, built: SparsityReport) -> None:
    new = save(tmp_path / "new.onnx", first=weights(sparse=True, k=12), second=weights(sparse=False))
    with pytest.raises(GpusqError, match="one is 4 x 12, not 4 x 8"):
        require_same_sparsity(new, built)
