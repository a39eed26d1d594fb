"""The packed form, byte by byte, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpusq_deploy.numerics.two_four_compressed import CompressedMatrix, pack, unpack


def test_values_and_places_stand_where_the_format_says() -> None:
    packed = pack(np.array([[0, 5, 0, -7, 9, 0, 0, 3]], np.int8))
    assert packed.values.tolist() == [[5, -7, 9, 3]]
    # Places 1 and 3, then 0 and 3; the first group in the low nibble, its first place in the low bits.
    assert packed.metadata.tolist() == [[(1 | 3 << 2) | (0 | 3 << 2) << 4]]


@pytest.mark.parametrize(
    ("group", "values", "places"),
    [
        ([0, 0, 0, 0], [0, 0], (0, 1)),
        ([4, 0, 0, 0], [4, 0], (0, 1)),
        ([0, 4, 0, 0], [0, 4], (0, 1)),
        ([0, 0, 4, 0], [0, 4], (0, 2)),
        ([0, 0, 0, 4], [0, 4], (0, 3)),
        ([0, 0, 1, -128], [1, -128], (2, 3)),
    ],
)
def test_a_group_with_fewer_than_two_keeps_the_zeros_that_come_first(
    group: list[int], values: list[int], places: tuple[int, int]
) -> None:
    packed = pack(np.array([group], np.int8))
    assert packed.values.tolist() == [values]
    assert packed.metadata.tolist() == [[places[0] | places[1] << 2]]


def test_it_takes_five_eighths_of_int8() -> None:
    codes = np.zeros((16, 64), np.int8)
    assert pack(codes).nbytes / codes.nbytes == 0.625
    assert 4 * codes.nbytes / pack(codes).nbytes == 6.4


def test_a_matrix_stored_by_columns_packs_to_the_same_bytes() -> None:
    codes = np.zeros((6, 12), np.int8)
    codes[:, 1::4] = np.arange(1, 19).reshape(6, 3)
    one, other = pack(codes), pack(np.ascontiguousarray(codes.T).T)
    assert one.values.tobytes() == other.values.tobytes()
    assert one.metadata.tobytes() == other.metadata.tobytes()


def test_what_is_not_2_4_is_refused_with_its_place() -> None:
    codes = np.zeros((3, 12), np.int8)
    codes[2, 4:7] = 1
    with pytest.raises(ValueError, match="row 2, columns 4 to 7"):
        pack(codes)


@pytest.mark.parametrize("codes", [np.zeros((2, 6), np.int8), np.zeros(8, np.int8), np.zeros((2, 8), np.float32)])
def test_what_is_no_int8_matrix_of_fours_is_refused(codes: Any) -> None:
    with pytest.raises(ValueError, match="packing needs"):
        pack(codes)


@pytest.mark.parametrize("metadata", [0x00, 0x05, 0x01, 0x40, 0xF4])
def test_metadata_that_no_packing_writes_is_refused(metadata: int) -> None:
    """Equal places, places out of order, and a filled padding nibble."""
    with pytest.raises(ValueError, match="no packing writes"):
        unpack(CompressedMatrix(n=1, k=4, values=np.ones((1, 2), np.int8), metadata=np.array([[metadata]], np.uint8)))


@pytest.mark.parametrize(("n", "k"), [(1, 8), (2, 4), (1, 5)])
def test_sizes_that_do_not_fit_are_refused(n: int, k: int) -> None:
    with pytest.raises(ValueError, match="don't make"):
        unpack(CompressedMatrix(n=n, k=k, values=np.ones((1, 2), np.int8), metadata=np.array([[4]], np.uint8)))
