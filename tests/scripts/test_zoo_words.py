"""How words are read and scored, against slower ways that say the same."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

from gpusq_deploy.benchmarks.peers.zoo_words import character_errors, ctc_text

LETTERS = "abc"


@functools.cache
def slow_errors(wanted: str, read: str) -> int:
    if not wanted or not read:
        return len(wanted) + len(read)
    same = wanted[0] == read[0]
    ways = (slow_errors(wanted[1:], read) + 1, slow_errors(wanted, read[1:]) + 1)
    return min(*ways, slow_errors(wanted[1:], read[1:]) + (not same))


def test_character_errors_are_the_fewest_changes() -> None:
    texts = ["".join(letters) for count in range(4) for letters in itertools.product("ab", repeat=count)]
    assert all(character_errors(a, b) == slow_errors(a, b) for a in texts for b in texts)
    assert character_errors("metadata", "artalara") == slow_errors("metadata", "artalara")


@pytest.mark.parametrize("seed", range(5))
def test_ctc_collapses_repetitions_and_drops_blanks(seed: int) -> None:
    steps = np.random.default_rng(seed).integers(0, 1 + len(LETTERS), size=(3, 12))
    logits = np.eye(1 + len(LETTERS), dtype=np.float32)[steps]
    expected = [
        "".join(LETTERS[step - 1] for step, _ in itertools.groupby(map(int, row)) if step) for row in steps.tolist()
    ]
    assert ctc_text(logits, LETTERS) == expected
