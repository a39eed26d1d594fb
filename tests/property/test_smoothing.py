"""What holds for every smoothing: the layer stays the same, zero stays exact, the range holds what was seen."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, strategies as st

from gpusq_deploy.numerics.affine import scale_from_amax
from gpusq_deploy.numerics.smoothing import Smoothing, balanced, one_sided

STORED = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
SIZES = st.sampled_from([1e-3, 1.0, 300.0])
WIDTHS = st.sampled_from([12, 400])  # beyond 51 a 99th percentile may lie below half the largest
SEEDS = st.integers(0, 2**32 - 1)
Floats = npt.NDArray[np.float32]


def samples(seed: int, size: float, *, gelu: bool, width: int = 12) -> Floats:
    """[40, width]: channels of different sizes and means, some of them dead; of many, most are small."""
    random = np.random.default_rng(seed)
    sizes = random.choice([0.0, 0.1, 1.0, 30.0], width, p=None if width < 100 else [0.4, 0.4, 0.195, 0.005])
    values = random.standard_normal((40, width)) * sizes + random.normal(0, 3 if width < 100 else 0.3, width)
    values = np.maximum(values, -0.17 * random.random((40, width))) if gelu else values
    scaled: Floats = (values * size).astype(np.float32)
    return scaled


def decided(values: Floats, weight: Floats, *, gelu: bool, centre: bool, stored: np.dtype[np.generic]) -> Smoothing:
    low, high = values.min(axis=0), values.max(axis=0)
    if gelu:
        return one_sided(low, high, headroom=0.15, centre=centre, stored=stored)
    return balanced(low, high, np.abs(weight).max(axis=0), centre=centre)


@pytest.mark.parametrize("gelu", [True, False])
@given(seed=SEEDS, size=SIZES, width=WIDTHS, centre=st.booleans())
def test_a_smoothed_layer_computes_the_same(gelu: bool, seed: int, size: float, width: int, centre: bool) -> None:
    random = np.random.default_rng(seed)
    values = samples(seed, size, gelu=gelu, width=width)
    weight = random.standard_normal((5, width)).astype(np.float32)
    bias = random.standard_normal(5)
    found = decided(values, weight, gelu=gelu, centre=centre, stored=STORED["fp32"])
    factor, offset = found.factor.astype(np.float64), found.offset.astype(np.float64)
    got = ((values - offset) / factor) @ (weight * factor).T + bias + weight @ offset
    np.testing.assert_allclose(got, values.astype(np.float64) @ weight.T + bias, rtol=1e-9, atol=1e-9 * size)


@pytest.mark.parametrize("stored", STORED)
@given(seed=SEEDS, size=SIZES, width=WIDTHS)
def test_zero_has_an_exact_code_and_the_range_holds_everything(stored: str, seed: int, size: float, width: int) -> None:
    values = samples(seed, size, gelu=True, width=width)
    found = decided(values, np.ones((1, width), np.float32), gelu=True, centre=True, stored=STORED[stored])
    assert found.amax is not None
    step = scale_from_amax(found.amax, dtype=STORED[stored]).astype(np.float32)
    # As the graph computes it: both constants in float32.
    zero = np.zeros_like(values) * (1 / found.factor) - found.offset / found.factor
    multiple = zero / step
    np.testing.assert_allclose(multiple, np.rint(multiple), atol=1e-4)
    assert len(np.unique(np.rint(multiple))) == 1
    assert np.abs(multiple).max() < 128.5
    smoothed = (values.astype(np.float64) - found.offset) / found.factor
    assert np.abs(smoothed).max() <= found.amax + 0.51 * float(step) + 1e-6 * found.amax


@given(seed=SEEDS, size=SIZES, centre=st.booleans())
def test_factors_of_a_gelu_lie_between_the_root_of_a_fifth_and_one(seed: int, size: float, centre: bool) -> None:
    values = samples(seed, size, gelu=True)
    factor = decided(values, np.ones((1, 12), np.float32), gelu=True, centre=centre, stored=STORED["fp16"]).factor
    assert (factor >= np.sqrt(0.2) * (1 - 1e-6)).all()
    assert (factor <= 1 + 1e-6).all()


@given(seed=SEEDS, size=SIZES, centre=st.booleans())
def test_factors_behind_a_norm_are_positive_and_even_out_to_one(seed: int, size: float, centre: bool) -> None:
    values = samples(seed, size, gelu=False)
    weight = np.random.default_rng(seed).standard_normal((3, 12)).astype(np.float32)
    factor = decided(values, weight, gelu=False, centre=centre, stored=STORED["fp32"]).factor
    assert np.isfinite(factor).all()
    assert (factor > 0).all()
    assert abs(np.log(factor.astype(np.float64)).mean()) < 1e-5


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("centre", [True, False])
def test_channels_that_never_fire_do_not_rule_the_range(stored: str, centre: bool) -> None:
    """As behind a GELU of which 5 of 1,000 channels fire: the others' lower ends are part of the range."""
    low, high = np.full(1000, -0.17, np.float32), np.full(1000, -0.001, np.float32)
    high[:5] = 5
    found = one_sided(low, high, headroom=0.15, centre=centre, stored=STORED[stored])
    assert found.amax is not None
    assert 2.5 < found.amax < 10
