"""Whatever the parts, their tallies add up to the whole's, bit for bit, in any order and through any process."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gpusq_deploy.calibration.histogram import counts_of
from gpusq_deploy.calibration.input_checks import statistics_of
from gpusq_deploy.calibration.observer_state import ObserverState, bytes_from_tally, tally_from_bytes
from gpusq_deploy.errors import GpusqError

COUNT = 12
NOISE: Any = np.random.default_rng(0).standard_normal((COUNT, 3, 4, 4)).astype(np.float32)
SCALES: Any = np.random.default_rng(1).uniform(-12, 9, COUNT)
DATA: Any = (NOISE * 10.0 ** SCALES[:, None, None, None]).astype(np.float32)
WEIGHTS: Any = np.array([1, 2**20, 777])[:, None, None]


def tally(samples: list[int], unreadable: frozenset[int] = frozenset()) -> ObserverState:
    """What one look at these samples together sees."""
    readable = [index for index in samples if index not in unreadable]
    result = ObserverState(
        samples={index: hashlib.sha256(DATA[index].tobytes()).digest() for index in readable},
        skipped={index: f"image {index}: damaged" for index in samples if index in unreadable},
    )
    if readable:
        batch = DATA[readable]
        result.amax = {"x": float(np.abs(batch).max()), "y": float(batch.max())}
        result.counts = {"x": counts_of(batch), "y": counts_of(batch, WEIGHTS)}
        result.inputs = statistics_of(batch)
    return result


def content(of: ObserverState) -> Any:
    counts = {name: counts.tolist() for name, counts in of.counts.items()}
    return of.amax, counts, of.samples, of.skipped, of.inputs, of.digest()


splits = st.lists(st.integers(0, 4), min_size=COUNT, max_size=COUNT)


@settings(deadline=None)
@given(owner=splits, order=st.permutations(range(5)), unreadable=st.frozensets(st.integers(0, COUNT - 1)))
def test_any_split_adds_up_to_the_whole(owner: list[int], order: list[int], unreadable: frozenset[int]) -> None:
    whole = tally(list(range(COUNT)), unreadable)
    merged = ObserverState()
    for rank in order:
        part = tally([index for index in range(COUNT) if owner[index] == rank], unreadable)
        merged.absorb(tally_from_bytes(bytes_from_tally(part, about="same"), about="same"))
    assert content(merged) == content(whole)


def test_the_digest_is_that_of_the_samples_digests_in_order() -> None:
    expected = hashlib.sha256(b"".join(hashlib.sha256(sample.tobytes()).digest() for sample in DATA)).hexdigest()
    assert tally(list(range(COUNT))[::-1]).digest() == f"sha256:{expected}"


def test_sums_beyond_64_bits_survive_the_way() -> None:
    large = statistics_of(np.full((1, 1, 64, 64), 1000, np.float32))
    for _ in range(40):
        large = large.plus(large)
    assert max(large.squares) > 2**64
    sent = tally_from_bytes(bytes_from_tally(ObserverState(inputs=large), about=""), about="")
    assert sent.inputs == large
    assert large.mean() == (1000.0,)


def test_a_sample_counts_once() -> None:
    both = tally([1, 2])
    with pytest.raises(ValueError, match="sample 2 was seen twice"):
        both.absorb(tally([2, 3]))


def test_other_work_is_not_added() -> None:
    with pytest.raises(GpusqError, match="different models, recipes or data"):
        tally_from_bytes(bytes_from_tally(tally([0]), about="this"), about="that")
