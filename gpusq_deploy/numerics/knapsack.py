"""Choose things of the greatest total value whose total cost fits a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_STEPS = 2000


def best_choice(values: Sequence[float], costs: Sequence[float], budget: float) -> tuple[int, ...]:
    """Indices of the 0-1 knapsack's solution, ascending; never over the budget.

    By dynamic programming over costs in steps of 1/2000 of the budget, rounded up: so a choice that fills the budget
    to within a step for each thing may be missed.

    Args:
        values: Not negative; things without value are left out.
        costs: Positive.
        budget: In the unit of the costs.
    """
    if budget <= 0:
        return ()
    # A cost that is a whole number of steps but for rounding errors stays that number.
    steps = [int(np.ceil(cost / budget * _STEPS - 1e-9)) for cost in costs]
    best = np.zeros(_STEPS + 1)
    taken = np.zeros((len(steps), _STEPS + 1), dtype=bool)
    for index, (value, step) in enumerate(zip(values, steps, strict=True)):
        if value <= 0 or step > _STEPS:
            continue
        better = best[: _STEPS + 1 - step] + value
        taken[index, step:] = better > best[step:]
        best[step:] = np.maximum(best[step:], better)
    room, chosen = _STEPS, list[int]()
    for index in reversed(range(len(steps))):
        if taken[index, room]:
            chosen.append(index)
            room -= steps[index]
    return tuple(reversed(chosen))
