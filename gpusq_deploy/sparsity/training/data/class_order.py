"""Whether the data's classes are in the order of the model's, by what the model predicts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

_MOST_RIGHT = 0.5  # a model that is right more often than this knows the order
_FEWEST = 3  # classes
_LEAST_AGREED = 0.8  # of the samples, in the classes that the model gives most of their samples


def exchanged(order: Mapping[int, int]) -> tuple[int, int]:
    """Of what `other_order` found a class, and another that is predicted in its place."""
    return next((wanted, found) for wanted, found in order.items() if wanted != found)


def other_order(predicted: Sequence[int], targets: Sequence[int]) -> Mapping[int, int]:
    """Which class the model predicts in the place of each, where it knows the classes, but in another order.

    Args:
        predicted: Classes [N].
        targets: Classes [N] by the data.

    Returns:
        Of each class of the data the one that is predicted of most of its samples; empty where most predictions are
        right, or where they are no permutation of the data's classes. Two classes prove nothing: half of all untrained
        models that tell them apart would exchange them.
    """
    if sum(map(int.__eq__, predicted, targets)) > _MOST_RIGHT * len(targets):
        return {}
    counts = defaultdict[int, Counter[int]](Counter)
    for found, wanted in zip(predicted, targets, strict=True):
        counts[wanted][found] += 1
    order = {wanted: each.most_common(1)[0][0] for wanted, each in counts.items()}
    agreed = sum(each.most_common(1)[0][1] for each in counts.values())
    permuted = len(order) >= _FEWEST and set(order.values()) == set(order)
    evident = permuted and agreed >= _LEAST_AGREED * len(targets)
    return order if evident else {}
