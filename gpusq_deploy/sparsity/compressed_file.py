"""`weights.24`: a bundle's 2:4 INT8 weights, packed. Written from the model, and read back against it at once.

The magic `GPUSQ24` and a newline; the length of the index in 8 bytes, little-endian; the index (`CompressedIndex`) as
JSON, filled up with spaces so that the first block starts at a multiple of 64; then for each tensor its values and its
metadata (see gpusq_deploy.numerics.two_four_compressed), each at a multiple of 64 behind the first block.

`weights.dense`: the same weights dense, one after another in the order of the index; model.onnx refers to it. It can be
left out when a bundle travels: `unpack_dense` makes it again from `weights.24`, byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import (
    CompressedIndex,
    CompressedTensor,
    SparsityReport,
    digest_of_bytes,
    json_from_value,
    value_from_json,
    written_whole,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import GraphLayer, array_of, release, weighted_layers
from gpusq_deploy.numerics import CompressedMatrix, pack, rows_from_conv, unpack
from gpusq_deploy.progress import Reporter
from gpusq_deploy.text import counted

PACKED = "weights.24"
DENSE = "weights.dense"
_MAGIC = b"GPUSQ24\n"
_ALIGNED = 64
_BUILD_AGAIN = "build the bundle again"

Codes = npt.NDArray[np.int8]
Order = Literal["rows", "columns", "conv"]


class _Found(NamedTuple):
    layer: GraphLayer
    stored: Codes
    order: Order


def write_compressed(model: ir.Model, report: SparsityReport, folder: Path) -> CompressedIndex | None:
    """Pack every INT8 weight that the report calls valid into `folder/weights.24`, and check what was written.

    Args:
        model: The Q/DQ graph of the bundle.
        report: The 2:4 state of its weights, as `sparsity_kept` returns it.
        folder: A bundle that is being made.

    Returns:
        What is in the file with its sizes; None, and no file, where no weight is INT8 and 2:4.

    Raises:
        GpusqError: The disk gave back other bytes than it was given.
    """
    found = list(_sparse_weights(model, report))
    if not found:
        return None
    index = _index(found)
    path = folder / PACKED
    with path.open("wb") as stream:
        stream.write(_header(index))
        for item in found:
            matrix = pack(_rows(item.stored, item.order))
            _write_block(stream, matrix.values)
            _write_block(stream, matrix.metadata)
    for name, codes in read_packed(path):
        if not np.array_equal(codes, array_of(model.graph.initializers[name])):
            raise GpusqError("the packed weight differs from the model's", place=f"{path}, tensor {name}")
    return index


def move_compressed_weights(model: ir.Model, index: CompressedIndex, folder: Path) -> None:
    """Let the model refer to `folder/weights.dense` for every weight that is packed, in place, and write that file.

    Args:
        model: The graph that `write_compressed` packed. Save it in `folder` afterwards.
        index: What `write_compressed` returned.
        folder: Where `weights.24` lies.
    """
    unpack_dense(folder)
    start = 0
    for entry in index.tensors:
        value = model.graph.initializers[entry.tensor]
        held = array_of(value)
        value.const_value = ir.ExternalTensor(
            location=DENSE,
            offset=start,
            length=held.nbytes,
            dtype=ir.DataType.INT8,
            shape=ir.Shape(held.shape),
            name=entry.tensor,
            base_dir=folder,
        )
        start += held.nbytes


def lacks_dense(folder: Path) -> bool:
    """True for a bundle whose weights are there in packed form only."""
    return (folder / PACKED).is_file() and not (folder / DENSE).is_file()


def unpack_dense(folder: Path) -> int:
    """Write `weights.dense` from `weights.24`, whole or not at all.

    Returns:
        Number of weights.

    Raises:
        GpusqError: There is no packed file, it is damaged, or the disk refused.
    """
    path, count = folder / DENSE, 0
    try:
        with written_whole(path) as temporary, temporary.open("wb") as stream:
            for _, codes in read_packed(folder / PACKED):
                stream.write(codes.tobytes())
                count += 1
    except OSError as error:
        raise GpusqError(f"cannot write the dense weights: {error.strerror}", place=str(path)) from error
    return count


def require_dense(folder: Path) -> None:
    """Refuse a bundle whose weights are there in packed form only.

    Raises:
        GpusqError: Says how to unpack them.
    """
    if lacks_dense(folder):
        raise GpusqError(
            f"its weights are stored packed only: {DENSE} is missing",
            place=str(folder),
            hint=f"gpusq-build {folder} --unpack makes it again, bit for bit",
        )


def packed_faults(model: ir.Model, report: SparsityReport, folder: Path) -> Iterator[str]:
    """What is wrong with `folder/weights.24`, one sentence each: damage, and any difference from the model's weights.

    Args:
        model: The bundle's graph.
        report: The 2:4 state of its weights.
        folder: The bundle.
    """
    expected = {found.layer.weight: found for found in _sparse_weights(model, report)}
    try:
        for name, codes in read_packed(folder / PACKED):
            found = expected.pop(name, None)
            if found is None:
                yield f"{PACKED} holds {name}, which is no 2:4 INT8 weight of the model"
            elif not np.array_equal(codes, found.stored):
                yield f"{PACKED} holds other INT8 weights of {name} (layer {found.layer.layer}) than the model"
            if found is not None:
                release(model.graph.initializers[name])
    except GpusqError as error:
        yield f"{PACKED} can't be unpacked: {error.what} ({error.place})"
        return
    for found in expected.values():
        yield f"{PACKED} lacks {found.layer.weight} (layer {found.layer.layer})"


def packed_index(path: Path) -> CompressedIndex:
    """What a file of packed weights holds.

    Raises:
        GpusqError: Not such a file, or damaged.
    """
    with _opened(path) as stream:
        return _read_index(stream, path)[0]


def read_packed(path: Path) -> Iterator[tuple[str, Codes]]:
    """Unpack one weight after another: the initializer's name, and its codes in the initializer's shape.

    Raises:
        GpusqError: Not such a file, or damaged: every weight's digest is compared.
    """
    with _opened(path) as stream:
        index, start = _read_index(stream, path)
        for entry in index.tensors:
            place = f"{path}, tensor {entry.tensor}"
            groups = entry.k // 4
            values = _read_block(stream, start + entry.values, (entry.n, 2 * groups), place).view(np.int8)
            metadata = _read_block(stream, start + entry.metadata, (entry.n, -(-groups // 2)), place)
            try:
                codes = unpack(CompressedMatrix(n=entry.n, k=entry.k, values=values, metadata=metadata))
                stored = _stored(codes, entry)
            except ValueError as error:
                raise GpusqError(f"damaged: {error}", place=place, hint=_BUILD_AGAIN) from error
            if digest_of_bytes(stored.tobytes()) != entry.digest:
                raise GpusqError("damaged: its digest differs", place=place, hint=_BUILD_AGAIN)
            yield entry.tensor, stored


def compressed_line(index: CompressedIndex) -> str:
    """Sizes and ratios, in one line to print."""
    return (
        f"{counted(len(index.tensors), 'weight')} packed 2:4 in {index.packed_bytes} bytes: "
        f"{index.of_int8:.3f} of dense INT8, {index.times_smaller:.2f}x smaller than FP32"
    )


def _sparse_weights(model: ir.Model, report: SparsityReport) -> Iterator[_Found]:
    valid = {state.layer for state in report.layers if state.valid}
    seen: set[str] = set()
    for layer in weighted_layers(model):
        stored = array_of(model.graph.initializers[layer.weight])
        if layer.layer not in valid or stored.dtype != np.int8 or layer.weight in seen or not stored.size:
            continue
        seen.add(layer.weight)
        order: Order = "conv" if stored.ndim > 2 else "rows" if layer.channel_axis == 0 else "columns"
        yield _Found(layer, stored, order)


def _index(found: list[_Found]) -> CompressedIndex:
    tensors: list[CompressedTensor] = []
    place = total = 0
    for layer, stored, order in found:
        n, k = _rows(stored, order).shape
        sizes = _block_sizes(n, k)
        values, metadata = place, place + _padded(sizes[0])
        place = metadata + _padded(sizes[1])
        total += sum(sizes)
        tensors.append(
            CompressedTensor(
                layer=layer.layer,
                tensor=layer.weight,
                shape=stored.shape,
                order=order,
                n=n,
                k=k,
                values=values,
                metadata=metadata,
                digest=digest_of_bytes(stored.tobytes()),
            )
        )
    size = sum(item.stored.nbytes for item in found)
    return CompressedIndex(tensors=tuple(tensors), packed_bytes=total, int8_bytes=size, float32_bytes=4 * size)


def _rows(stored: Codes, order: Order) -> Codes:
    if order == "conv":
        return rows_from_conv(stored)
    return stored if order == "rows" else stored.T


def _stored(rows: Codes, entry: CompressedTensor) -> Codes:
    if entry.order == "conv":
        shape = (entry.shape[0], *entry.shape[2:], entry.shape[1])
        return np.ascontiguousarray(np.moveaxis(rows.reshape(shape), -1, 1))
    return np.ascontiguousarray((rows if entry.order == "rows" else rows.T).reshape(entry.shape))


def _header(index: CompressedIndex) -> bytes:
    text = json_from_value(index)
    text += b" " * (_padded(len(text) + 16) - len(text) - 16)
    return _MAGIC + len(text).to_bytes(8, "little") + text


def _read_index(stream: BinaryIO, path: Path) -> tuple[CompressedIndex, int]:
    """The index, and where the first block starts."""
    start, length = stream.read(16), path.stat().st_size
    size = int.from_bytes(start[8:], "little")
    if start[:8] != _MAGIC or size > length:
        raise GpusqError("not a file of packed weights, or damaged", place=str(path), hint=_BUILD_AGAIN)
    index = value_from_json(stream.read(size), CompressedIndex, place=str(path))
    for entry in index.tensors:
        wrong = _misfit(entry, length - 16 - size)
        if wrong:
            raise GpusqError(f"damaged: {wrong}", place=f"{path}, tensor {entry.tensor}", hint=_BUILD_AGAIN)
    blocks = sum(sum(_block_sizes(entry.n, entry.k)) for entry in index.tensors)
    codes = sum(entry.n * entry.k for entry in index.tensors)
    told = (index.packed_bytes, index.int8_bytes, index.float32_bytes)
    # Blocks that share bytes would unpack to more than the file can hold.
    if not codes or blocks > length or told != (blocks, codes, 4 * codes):
        raise GpusqError("damaged: its sizes don't add up", place=str(path), hint=_BUILD_AGAIN)
    return index, 16 + size


def _misfit(entry: CompressedTensor, length: int) -> str:
    """Why an entry can't be right, before a byte of it is read; empty where it may be. `length`: behind the header."""
    sizes = _block_sizes(entry.n, entry.k)
    if not all(sizes):
        return "it holds no values"
    for what, start, size in (("values", entry.values, sizes[0]), ("metadata", entry.metadata, sizes[1])):
        if start + size > length:
            return f"cut short: its {what} end {start + size - length} bytes behind the file"
    shape, (n, k) = entry.shape, (entry.n, entry.k)
    whole = {"rows": (n, k), "columns": (k, n)}.get(entry.order)
    conv = len(shape) > 2 and (shape[0] * math.prod(shape[2:]), shape[1]) == (n, k)
    if shape != whole and not (entry.order == "conv" and conv):
        return f"[{n}, {k}] in the order of {entry.order} doesn't make {list(shape)}"
    return ""


def _block_sizes(n: int, k: int) -> tuple[int, int]:
    """Bytes of the values and of the metadata of [N, K]."""
    return n * k // 2, n * -(-k // 8)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise GpusqError(
            f"cannot read the packed weights: {error.strerror}", place=str(path), hint=_BUILD_AGAIN
        ) from error


def _write_block(stream: BinaryIO, block: npt.NDArray[Any]) -> None:
    stream.write(block.tobytes())
    stream.write(bytes(_padded(block.nbytes) - block.nbytes))


def _read_block(stream: BinaryIO, start: int, shape: tuple[int, int], place: str) -> npt.NDArray[np.uint8]:
    size = shape[0] * shape[1]
    stream.seek(start)
    data = stream.read(size)
    if len(data) != size:
        raise GpusqError("damaged: cut short", place=place, hint=_BUILD_AGAIN)
    return np.frombuffer(data, np.uint8).reshape(shape)


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def compress_weights(built: ir.Model, kept: SparsityReport, folder: Path, reporter: Reporter) -> None:
    """Store every 2:4 INT8 weight packed, and let the graph refer to a file that can be made from that.

    Raises:
        GpusqError: There is no such weight.
    """
    index = write_compressed(built, kept, folder)
    if index is None:
        raise GpusqError(
            "nothing to pack: no INT8 weight of the model is 2:4",
            place="--pack",
            hint="leave out --pack, or name sparse INT8 layers in the recipe",
        )
    move_compressed_weights(built, index, folder)
    reporter.say(compressed_line(index))
