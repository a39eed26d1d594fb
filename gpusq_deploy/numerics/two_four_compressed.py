"""2:4 INT8 weights in the form that sparse tensor cores read: the two kept codes of each group, and where they stood.

    values   [N, K/2]           int8: of each group of four, two codes in the order of their places
    metadata [N, ceil(K/8)]     uint8: two groups a byte, low nibble first; in a nibble the first place in bits 0-1,
                                the second in bits 2-3; an odd last nibble is 0

1/2 + 1/8 = 0.625 of dense INT8, 0.156 of float32: 6.4 times smaller. A group with fewer than two non-zeros keeps
explicit zeros, those that come first, so equal weights give equal bytes.

Source of the form: Mishra et al., arXiv 2104.08378, figure 2. Vendors' kernels permute it further; this is storage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpusq_deploy.numerics.two_four import GROUP, KEPT

Int8 = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedMatrix:
    """A 2:4 matrix [N, K]; see the module."""

    n: int
    k: int
    values: Int8
    metadata: Bytes

    @property
    def nbytes(self) -> int:
        """Bytes of values and metadata."""
        return self.values.nbytes + self.metadata.nbytes


def pack(codes: Int8) -> CompressedMatrix:
    """Pack a 2:4 matrix; `unpack` gives the same bits back.

    Args:
        codes: [N, K] int8, K a multiple of 4, at most two non-zeros in every group.

    Raises:
        ValueError: It is none of that.
    """
    if codes.dtype != np.int8 or codes.ndim != 2 or codes.shape[1] % GROUP:
        raise ValueError(f"packing needs int8 [N, K] with K a multiple of 4, not {codes.dtype} {list(codes.shape)}")
    n, k = codes.shape
    grouped = codes.reshape(n, k // GROUP, GROUP)
    patterns = np.packbits(grouped != 0, axis=2, bitorder="little")[..., 0]
    nibbles = _NIBBLES[patterns]
    if (nibbles == _BROKEN).any():
        row, group = np.argwhere(nibbles == _BROKEN)[0]
        raise ValueError(f"not 2:4: row {row}, columns {GROUP * group} to {GROUP * group + GROUP - 1}")
    values = np.take_along_axis(grouped, _PLACES[nibbles], axis=2).reshape(n, k // GROUP * KEPT)
    metadata = np.zeros((n, -(-nibbles.shape[1] // 2)), np.uint8)
    metadata |= nibbles[:, 0::2]
    metadata[:, : nibbles.shape[1] // 2] |= nibbles[:, 1::2] << np.uint8(4)
    return CompressedMatrix(n=n, k=k, values=values, metadata=metadata)


def unpack(packed: CompressedMatrix) -> Int8:
    """The matrix [N, K] that was packed.

    Raises:
        ValueError: Sizes that don't fit, or metadata that `pack` doesn't write.
    """
    n, k = packed.n, packed.k
    groups = k // GROUP
    if k % GROUP or packed.values.shape != (n, groups * KEPT) or packed.metadata.shape != (n, -(-groups // 2)):
        raise ValueError(f"values {packed.values.shape} and metadata {packed.metadata.shape} don't make [{n}, {k}]")
    halves = (packed.metadata & np.uint8(15), packed.metadata >> np.uint8(4))
    every = np.stack(halves, axis=2).reshape(n, 2 * packed.metadata.shape[1])
    nibbles, padding = every[:, :groups], every[:, groups:]
    if not _IS_WRITTEN[nibbles].all() or padding.any():
        raise ValueError("metadata that no packing writes")
    codes = np.zeros((n, groups, GROUP), np.int8)
    np.put_along_axis(codes, _PLACES[nibbles], packed.values.reshape(n, groups, KEPT), axis=2)
    return codes.reshape(n, k)


_BROKEN = 255


def _nibbles() -> Bytes:
    """Metadata by pattern of non-zeros, a bit for each place."""
    table = np.full(16, _BROKEN, np.uint8)
    for pattern in range(16):
        filled = [place for place in range(GROUP) if pattern >> place & 1]
        empty = [place for place in range(GROUP) if place not in filled]
        if len(filled) <= KEPT:
            first, second = sorted((filled + empty)[:KEPT])
            table[pattern] = first | second << 2
    return table


_NIBBLES = _nibbles()
_PLACES = np.array([[nibble & 3, nibble >> 2] for nibble in range(16)], np.intp)
_IS_WRITTEN = np.isin(np.arange(16), _NIBBLES)
