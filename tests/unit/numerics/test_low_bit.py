"""FP8 and INT4 against slow, obvious versions."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from gpusq_deploy.numerics.low_bit import fp8_codes, fp8_scale, int4_blocks
from gpusq_deploy.numerics.two_four import magnitude_mask, violating_groups


def e4m3_values() -> list[float]:
    """Every value of E4M3, by its definition: sign, four bits of exponent with bias 7, three of mantissa."""
    found: list[float] = []
    for exponent in range(16):
        for mantissa in range(8):
            if (exponent, mantissa) != (15, 7):  # NaN
                base = mantissa / 8 if exponent == 0 else 1 + mantissa / 8
                found.append(base * 2.0 ** (max(exponent, 1) - 7))
    return sorted({*found, *(-value for value in found)})


def nearest_e4m3(value: float) -> float:
    """The nearest value; of two, the one whose mantissa is even."""
    values = e4m3_values()
    distance = min(abs(value - other) for other in values)
    near = [other for other in values if abs(value - other) == distance]
    return (
        near[0] if len(near) == 1 else next(other for other in near if values.index(other) % 2 == values.index(0) % 2)
    )


def random(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_fp8_codes_are_the_nearest_values() -> None:
    values = np.concatenate([random(300) * 40, np.array([0, 1.0625, 1.1875, 448, 460, 1e6, -1e6, 2**-10], np.float32)])
    got = fp8_codes(values, np.array(0.5, np.float32)).astype(np.float64)
    assert got.tolist() == [nearest_e4m3(float(value) * 2) for value in values]


def test_fp8_takes_one_scale_for_each_index_of_an_axis() -> None:
    values = random(3, 5)
    scale = np.array([0.1, 0.01, 1.0], np.float32)
    got = fp8_codes(values, scale, axis=0)
    for row in range(3):
        assert np.array_equal(got[row], fp8_codes(values[row], scale[row]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_largest_magnitude_has_the_last_fp8_code_or_the_one_before(dtype: npt.DTypeLike) -> None:
    for amax in (3.0, 700.0, 1e-3, 1e-6):
        scale = fp8_scale(amax, dtype=dtype).astype(np.float32)
        assert scale > 0
        code = float(fp8_codes(np.array(amax, np.float32), scale))
        assert code <= 448
        assert amax > 448 * float(scale) * 0.9 or dtype == np.float16
    assert float(fp8_scale(0.0)) == 1.0
    with pytest.raises(ValueError, match="overflows"):
        fp8_scale(1e9, dtype=np.float16)


def slow_block(block: npt.NDArray[np.float32]) -> tuple[float, float]:
    """The best of the 33 scales and its error, one value at a time."""
    amax = max(abs(float(value)) for value in block)
    found: list[tuple[float, float]] = []
    for step in range(33):
        scale = float(np.float16(amax / 7 * 2 ** (-step / 32)))
        codes = [min(max(round(float(np.float32(value) / np.float32(scale))), -8), 7) for value in block]
        error = sum((float(value) - scale * code) ** 2 for value, code in zip(block, codes, strict=True))
        found.append((error, scale))
    return min(found)


def test_int4_scales_are_the_best_of_their_blocks() -> None:
    rows = random(6, 64, seed=3)
    codes, scales = int4_blocks(rows, 32, dtype=np.float16)
    assert codes.shape == (6, 64)
    assert scales.shape == (6, 2)
    assert codes.min() >= -8
    assert codes.max() <= 7
    assert np.array_equal(scales, scales.astype(np.float16))
    for row in range(6):
        for index in range(2):
            block = rows[row, 32 * index : 32 * (index + 1)]
            got = codes[row, 32 * index : 32 * (index + 1)] * scales[row, index]
            error, _ = slow_block(block)
            assert float(np.sum((block - got) ** 2)) == pytest.approx(error, rel=1e-5)


def test_clipping_is_worth_it_where_one_value_stands_out_a_little() -> None:
    rows = np.full((1, 32), 0.5, np.float32)
    rows[0, 0] = 1.0
    _, scales = int4_blocks(rows, 32)
    assert scales[0, 0] < 1 / 7


def test_int4_keeps_zeros_and_blocks_of_zeros() -> None:
    rows = random(8, 128, seed=5)
    rows *= magnitude_mask(rows)
    rows[2, 32:64] = 0
    codes, scales = int4_blocks(rows, 32)
    assert not codes[rows == 0].any()
    assert scales[2, 1] == 1
    assert not len(violating_groups(codes))


def test_many_blocks_are_done_in_pieces_alike() -> None:
    rows = random(40, 4096, seed=7)
    codes, scales = int4_blocks(rows, 128)
    few, some = int4_blocks(rows[17:18], 128)
    assert np.array_equal(codes[17:18], few)
    assert np.array_equal(scales[17:18], some)


def test_a_weight_without_whole_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="no blocks of 32"):
        int4_blocks(random(4, 40), 32)
