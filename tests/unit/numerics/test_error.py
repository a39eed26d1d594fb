"""Error measures against their definitions, term by term."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gpusq_deploy.numerics.error import cosine, sqnr_db, top1_agreement


def test_sqnr_is_its_definition() -> None:
    random = np.random.default_rng(4)
    reference = random.standard_normal(100)
    got = reference + random.standard_normal(100) / 100
    signal = sum(float(value) ** 2 for value in reference)
    noise = sum((float(a) - float(b)) ** 2 for a, b in zip(reference, got, strict=True))
    assert sqnr_db(reference, got) == pytest.approx(10 * math.log10(signal / noise))


def test_one_percent_of_noise_is_forty_decibels() -> None:
    assert sqnr_db(np.full(10, 2.0), np.full(10, 2.02)) == pytest.approx(40)


def test_equal_outputs_are_infinitely_good_and_noise_on_silence_infinitely_bad() -> None:
    assert sqnr_db(np.zeros(3), np.zeros(3)) == math.inf
    assert sqnr_db(np.zeros(3), np.ones(3)) == -math.inf


def test_sqnr_of_fp16_outputs_does_not_overflow() -> None:
    assert math.isfinite(sqnr_db(np.full(100, 60000, np.float16), np.full(100, 59968, np.float16)))


def test_cosine_is_that_of_torch() -> None:
    random = np.random.default_rng(5)
    a, b = random.standard_normal((4, 6)), random.standard_normal((4, 6))
    theirs = torch.nn.functional.cosine_similarity(torch.from_numpy(a.ravel()), torch.from_numpy(b.ravel()), dim=0)
    assert cosine(a, b) == pytest.approx(float(theirs))
    assert cosine(np.zeros(3), np.ones(3)) == 0


def test_top1_counts_the_samples_whose_winner_stays() -> None:
    reference = np.array([[1, 2, 0], [5, 1, 1], [0, 0, 1], [3, 2, 1]])
    got = np.array([[0, 9, 0], [1, 5, 1], [0, 0, 7], [3, 2, 9]])
    assert top1_agreement(reference, got) == 0.5
