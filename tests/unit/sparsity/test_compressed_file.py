"""`weights.24`: what goes in, what comes back, and that no damage passes unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bundles
import msgspec
import numpy as np
import pytest
import tiny_models

from gpusq_deploy.artifacts.bundle_layout import MODEL
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.mapped import map_model
from gpusq_deploy.graph.values import array_of
from gpusq_deploy.sparsity.compressed_file import PACKED, compressed_line, packed_index, read_packed, write_compressed


def write(folder: Path) -> Path:
    built = bundles.model().after
    assert write_compressed(built, bundles.sparsity_of(built), folder) is not None
    return folder / PACKED


def test_the_codes_come_back_and_the_sizes_are_told(tmp_path: Path) -> None:
    built = bundles.model().after
    index = write_compressed(built, bundles.sparsity_of(built), tmp_path)
    assert index is not None
    assert packed_index(tmp_path / PACKED) == index
    (layer,) = weighted_layers(built)
    ((name, codes),) = read_packed(tmp_path / PACKED)
    assert name == layer.weight
    np.testing.assert_array_equal(codes, array_of(built.graph.initializers[name]))
    assert (index.int8_bytes, index.packed_bytes, index.of_int8, index.times_smaller) == (32, 20, 0.625, 6.4)
    assert "0.625 of dense INT8" in compressed_line(index)
    assert "6.40x" in compressed_line(index)


def test_it_can_be_written_from_the_mapped_model(tmp_path: Path) -> None:
    built = bundles.model().after
    save_model(built, tmp_path / MODEL)
    (tmp_path / "one").mkdir()
    write_compressed(map_model(tmp_path / MODEL), bundles.sparsity_of(built), tmp_path / "one")
    assert (tmp_path / "one" / PACKED).read_bytes() == write(tmp_path).read_bytes()


def test_a_model_without_sparse_int8_gets_no_file(tmp_path: Path) -> None:
    dense = bundles.model(sparse=False)
    assert write_compressed(dense.after, bundles.sparsity_of(dense.after), tmp_path) is None
    floats = bundles.model().before
    assert write_compressed(floats, bundles.sparsity_of(floats), tmp_path) is None
    assert not (tmp_path / PACKED).exists()


def test_a_conv_comes_back_in_its_own_order(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    kernel = random.integers(1, 100, (3, 8, 2, 2)).astype(np.int8)
    kernel[:, [0, 2, 5, 6]] = 0
    text = "g (float[B,8,4,4] x) => (float[B,3,3,3] y) { [dq] k = DequantizeLinear<axis = 0>(w, s) [c] y = Conv(x, k) }"
    model = tiny_models.graph(text, w=kernel, s=np.ones(3, np.float32))
    assert write_compressed(model, bundles.sparsity_of(model), tmp_path) is not None
    ((_, codes),) = read_packed(tmp_path / PACKED)
    np.testing.assert_array_equal(codes, kernel)


def test_every_damaged_byte_that_matters_is_seen(tmp_path: Path) -> None:
    path = write(tmp_path)
    data, index = path.read_bytes(), packed_index(path)
    start = 16 + int.from_bytes(data[8:16], "little")
    (entry,) = index.tensors
    blocks = [start + entry.values, start + entry.values + 15, start + entry.metadata, start + entry.metadata + 3]
    for place in (0, 3, 9, 15, 20, *blocks):
        flipped = bytearray(data)
        flipped[place] ^= 0x15
        path.write_bytes(flipped)
        with pytest.raises(GpusqError):
            list(read_packed(path))


@pytest.mark.parametrize("kept", [0, 7, 16, 200, -64, -128])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(GpusqError) as caught:
        list(read_packed(path))
    assert str(path) in str(caught.value.place)


def rewritten(path: Path, **changes: Any) -> None:
    """The file with another index: what a hostile hand makes of it, its blocks as they are."""
    data = path.read_bytes()
    start = 16 + int.from_bytes(data[8:16], "little")
    index: dict[str, Any] = msgspec.json.decode(data[16:start])
    for name, value in changes.items():
        (index if name in index else index["tensors"][0])[name] = value
    if "copies" in changes:
        index["tensors"] *= changes["copies"]
        del index["tensors"][0]["copies"]
    text = msgspec.json.encode(index)
    text += b" " * (-(16 + len(text)) % 64)
    path.write_bytes(data[:8] + len(text).to_bytes(8, "little") + text + data[start:])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": [32], "order": "conv"}, "doesn't make"),
        ({"shape": [32]}, "doesn't make"),
        ({"shape": [8, 8]}, "doesn't make"),
        ({"shape": [2, 8, 3], "order": "conv"}, "doesn't make"),
        ({"values": 2**63 - 1}, "cut short"),
        ({"values": 2**63}, "cut short"),
        ({"metadata": 2**62}, "cut short"),
        ({"k": 2**60}, "cut short"),
        ({"k": 2**60, "n": 0}, "holds no values"),
        ({"n": 2**62, "k": 2**62}, "cut short"),
        ({"int8_bytes": 0}, "don't add up"),
        ({"packed_bytes": 0}, "don't add up"),
        ({"tensors": [], "int8_bytes": 0, "packed_bytes": 0, "float32_bytes": 0}, "don't add up"),
        ({"copies": 1000}, "don't add up"),
    ],
)
def test_an_index_that_lies_is_one_sentence(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = write(tmp_path)
    rewritten(path, **changes)
    with pytest.raises(GpusqError, match=said):
        packed_index(path)
    with pytest.raises(GpusqError, match=said) as caught:
        list(read_packed(path))
    assert str(path) in str(caught.value.place)
    assert "\n" not in caught.value.what


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GpusqError, match="cannot read"):
        list(read_packed(tmp_path / PACKED))
