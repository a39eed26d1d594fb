"""Packing 2:4 codes: the same bits come back, and the bytes are those of a slow, obvious packing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tiny_models
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays

from gpusq_deploy.artifacts.recipe import load_recipe
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.values import array_of
from gpusq_deploy.numerics.two_four import magnitude_mask
from gpusq_deploy.numerics.two_four_census import census
from gpusq_deploy.numerics.two_four_compressed import pack, unpack
from gpusq_deploy.sparsity.check import sparsity_report
from gpusq_deploy.sparsity.compressed_file import PACKED, read_packed, write_compressed
from gpusq_deploy.sparsity.graph_check import graph_weights

Codes = npt.NDArray[np.int8]

shapes = st.tuples(st.integers(0, 6), st.integers(0, 9).map(lambda groups: 4 * groups))
sparse_codes = arrays.arrays(np.int8, shapes, elements=st.integers(-128, 127), fill=st.just(0)).map(
    lambda codes: np.where(magnitude_mask(codes), codes, 0).astype(np.int8) if codes.size else codes
)


def slow_pack(codes: Codes) -> tuple[list[list[int]], list[list[int]]]:
    """Values and metadata, a group at a time."""
    values: list[list[int]] = []
    metadata: list[list[int]] = []
    for line in codes.tolist():
        kept, nibbles = list[int](), list[int]()
        for start in range(0, len(line), 4):
            group = line[start : start + 4]
            places = [place for place in range(4) if group[place] != 0]
            spare = [place for place in range(4) if group[place] == 0]
            places = sorted((places + spare)[:2])
            kept += [group[place] for place in places]
            nibbles.append(places[0] + 4 * places[1])
        nibbles += [0] * (len(nibbles) % 2)
        values.append(kept)
        metadata.append([nibbles[index] + 16 * nibbles[index + 1] for index in range(0, len(nibbles), 2)])
    return values, metadata


@given(codes=sparse_codes)
def test_the_same_bits_come_back(codes: Codes) -> None:
    np.testing.assert_array_equal(unpack(pack(codes)), codes)


@given(codes=sparse_codes)
def test_the_bytes_are_those_of_the_slow_packing(codes: Codes) -> None:
    packed = pack(codes)
    assert (packed.values.tolist(), packed.metadata.tolist()) == slow_pack(codes)


@given(codes=arrays.arrays(np.int8, shapes, elements=st.sampled_from([0, 0, 1, -1])))
def test_what_packs_is_what_the_check_calls_valid(codes: Codes) -> None:
    try:
        pack(codes)
    except ValueError:
        assert census(codes).violations
    else:
        assert not census(codes).violations


@settings(max_examples=25)
@given(codes=sparse_codes.filter(lambda codes: codes.size > 0), turned=st.booleans())
def test_a_file_gives_back_what_the_graph_holds(codes: Codes, turned: bool) -> None:
    n, k = codes.shape
    stored = codes if turned else np.ascontiguousarray(codes.T)
    text = (
        f"g (float[B,{k}] x) => (float[B,{n}] y) {{ [dq] v = DequantizeLinear<axis = {1 - turned}>(w, s, z) "
        f"[fc] y = Gemm<transB = {int(turned)}>(x, v) }}"
    )
    scales, zeros = np.ones(n, np.float32), np.zeros(n, np.int8)
    model = tiny_models.graph(text, w=stored, s=scales, z=zeros)
    weights = graph_weights(model, weighted_layers(model))
    report = sparsity_report(weights, source="test", recipe=load_recipe(None), record=None)
    with tempfile.TemporaryDirectory() as folder:
        index = write_compressed(model, report, Path(folder))
        assert index is not None
        ((name, unpacked),) = read_packed(Path(folder) / PACKED)
    np.testing.assert_array_equal(unpacked, array_of(model.graph.initializers[name]))
    assert index.int8_bytes == n * k
    assert index.packed_bytes == n * k // 2 + n * -(-k // 8)
