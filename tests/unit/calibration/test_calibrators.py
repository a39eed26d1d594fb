"""Every calibrator against a slow reference that sees the raw values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpusq_deploy.artifacts.calibration import Calibrator, CalibratorName
from gpusq_deploy.calibration.calibrators import range_of, squared_error
from gpusq_deploy.calibration.histogram import BINS, Histogram, counts_of

Values = npt.NDArray[np.float32]
COUNT = 20_000
# A bin is 1/128 wide at most.
BIN = 1 / 128


def samples(kind: str) -> Values:
    random = np.random.default_rng(len(kind))
    inputs = random.standard_normal(COUNT) * 2
    drawn: dict[str, Any] = {
        "normal": random.standard_normal(COUNT),
        "laplace": random.laplace(size=COUNT) * 3e-3,
        "uniform": random.uniform(-7, 7, COUNT),
        "outliers": np.where(random.random(COUNT) < 5e-4, 60 + random.random(COUNT), random.standard_normal(COUNT)),
        # GELU: nearly all negative inputs end just below zero.
        "gelu": inputs * (1 + np.tanh(0.8 * (inputs + 0.0447 * inputs**3))) / 2,
    }
    return np.asarray(drawn[kind], dtype=np.float32)


KINDS = ("normal", "laplace", "uniform", "outliers", "gelu")


def histogram(values: Values, weights: Any = None) -> Histogram:
    return Histogram(counts=counts_of(values, weights), amax=float(np.abs(values).max()))


def chosen(values: Values, name: CalibratorName, percentile: float | None = None) -> float:
    return range_of(histogram(values), Calibrator(name=name, percentile=percentile))


def error_by_hand(values: Values, amax: float) -> float:
    """What ONNX Quantize and Dequantize lose, in float64; codes to ±127."""
    step = amax / 127
    wide = values.astype(np.float64)
    return float(np.sum((wide - step * np.clip(np.rint(wide / step), -127, 127)) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_amax_is_the_largest_magnitude_exactly(kind: str) -> None:
    values = samples(kind)
    assert chosen(values, "amax") == max(abs(value) for value in values.tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [50, 90, 99.9, 99.99])
def test_a_percentile_is_that_of_the_sorted_values(kind: str, share: float) -> None:
    values = samples(kind)
    ordered = sorted(abs(value) for value in values.tolist())
    expected = ordered[math.ceil(len(ordered) * share / 100) - 1]
    assert chosen(values, "percentile", share) == pytest.approx(expected, rel=BIN)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hundredth_percentile_clips_nothing(kind: str) -> None:
    values = samples(kind)
    assert chosen(values, "percentile", 100) == float(np.abs(values).max())


def test_the_usual_percentile_is_99_99() -> None:
    values = samples("normal")
    assert chosen(values, "percentile") == chosen(values, "percentile", 99.99)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [1.0, 0.7, 0.31, 0.05])
def test_the_expected_error_is_the_error(kind: str, part: float) -> None:
    values = samples(kind)
    amax = float(np.abs(values).max()) * part
    assert squared_error(histogram(values), amax) == pytest.approx(error_by_hand(values, amax), rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_as_good_as_the_best_of_a_thousand_ranges(kind: str) -> None:
    values = samples(kind)
    largest = float(np.abs(values).max())
    best = min(error_by_hand(values, largest * step / 1000) for step in range(4, 1001))
    assert error_by_hand(values, chosen(values, "mse")) <= 1.02 * best


def test_mse_clips_a_thin_tail_and_nothing_that_costs_more() -> None:
    assert chosen(samples("outliers"), "mse") > 50, "clipping sixty costs more than rounding all the others"
    assert chosen(samples("laplace"), "mse") < 0.95 * chosen(samples("laplace"), "amax")
    assert chosen(samples("uniform"), "mse") == chosen(samples("uniform"), "amax")


def divergence_by_hand(counts: list[float], size: int) -> float:
    """Migacz' algorithm, one number at a time."""
    reference = [float(count) for count in counts[:size]]
    reference[-1] += sum(counts[size:])
    sums, held = [0.0] * 128, [0] * 128
    for index in range(size):
        sums[index * 128 // size] += counts[index]
        held[index * 128 // size] += counts[index] > 0
    quantised = [
        sums[index * 128 // size] / held[index * 128 // size] if counts[index] > 0 else 0.0 for index in range(size)
    ]
    if any(p > 0 and q == 0 for p, q in zip(reference, quantised, strict=True)):
        return math.inf
    total, other = sum(reference), sum(quantised)
    return sum(
        p / total * math.log((p / total) / (q / other)) for p, q in zip(reference, quantised, strict=True) if p > 0
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_entropy_diverges_as_little_as_the_best_range_of_the_raw_values(kind: str) -> None:
    values = samples(kind)
    largest = float(np.abs(values).max())
    raw = np.histogram(np.abs(values), bins=2048, range=(0, largest))[0].tolist()
    divergences = {size: divergence_by_hand(raw, size) for size in range(128, 2049)}
    size = round(chosen(values, "entropy") / largest * 2048)
    # A raw bin far out holds one value or none, and an empty last bin diverges without end; ours are spread. So the
    # best within one of our bins counts.
    near = min(divergences[known] for known in divergences if abs(known - size) <= max(size * BIN, 4))
    assert near <= min(divergences.values()) + 0.01


def weighted_error_by_hand(values: Values, weights: npt.NDArray[np.float64], amax: float) -> float:
    """|W·(x - Q(x))|² in full, products of different channels' errors included."""
    step = amax / 127
    wide = values.astype(np.float64)
    errors = wide - step * np.clip(np.rint(wide / step), -127, 127)
    return float(np.sum((errors @ weights.T) ** 2))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_output_error_is_as_good_as_the_best_of_many_ranges_for_the_whole_product(seed: int) -> None:
    random = np.random.default_rng(seed)
    channels = 32
    # Two wide channels whose weights are small: worth clipping for the output, not for the input.
    scale = np.where(np.arange(channels) < 2, 40, 1)
    values = (random.standard_normal((1000, channels)) * scale).astype(np.float32)
    weights = random.standard_normal((48, channels)) * np.where(np.arange(channels) < 2, 0.01, 1)
    norms = np.sum(weights**2, axis=0)
    whole = np.rint(norms / norms.max() * 2**20).astype(np.int64)
    found = range_of(histogram(values, whole), Calibrator(name="output-error"))
    largest = float(np.abs(values).max())
    best = min(weighted_error_by_hand(values, weights, largest * step / 150) for step in range(1, 151))
    assert weighted_error_by_hand(values, weights, found) <= 1.05 * best
    assert found < 0.5 * chosen(values, "mse")


@pytest.mark.parametrize("name", ["amax", "percentile", "entropy", "mse", "output-error"])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, 0.3, 6e4])
def test_a_single_magnitude_is_its_own_range(name: CalibratorName, value: float) -> None:
    single = np.full(10, value, np.float32)
    assert chosen(single, name) == pytest.approx(float(np.float32(value)), rel=0.05)


@pytest.mark.parametrize("name", ["percentile", "entropy", "mse", "output-error"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_range_is_positive_and_not_above_the_largest_magnitude(name: CalibratorName, kind: str) -> None:
    values = samples(kind)
    assert 0 < chosen(values, name) <= float(np.abs(values).max())


def test_a_tensor_whose_weights_are_all_zero_keeps_its_largest_magnitude() -> None:
    empty = Histogram(counts=np.zeros(BINS, np.int64), amax=2.5)
    assert range_of(empty, Calibrator(name="output-error")) == 2.5
