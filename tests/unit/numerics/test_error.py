"""Error measures against their definitions, term by term."""

from __future__ import annotations

import math
import statistics

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gpusq_deploy.numerics.error import cosine, error_sums, joined, spread_of, sqnr_db, top1_agreement


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


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_the_spread_of_parts_is_that_of_all_answers_from_the_first(cut: int) -> None:
    answers = np.random.default_rng(7).standard_normal((7, 2, 3)).astype(np.float32)
    found = spread_of(answers[cut:], spread_of(answers[:cut]))
    rows: list[list[float]] = answers.reshape(7, 6).tolist()
    assert found.samples == 7
    assert found.largest == max(abs(value) for row in rows for value in row)
    assert found.deviation == max(abs(a - b) for row in rows for a, b in zip(row, rows[0], strict=True))


@pytest.mark.parametrize(
    ("answers", "constant"),
    [
        ([[1.0, 2.0], [1.0, 2.0]], True),
        ([[1000.0, 2.0], [1000.0, 2.0005]], True),  # of a thousand, float32 keeps no more
        ([[1000.0, 2.0], [1000.0, 2.002]], False),
        ([[0.0, 0.0], [0.0, 0.0]], True),
        ([[0.0, 0.0]], True),
        ([[1.0, 2.0]], False),  # of one sample, nobody knows
        ([[0.0, 0.0], [0.0, 1e-20]], False),
    ],
)
def test_answers_are_constant_where_only_rounding_tells_them_apart(answers: list[list[float]], constant: bool) -> None:
    assert spread_of(np.array(answers)).constant == constant


def pairs(count: int = 7) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    random = np.random.default_rng(6)
    reference = random.standard_normal((count, 3, 5)).astype(np.float32)
    noise = random.standard_normal(reference.shape) * np.linspace(0.01, 1, count)[:, None, None]
    return reference, (reference + noise).astype(np.float32)


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_sums_of_parts_give_what_the_whole_outputs_give(cut: int) -> None:
    reference, got = pairs()
    sums = joined([error_sums(reference[:cut], got[:cut]), error_sums(reference[cut:], got[cut:])])
    assert sums.sqnr_db() == pytest.approx(sqnr_db(reference, got))
    assert sums.cosine() == pytest.approx(cosine(reference, got))


@pytest.mark.parametrize("count", [1, 6, 7])
def test_the_median_is_that_of_each_samples_own_figure(count: int) -> None:
    reference, got = pairs(count)
    alone = [sqnr_db(one, other) for one, other in zip(reference, got, strict=True)]
    assert error_sums(reference, got).median_sqnr_db() == pytest.approx(statistics.median(alone))


def test_one_bad_sample_decides_the_pooled_figure_and_not_the_median() -> None:
    reference = np.ones((5, 10))
    got = reference * 1.001
    got[2] = -1
    sums = error_sums(reference, got)
    assert sums.median_sqnr_db() == pytest.approx(60)
    assert sums.sqnr_db() < 2


def test_equal_samples_are_infinitely_good_and_silence_has_no_angle() -> None:
    sums = error_sums(np.ones((2, 3)), np.ones((2, 3)))
    assert (sums.sqnr_db(), sums.median_sqnr_db()) == (math.inf, math.inf)
    assert error_sums(np.zeros((2, 3)), np.ones((2, 3))).cosine() == 0


def test_infinite_noise_is_the_worst_there_is() -> None:
    reference = np.ones((2, 3), np.float32)
    got = reference.copy()
    got[0, 0] = np.inf
    sums = error_sums(reference, got)
    assert (sums.sqnr_db(), sqnr_db(reference, got)) == (-np.inf, -np.inf)
    assert sums.median_sqnr_db() == -np.inf
