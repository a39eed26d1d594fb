"""Where samples stand in an array: by turning a batch that numpy itself lays out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpusq_deploy.numerics.samples import SampleAxis, by_sample, find_sample_axis

N = 4
VALUES = np.random.default_rng(0).standard_normal((N, 3, 5)).astype(np.float32)

Array = npt.NDArray[Any]


def hidden_states(values: Array) -> Array:
    return np.stack([values, 2 * values, -values, values + 1])  # as many layers as samples


def behind(values: Array) -> Array:
    return values.transpose(1, 0, 2)


LAYOUTS: dict[str, tuple[Callable[[Array], Array], SampleAxis]] = {
    "first": (np.asarray, SampleAxis(axis=0)),
    "behind layers": (hidden_states, SampleAxis(axis=1)),
    "last": (lambda v: v.transpose(1, 2, 0), SampleAxis(axis=2)),
    "windows of samples": (lambda v: v.reshape(N * 3, 5), SampleAxis(axis=0, inner=3)),
    "samples of windows": (lambda v: behind(v).reshape(3 * N, 5), SampleAxis(axis=0, outer=3)),
    "integers": (lambda v: behind((v * 1000).astype(np.int64)), SampleAxis(axis=1)),
    "booleans": (lambda v: behind(v) > 0, SampleAxis(axis=1)),
    "hardly any difference": (lambda v: hidden_states(1 + 1e-3 * v), SampleAxis(axis=1)),
}


@pytest.mark.parametrize(("lay_out", "where"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_axis_is_the_one_that_turns_with_the_batch(lay_out: Callable[[Array], Array], where: SampleAxis) -> None:
    plain, rolled = lay_out(VALUES), lay_out(np.roll(VALUES, -1, axis=0))
    # Another order of summation changes the last bits.
    if plain.dtype == np.float32:
        rolled = rolled * np.float32(1 + 3e-7)
    assert find_sample_axis(plain, rolled, N) == where


@pytest.mark.parametrize(("lay_out", "where"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_each_samples_own_part_is_what_it_gives_alone(lay_out: Callable[[Array], Array], where: SampleAxis) -> None:
    """Taken apart by changing one sample and looking where the whole changes."""
    whole = by_sample(lay_out(VALUES), where)
    assert len(whole) == N
    for index in range(N):
        other = VALUES.copy()
        other[index] = -other[index]
        changed = [not np.array_equal(a, b) for a, b in zip(by_sample(lay_out(other), where), whole, strict=True)]
        assert changed == [each == index for each in range(N)]


def table(_values: Array) -> Array:
    return np.arange(20, dtype=np.float32).reshape(N, 5)  # as many rows as samples


def number(values: Array) -> Array:
    return np.asarray(values.sum())


def six_of_four(values: Array) -> Array:
    return np.concatenate([values[:2], values])


def similarities(values: Array) -> Array:
    rows = values.reshape(N, -1)
    return np.asarray(rows @ rows.T)  # turns along both axes at once


def no_such_size(_values: Array) -> Array:
    return np.zeros((3, 5), np.float32)


@pytest.mark.parametrize("answer", [table, number, six_of_four, similarities, no_such_size])
def test_an_answer_that_no_order_of_the_samples_explains_has_no_axis(answer: Callable[[Array], Array]) -> None:
    plain, rolled = np.asarray(answer(VALUES)), np.asarray(answer(np.roll(VALUES, -1, axis=0)))
    assert find_sample_axis(plain, rolled, N) is None
    assert by_sample(plain, None).shape == (1, *plain.shape)


def test_a_constant_answer_has_its_first_axis_of_that_size() -> None:
    zeros = np.zeros((3, N, 5), np.float32)
    assert find_sample_axis(zeros, zeros, N) == SampleAxis(axis=1)


def test_of_one_sample_the_axis_has_one_element_or_is_among_the_named() -> None:
    assert find_sample_axis(VALUES[:, None], VALUES[:, None], 1) == SampleAxis(axis=1)
    assert find_sample_axis(VALUES[0], VALUES[0], 1, {1}) == SampleAxis(axis=1, inner=5)


def test_what_is_not_finite_does_not_hide_the_axis() -> None:
    holed = VALUES.copy()
    holed[1, 2, 3] = np.inf
    rolled = np.roll(holed, -1, axis=0)
    assert find_sample_axis(holed.transpose(1, 0, 2), rolled.transpose(1, 0, 2), N) == SampleAxis(axis=1)
