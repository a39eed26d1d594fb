"""What holds for every array: bounded error, exact zeros, kept structure."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays

from gpusq_deploy.numerics.affine import amax_per_channel, dequantize, quantize, scale_from_amax
from gpusq_deploy.numerics.two_four import magnitude_mask, violating_groups

F32 = npt.NDArray[np.float32]
STORED = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}

finite = st.floats(-(2.0**20), 2.0**20, width=32)
matrices = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 4).map(lambda n: 4 * n)), elements=finite
)


@pytest.mark.parametrize("stored", STORED)
@given(values=matrices)
def test_the_round_trip_is_off_by_half_a_step_at_most(stored: str, values: F32) -> None:
    scale = scale_from_amax(amax_per_channel(values, 0), dtype=STORED[stored]).astype(np.float32)
    back = dequantize(quantize(values, scale, axis=0), scale, axis=0)
    error = np.abs(back.astype(np.float64) - values)
    # A division, a product and a stored float32 round once each.
    slack = 3 * np.finfo(np.float32).eps * np.abs(values) + np.finfo(np.float32).smallest_subnormal
    assert (error <= 0.5 * scale[:, None].astype(np.float64) + slack).all()


@given(values=matrices)
def test_zeros_stay_exact_zeros(values: F32) -> None:
    scale = scale_from_amax(amax_per_channel(values, 0)).astype(np.float32)
    back = dequantize(quantize(values, scale, axis=0), scale, axis=0)
    assert not back[values == 0].any()


@given(values=matrices)
def test_the_largest_value_of_a_channel_gets_the_last_code(values: F32) -> None:
    largest = amax_per_channel(values, 0)
    codes = quantize(values, scale_from_amax(largest).astype(np.float32), axis=0)
    reached = np.abs(codes.astype(np.int16)).max(axis=1)
    # Among float32's own subnormal numbers 127 codes don't fit below amax.
    assert (reached[largest > 127 * np.finfo(np.float32).tiny] == 127).all()


@given(values=matrices)
def test_quantising_is_odd(values: F32) -> None:
    scale = scale_from_amax(amax_per_channel(values, 0)).astype(np.float32)
    np.testing.assert_array_equal(quantize(-values, scale, axis=0), -quantize(values, scale, axis=0))


@given(values=matrices)
def test_quantising_again_changes_nothing(values: F32) -> None:
    scale = scale_from_amax(amax_per_channel(values, 0)).astype(np.float32)
    codes = quantize(values, scale, axis=0)
    np.testing.assert_array_equal(quantize(dequantize(codes, scale, axis=0), scale, axis=0), codes)


@given(values=matrices, axis=st.sampled_from([0, 1]))
def test_a_sparse_matrix_stays_sparse_when_quantised(values: F32, axis: int) -> None:
    sparse = np.where(magnitude_mask(values), values, np.float32(0))
    scale = scale_from_amax(amax_per_channel(sparse, axis), dtype=np.float16).astype(np.float32)
    assert not len(violating_groups(quantize(sparse, scale, axis=axis)))


@given(values=matrices)
def test_the_order_of_values_is_kept(values: F32) -> None:
    flat = np.sort(values.ravel())
    scale = scale_from_amax(np.abs(flat).max()).astype(np.float32)
    assert (np.diff(quantize(flat, scale).astype(np.int16)) >= 0).all()
