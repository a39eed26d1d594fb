"""INT8 quantisation against ONNX Runtime's own operators and against a slow loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import tiny_models

from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.numerics.affine import INT8_MAX, amax_per_channel, dequantize, quantize, scale_from_amax

F32 = npt.NDArray[np.float32]
TYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
PER_CHANNEL = """g (float[N,K] x, float[N] s, int8[N] z) => (int8[N,K] q, float[N,K] y) {
  q = QuantizeLinear<axis = 0>(x, s, z)
  y = DequantizeLinear<axis = 0>(q, s, z)
}"""
PER_TENSOR_FP16 = """g (float16[N] x, float16 s, int8 z) => (int8[N] q, float16[N] y) {
  q = QuantizeLinear(x, s, z)
  y = DequantizeLinear(q, s, z)
}"""


def weights(rows: int = 16, columns: int = 40) -> F32:
    return np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)


def code_by_hand(value: float, scale: float) -> int:
    """Round half to even, written out: the fraction decides, and 0.5 goes to the even neighbour."""
    ratio = value / scale
    below = math.floor(ratio)
    fraction = ratio - below
    up = below % 2 == 1 if fraction == 0.5 else fraction > 0.5
    return max(-127, min(127, below + up))


def test_codes_and_values_are_those_of_onnx_runtime_per_channel() -> None:
    values = weights()
    values[3] = 0
    scale = scale_from_amax(amax_per_channel(values, 0)).astype(np.float32)
    theirs = tiny_models.run_model(
        tiny_models.graph(PER_CHANNEL), {"x": values, "s": scale, "z": np.zeros(len(scale), np.int8)}
    )
    ours = quantize(values, scale, axis=0)
    np.testing.assert_array_equal(ours, theirs["q"])
    np.testing.assert_array_equal(dequantize(ours, scale, axis=0), theirs["y"])


def test_codes_are_those_of_onnx_runtime_with_an_fp16_scale(tmp_path: Path) -> None:
    # Multiples of a power of two divide exactly, so the arithmetic's width can't move a value across a half.
    values = (np.arange(-508, 509, dtype=np.float32) / 64).astype(np.float16)
    scale = np.asarray(1 / 16, np.float16)
    save_model(tiny_models.graph(PER_TENSOR_FP16), tmp_path / "q.onnx")
    # By our session: older versions alone cut FP16 codes off.
    session = open_onnx(tmp_path / "q.onnx", optimize=False)
    theirs = session.run({"x": values, "s": scale, "z": np.asarray(0, np.int8)})
    codes = quantize(values, scale)
    np.testing.assert_array_equal(codes, theirs["q"])
    np.testing.assert_array_equal(dequantize(codes, scale).astype(np.float16), theirs["y"])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_codes_are_those_of_a_slow_loop_on_every_axis(axis: int) -> None:
    values = weights(5, 7)
    scale = scale_from_amax(amax_per_channel(values, axis)).astype(np.float32)
    got = quantize(values, scale, axis=axis)
    for row in range(5):
        for column in range(7):
            step = scale[row if axis == 0 else column]
            ratio = float(np.float32(values[row, column]) / np.float32(step))
            assert got[row, column] == code_by_hand(ratio, 1.0)


def test_halves_go_to_the_even_code() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5], np.float32)
    assert quantize(values, np.array(1.0, np.float32)).tolist() == [0, 2, 2, 0, -2, -2, 126, -126]
    assert [code_by_hand(float(value), 1.0) for value in values] == [0, 2, 2, 0, -2, -2, 126, -126]


def test_codes_stay_in_the_symmetric_range() -> None:
    values = np.array([-1e9, -128.4, -127.6, 127.6, 1e9], np.float32)
    assert quantize(values, np.array(1.0, np.float32)).tolist() == [-127, -127, -127, 127, 127]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_dead_channel_gets_scale_one_and_stays_zero(dtype: Any) -> None:
    scale = scale_from_amax([0.0, 2.0], dtype=dtype)
    assert float(scale[0]) == 1.0
    values = np.array([[0.0, -0.0], [2.0, 0.0]], np.float32)
    back = dequantize(quantize(values, scale, axis=0), scale, axis=0)
    np.testing.assert_array_equal(back == 0, values == 0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("amax", [1e-40, 1e-30, 1e-7, 3e-7, 7.6e-6, 1.06e-5, 7e-5, 1e-3, 0.7, 4.4, 300.0])
def test_scales_are_positive_finite_and_reach_amax(dtype: Any, amax: float) -> None:
    scale = float(scale_from_amax(amax, dtype=dtype))
    assert math.isfinite(scale)
    assert scale > 0
    assert amax <= (INT8_MAX + 0.5) * scale


@pytest.mark.parametrize("dtype", TYPES)
def test_scales_hold_values_of_the_stored_type(dtype: Any) -> None:
    scales = scale_from_amax(np.geomspace(1e-6, 1e4, 50), dtype=dtype)
    assert scales.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(scales.astype(np.float64).astype(dtype), scales)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_scale_is_the_nearest_of_the_stored_type(dtype: Any) -> None:
    for amax in np.geomspace(0.02, 1e4, 40):
        exact = amax / 127
        stored = scale_from_amax(amax, dtype=dtype)
        gap = abs(float(stored) - exact)
        for other in (np.nextafter(stored, stored * 0), np.nextafter(stored, stored * 2)):
            assert gap <= abs(float(other) - exact)


@pytest.mark.parametrize("amax", [-1.0, math.nan, math.inf, -math.inf])
def test_impossible_ranges_are_refused(amax: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        scale_from_amax([1.0, amax])


def test_a_scale_beyond_fp16_is_refused_and_bf16_takes_it() -> None:
    with pytest.raises(ValueError, match="overflows float16"):
        scale_from_amax(127 * 70000.0, dtype=np.float16)
    assert float(scale_from_amax(127 * 70000.0, dtype=ml_dtypes.bfloat16)) == pytest.approx(70000, rel=2**-8)


@pytest.mark.parametrize("axis", [0, 1, 3, -1])
def test_amax_per_channel_is_that_of_a_slow_loop(axis: int) -> None:
    values = np.random.default_rng(2).standard_normal((3, 4, 2, 5)).astype(np.float32)
    got = amax_per_channel(values, axis)
    for index in range(values.shape[axis]):
        assert got[index] == max(abs(float(value)) for value in values.take(index, axis=axis).ravel())


def test_amax_of_an_empty_channel_is_zero() -> None:
    assert amax_per_channel(np.zeros((2, 0), np.float32), 0).tolist() == [0, 0]
