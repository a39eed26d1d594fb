"""One-shot pruning: what holds for every layer and all inputs."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import given, strategies as st

from gpusq_deploy.artifacts.sparsity import PruneMethod
from gpusq_deploy.sparsity.pruning.input_moments import GramSums
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions, solve_layer

F64 = npt.NDArray[np.float64]
seeds = st.integers(0, 2**32 - 1)
methods: st.SearchStrategy[PruneMethod] = st.sampled_from(("magnitude", "activation", "second-order"))


def layer(seed: int, *, outputs: int, groups: int) -> tuple[F64, F64]:
    """A dense weight [N, K] and inputs [8 K, K], correlated, of unlike scales and not centred."""
    random = np.random.default_rng(seed)
    width = 4 * groups
    mixed = random.standard_normal((8 * width, width)) @ random.standard_normal((width, width))
    inputs = mixed * np.exp(random.standard_normal(width)) + random.standard_normal(width)
    return random.standard_normal((outputs, width)), inputs


def pruned(weight: F64, inputs: F64, method: PruneMethod, *, damping: float = 0.2) -> F64:
    """The product's answer for a layer without bias."""
    sums = GramSums()
    sums.add(torch.from_numpy(inputs).float(), None)
    options = OneshotOptions(method=method, damping=damping)
    solution = solve_layer(torch.from_numpy(weight).float(), None, sums.moments(), options)
    return np.asarray(solution.weight, dtype=np.float64)


def error(weight: F64, found: F64, inputs: F64) -> float:
    """Mean square of the change of the outputs."""
    return float(np.mean((inputs @ (weight - found).T) ** 2))


@given(seed=seeds, outputs=st.integers(1, 8), groups=st.integers(1, 8), method=methods)
def test_every_method_leaves_two_of_four(seed: int, outputs: int, groups: int, method: PruneMethod) -> None:
    weight, inputs = layer(seed, outputs=outputs, groups=groups)
    found = pruned(weight, inputs, method)
    assert ((found.reshape(-1, 4) != 0).sum(axis=1) == 2).all()
    assert np.isfinite(found).all()


@given(seed=seeds, groups=st.integers(1, 8))
def test_second_order_changes_the_outputs_no_more_than_magnitude_does(seed: int, groups: int) -> None:
    weight, inputs = layer(seed, outputs=32, groups=groups)
    by_magnitude = error(weight, pruned(weight, inputs, "magnitude"), inputs)
    assert error(weight, pruned(weight, inputs, "second-order"), inputs) <= by_magnitude


@given(seed=seeds, outputs=st.integers(1, 8))
def test_of_one_group_the_best_pair_is_kept_and_solved(seed: int, outputs: int) -> None:
    weight, inputs = layer(seed, outputs=outputs, groups=1)
    gram = inputs.T @ inputs / len(inputs)
    gram += 0.2 * np.trace(gram) / 4 * np.eye(4)

    def loss(row: F64, other: F64) -> float:
        return float((row - other) @ gram @ (row - other))

    for row, found in zip(weight, pruned(weight, inputs, "second-order"), strict=True):
        losses: list[float] = []
        for first, second in itertools.combinations(range(4), 2):
            kept = [first, second]
            best = np.zeros(4)
            best[kept] = np.linalg.solve(gram[np.ix_(kept, kept)], gram[kept] @ row)
            losses.append(loss(row, best))
        assert loss(row, found) <= min(losses) * 1.001 + 1e-5 * float(row @ gram @ row)
