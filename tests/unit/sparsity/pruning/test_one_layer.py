"""One-shot pruning against slow, obvious references: loops, exhaustive search, exact least squares."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from tiny_models import images, vit

from gpusq_deploy.artifacts.sparsity import PruneMethod
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.pruning.input_moments import GramSums
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions, solve_layer
from gpusq_deploy.sparsity.pruning.sparsegpt import damped, inverse_factor, prune_groups, solve_kept
from gpusq_deploy.sparsity.pruning.whole_model import prune_oneshot

LAYERS = ("blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2")
PUBLISHED = OneshotOptions(method="activation", correct_bias=False)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(rows: int, width: int) -> torch.Tensor:
    return random(rows, width, seed=1) @ random(width, width, seed=2) + 3


def exact(weight: torch.Tensor, kept: tuple[int, ...], gram: torch.Tensor) -> torch.Tensor:
    """The row on these places whose output is nearest to the dense row's: normal equations, float64."""
    places, gram64, dense = list(kept), gram.double(), weight.double()
    row = torch.zeros_like(dense)
    row[places] = torch.linalg.solve(gram64[places][:, places], (gram64 @ dense)[places])
    return row


def energy(change: torch.Tensor, gram: torch.Tensor) -> float:
    return float(change.double() @ gram.double() @ change.double())


def test_moments_are_those_of_all_rows_at_once_even_beside_a_large_mean() -> None:
    x, y = correlated(60, 8) + 1000, random(60, 3, seed=3) - 500
    sums = GramSums()
    for part in (slice(0, 7), slice(7, 60)):
        sums.add(x[part], y[part])
    found = sums.moments()
    a, b = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    assert found.target_mean is not None
    assert found.cross is not None
    torch.testing.assert_close(found.gram.double(), a.T @ a / 60, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(found.cross.double(), b.T @ a / 60, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(found.mean.double(), x.double().mean(0), rtol=1e-6, atol=0)


def test_the_activation_method_keeps_the_largest_products_of_each_group() -> None:
    x, weight = correlated(40, 8) * torch.arange(1, 9), random(5, 8)
    sums = GramSums()
    sums.add(x)
    pruned = solve_layer(weight, None, sums.moments(), PUBLISHED).weight
    for row, group in product(range(5), range(2)):
        places = range(4 * group, 4 * group + 4)
        scores = {k: abs(float(weight[row, k])) * float(x[:, k].square().mean().sqrt()) for k in places}
        best = sorted(places, key=lambda k: -scores[k])[:2]
        for k in places:
            assert float(pruned[row, k]) == (float(weight[row, k]) if k in best else 0.0)


def test_one_group_gets_the_best_pair_of_all_six_and_its_exact_weights() -> None:
    x, weight = correlated(50, 4), random(16, 4)
    gram = damped(x.T @ x / 50, 0.01)
    pruned = prune_groups(weight, inverse_factor(gram))
    for row in range(16):
        choices = [exact(weight[row], kept, gram) for kept in combinations(range(4), 2)]
        best = min(choices, key=lambda choice: energy(choice - weight[row], gram))
        torch.testing.assert_close(pruned[row].double(), best, rtol=1e-3, atol=1e-4)


def test_enough_solve_steps_reach_the_exact_least_squares() -> None:
    x, weight = correlated(80, 8), random(6, 8)
    gram = damped(x.T @ x / 80, 0.1)
    kept = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0], dtype=torch.bool).expand(6, 8)
    solved = solve_kept(weight * kept, kept, gram, weight @ gram, steps=12)
    for row in range(6):
        torch.testing.assert_close(solved[row].double(), exact(weight[row], (0, 2, 5, 6), gram), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["magnitude", "activation", "second-order"])
def test_every_named_layer_is_2_4_and_the_dense_model_is_untouched(method: PruneMethod) -> None:
    dense = vit()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    batch = torch.from_numpy(images(6))
    pruned = prune_oneshot(dense, LAYERS, batch, OneshotOptions(method=method))
    for layer in LAYERS:
        assert int((pruned.module.get_parameter(f"{layer}.weight").reshape(-1, 4) != 0).sum(1).max()) <= 2
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    again = prune_oneshot(dense, LAYERS, batch, OneshotOptions(method=method))
    assert all(torch.equal(v, pruned.module.state_dict()[n]) for n, v in again.module.state_dict().items())


def test_second_order_loses_less_than_magnitude_on_its_own_data() -> None:
    x, weight = correlated(200, 16), random(12, 16)
    sums = GramSums()
    sums.add(x)
    errors: list[float] = []
    for method in ("second-order", "activation", "magnitude"):
        solved = solve_layer(weight, None, sums.moments(), OneshotOptions(method=method, damping=1e-4))
        wanted, got = x @ weight.T, x @ solved.weight.T
        errors.append(float((wanted - got).square().sum() / wanted.square().sum()))
    assert 0 < errors[0] < min(errors[1:])


def test_a_method_that_needs_images_says_so() -> None:
    with pytest.raises(GpusqError, match="needs images"):
        prune_oneshot(vit(), LAYERS, None, OneshotOptions())
