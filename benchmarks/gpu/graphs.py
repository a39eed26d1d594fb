"""Graphs that travel without their weights: those are random anyway, and drawn again from a seed where they are needed.

A speed doesn't depend on what a weight is, but for its zeros; whether outputs are right is told by ONNX Runtime on the
same graph. So a graph of 170 MB travels as one of a few hundred kB.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gpusq_deploy.artifacts.base import Value, json_from_value, read_value
from gpusq_deploy.graph.files import load_model, save_model
from gpusq_deploy.graph.values import array_of
from gpusq_deploy.numerics.two_four import magnitude_mask

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "DequantizeLinear"})
_LEAST_BYTES = 16384
_LARGEST = 127
_DTYPES: dict[str, Any] = {
    "INT8": np.int8,
    "FLOAT16": np.float16,
    "FLOAT": np.float32,
    "BFLOAT16": ml_dtypes.bfloat16,
    "FLOAT8E4M3FN": ml_dtypes.float8_e4m3fn,
}


class Left(Value):
    """A weight that was left out.

    Attributes:
        name: The initializer's.
        dtype: ONNX's name of its type.
        shape: Its shape.
        rms: Root of the mean of its squares, zeros included.
        axis: The axis along which it was 2:4; None where it wasn't.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rms: float
    axis: int | None


class Variant(Value):
    """A model in one precision.

    Attributes:
        name: Such as `ViT-B 2:4 INT8`.
        graph: The graph's file, without its ending; variants may share one.
        dense: Whether weights that were 2:4 are drawn without zeros.
        predicted_us: Microseconds by the kernels' bytes and FLOPs and the GPU's peak rates, by batch size.
        kernels: Kernels that TensorRT-RTX lists for SM80, by batch size.
    """

    name: str
    graph: str
    dense: bool = False
    predicted_us: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    kernels: dict[str, int] = msgspec.field(default_factory=dict[str, int])

    @property
    def file(self) -> str:
        """The name as a file's."""
        return self.name.replace(" ", "-").replace(":", "")


class Graph(Value):
    """What a graph lacks."""

    left: tuple[Left, ...]


class Variants(Value):
    """Everything that a kit holds, what tells most first; and what it was to hold, with why it doesn't."""

    variants: tuple[Variant, ...] = ()
    left_out: dict[str, str] = msgspec.field(default_factory=dict[str, str])


def variants_of(kit: Path) -> Variants:
    """The models and precisions of a kit; none where it was made without."""
    index = kit / "graphs" / "index.json"
    return read_value(index, Variants) if index.exists() else Variants()


def leave_out(model: Path, graph: Path) -> None:
    """Save a model without its large weights, and beside it, as .json, what they were."""
    loaded, left = load_model(model), list[Left]()
    for value in loaded.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < _LEAST_BYTES or not _is_weight(value):
            continue
        array = array_of(value)
        rms = float(np.sqrt(np.mean(np.square(array.astype(np.float64)))))
        kind = tensor.dtype.name
        left.append(Left(name=value.name or "", dtype=kind, shape=tuple(array.shape), rms=rms, axis=sparse_axis(array)))
        value.const_value = ir.tensor(np.zeros(1, array.dtype), name=value.name)
    save_model(loaded, graph)
    graph.with_suffix(".json").write_bytes(json_from_value(Graph(left=tuple(left))))


def fill(kit: Path, variant: Variant, out: Path) -> None:
    """Write a variant's model, its weights drawn again; equal kits give equal models.

    Raises:
        GpusqError: The kit lacks the graph.
    """
    graph = kit / "graphs" / f"{variant.graph}.onnx"
    model = load_model(graph)
    for left in read_value(graph.with_suffix(".json"), Graph).left:
        value = model.graph.initializers[left.name]
        value.const_value = ir.tensor(drawn(left, dense=variant.dense), name=left.name)
        value.shape = ir.Shape(left.shape)
    save_model(model, out)


def drawn(left: Left, *, dense: bool) -> NDArray[Any]:
    """Normally distributed values of a weight's own shape, type and size; 2:4 where it was, unless `dense`."""
    random = np.random.default_rng(zlib.crc32(left.name.encode()))
    values = random.standard_normal(left.shape, dtype=np.float32)
    if left.axis is not None and not dense:
        rows = np.moveaxis(values, left.axis, -1)
        kept = magnitude_mask(rows.reshape(-1, rows.shape[-1])).reshape(rows.shape)
        values = np.where(np.moveaxis(kept, -1, left.axis), values, np.float32(0))
    values *= left.rms / float(np.sqrt(np.mean(np.square(values))))
    if left.dtype == "INT8":
        values = np.clip(np.rint(values), -_LARGEST, _LARGEST)
    return np.ascontiguousarray(values).astype(_DTYPES[left.dtype])


def sparse_axis(array: NDArray[Any]) -> int | None:
    """The axis along which every group of four has at most two values that aren't zero, the first such; else None."""
    for axis in range(min(array.ndim, 2)):
        rows = np.moveaxis(array != 0, axis, -1)
        if rows.shape[-1] % 4 == 0 and rows.reshape(-1, 4).sum(axis=1).max() <= 2:
            return axis
    return None


def _is_weight(value: ir.Value) -> bool:
    """Whether products alone read it, perhaps behind a dequantiser: of other constants, what they hold matters."""
    shape = value.shape
    return shape is not None and len(shape) >= 2 and all(node.op_type in _PRODUCTS for node, _ in value.uses())
