"""Class folders in another order than the model's."""

from __future__ import annotations

import numpy as np

from gpusq_deploy.sparsity.training.data.class_order import other_order


def test_a_permutation_that_the_model_sees_is_found() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(6, size=300)
    order = {0: 3, 1: 0, 2: 5, 3: 1, 4: 4, 5: 2}
    predicted = [order[int(target)] for target in targets]
    for index in random.choice(300, 30, replace=False):
        predicted[int(index)] = int(random.integers(6))
    assert other_order(predicted, targets.tolist()) == order


def test_right_random_and_constant_predictions_are_no_order() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(6, size=300).tolist()
    assert not other_order(targets, targets)
    assert not other_order(random.integers(6, size=300).tolist(), targets)
    assert not other_order([1] * 300, targets)
    assert not other_order([], [])
    assert not other_order([1, 0] * 50, [0, 1] * 50)
    assert not other_order([target + 6 for target in targets], targets)
