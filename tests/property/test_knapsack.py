"""The best choice within a budget, against trying all of them."""

from __future__ import annotations

from itertools import chain, combinations

from hypothesis import given, strategies as st

from gpusq_deploy.numerics.knapsack import best_choice

THINGS = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=8)


@given(things=THINGS, budget=st.integers(0, 40))
def test_no_choice_that_fits_is_worth_more(things: list[tuple[int, int]], budget: int) -> None:
    """Budgets of up to 40 divide the 2000 steps finely enough for whole costs, or round them up by less than one."""
    values, costs = [float(value) for value, _ in things], [float(cost) for _, cost in things]
    chosen = best_choice(values, costs, budget)
    assert list(chosen) == sorted(set(chosen))
    assert sum(costs[index] for index in chosen) <= budget
    indices = range(len(things))
    every = chain.from_iterable(combinations(indices, count) for count in range(len(things) + 1))
    # Rounding up may cost a step for each thing.
    least = budget * (1 - len(things) / 2000)
    best = max(sum(values[index] for index in some) for some in every if sum(costs[i] for i in some) <= least)
    assert sum(values[index] for index in chosen) >= best


def test_a_budget_is_filled_to_the_last_unit() -> None:
    assert best_choice([1.0, 1.0, 1.0], [0.1, 0.2, 0.7], 1.0) == (0, 1, 2)
    assert best_choice([3.0, 2.0, 2.0], [3.0, 2.0, 2.0], 4.0) == (1, 2)
    assert best_choice([1.0], [1.0], 0.0) == ()
    assert best_choice([], [], 1.0) == ()
