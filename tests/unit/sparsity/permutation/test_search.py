"""Channel permutations against every permutation there is, and against patterns that were shuffled."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings, strategies as st

from gpusq_deploy.sparsity.permutation.search import find_valid_order, kept_by_24, search_permutation

Floats = npt.NDArray[np.float32]


def kept_slowly(scores: Floats) -> float:
    """Loops over [K, rows]."""
    total = 0.0
    for start in range(0, len(scores), 4):
        for row in range(scores.shape[1]):
            total += sum(sorted(float(value) for value in scores[start : start + 4, row])[2:])
    return total


def as_array(order: torch.Tensor) -> npt.NDArray[np.int64]:
    return np.asarray(order, dtype=np.int64)


def random_scores(seed: int, size: int, rows: int) -> Floats:
    return np.random.default_rng(seed).exponential(size=(size, rows)).astype(np.float32)


def valid_slowly(filled: npt.NDArray[np.bool_]) -> bool:
    return all(
        np.count_nonzero(filled[start : start + 4, row]) <= 2
        for start in range(0, len(filled), 4)
        for row in range(filled.shape[1])
    )


def shuffled_pattern(seed: int, size: int, rows: int, segment: int) -> npt.NDArray[np.bool_]:
    """A 2:4 pattern [K, rows] with its channels shuffled within segments."""
    random = np.random.default_rng(seed)
    filled = random.random((size // 4, 4, rows)).argsort(axis=1) < 2
    order = [start + random.permutation(segment) for start in range(0, size, segment)]
    return filled.reshape(size, rows)[np.concatenate(order)]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 9))
def test_of_eight_channels_the_best_order_of_all_is_found(seed: int, rows: int) -> None:
    scores = random_scores(seed, 8, rows)
    everything = [
        kept_slowly(scores[[*first, *sorted({*range(8)} - {*first})]]) for first in itertools.combinations(range(8), 4)
    ]
    found = search_permutation(torch.from_numpy(scores), seed=seed)
    assert found.after == pytest.approx(max(everything), rel=1e-5)
    assert kept_slowly(scores[as_array(found.order)]) == pytest.approx(found.after, rel=1e-5)
    assert found.settled


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    segments=st.integers(1, 3),
    groups=st.integers(1, 5),
    rows=st.integers(1, 12),
    zeros=st.floats(0, 0.9),
)
def test_it_never_gets_worse_and_stays_within_segments(
    seed: int, segments: int, groups: int, rows: int, zeros: float
) -> None:
    segment = 4 * groups
    scores = random_scores(seed, segments * segment, rows)
    scores[np.random.default_rng(seed).random(scores.shape) < zeros] = 0
    given_scores = torch.from_numpy(scores)
    found = search_permutation(given_scores, segment=segment, seed=seed)
    order = as_array(found.order)
    assert found.before == pytest.approx(kept_slowly(scores), rel=1e-5, abs=1e-9)
    assert found.after == pytest.approx(kept_slowly(scores[order]), rel=1e-5, abs=1e-9)
    assert found.after >= found.before
    assert sorted(order.tolist()) == list(range(len(scores)))
    np.testing.assert_array_equal(order // segment, np.arange(len(scores)) // segment)
    assert torch.equal(search_permutation(given_scores, segment=segment, seed=seed).order, found.order)


def test_a_settled_search_leaves_no_two_groups_that_would_gain() -> None:
    scores = random_scores(3, 24, 5)
    found = search_permutation(torch.from_numpy(scores), cycles=50)
    assert found.settled
    best = scores[as_array(found.order)]
    for low, high in itertools.combinations(range(6), 2):
        columns = [*range(4 * low, 4 * low + 4), *range(4 * high, 4 * high + 4)]
        now = kept_slowly(best[columns])
        for first in itertools.combinations(columns, 4):
            other = kept_slowly(best[[*first, *sorted({*columns} - {*first})]])
            assert other <= now * (1 + 1e-5)


def test_more_rows_than_are_sampled_still_gain() -> None:
    scores = random_scores(0, 16, 5000) * np.linspace(0.1, 3, 16, dtype=np.float32)[:, None]
    found = search_permutation(torch.from_numpy(scores))
    assert found.after > found.before
    assert found.after == pytest.approx(kept_by_24(torch.from_numpy(scores[as_array(found.order)])), rel=1e-6)


@pytest.mark.parametrize(("size", "segment"), [(10, None), (12, 6), (12, 8)])
def test_channels_that_make_no_groups_are_refused(size: int, segment: int | None) -> None:
    with pytest.raises(ValueError, match="groups of four"):
        search_permutation(torch.ones(size, 2), segment=segment)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "rows", "segment"), [(64, 32, 64), (64, 192, 16), (256, 64, 256), (128, 512, 64)])
def test_a_shuffled_pattern_is_made_valid_again(size: int, rows: int, segment: int) -> None:
    filled = shuffled_pattern(size + rows, size, rows, segment)
    assert not valid_slowly(filled)
    order = find_valid_order(torch.from_numpy(filled), segment=segment)
    assert order is not None
    assert valid_slowly(filled[as_array(order)])
    np.testing.assert_array_equal(as_array(order) // segment, np.arange(size) // segment)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), groups=st.integers(1, 6), rows=st.integers(1, 20), density=st.floats(0.1, 0.9))
def test_what_it_calls_valid_is_valid(seed: int, groups: int, rows: int, density: float) -> None:
    filled = np.random.default_rng(seed).random((4 * groups, rows)) < density
    order = find_valid_order(torch.from_numpy(filled))
    if order is not None:
        assert sorted(as_array(order).tolist()) == list(range(4 * groups))
        assert valid_slowly(filled[as_array(order)])


def test_a_dense_matrix_has_no_valid_order() -> None:
    assert find_valid_order(torch.ones(8, 3, dtype=torch.bool)) is None
