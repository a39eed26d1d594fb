"""The index of a file of packed weights."""

from __future__ import annotations

from typing import Literal

from gpusq_deploy.artifacts.base import Value


class CompressedTensor(Value):
    """One weight: its shape and order in the ONNX graph, and where its two blocks lie behind the header.

    Attributes:
        layer: Name of the layer.
        tensor: Name of the initializer.
        shape: The initializer's shape.
        order: How rows [N, K] come from it: as they are, transposed ([K, N]), or channels last (a Conv).
        n: Rows; k: length of the contracted axis.
        values: First byte of the values, counted from the first block; metadata: of the metadata.
        digest: Of the initializer's bytes.
    """

    layer: str
    tensor: str
    shape: tuple[int, ...]
    order: Literal["rows", "columns", "conv"]
    n: int
    k: int
    values: int
    metadata: int
    digest: str

    def __post_init__(self) -> None:
        if min(self.n, self.k, self.values, self.metadata, *self.shape) < 0 or self.k % 4:
            raise ValueError("sizes must not be negative, and k a multiple of 4")


class CompressedIndex(Value):
    """Everything in the file, and its sizes: packed, as dense INT8, and as float32."""

    schema: Literal["gpusq.packed/1"] = "gpusq.packed/1"
    tensors: tuple[CompressedTensor, ...]
    packed_bytes: int
    int8_bytes: int
    float32_bytes: int

    @property
    def of_int8(self) -> float:
        """Packed size over that of dense INT8: 0.625 where K is a multiple of 8."""
        return self.packed_bytes / self.int8_bytes

    @property
    def times_smaller(self) -> float:
        """Size as float32 over the packed size: 6.4 where K is a multiple of 8."""
        return self.float32_bytes / self.packed_bytes
