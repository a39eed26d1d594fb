"""How much smaller a compressed model is, and how much less it computes: as GPUSQ-ViT counts, and all of it.

GPUSQ-ViT (arXiv 2305.10727) reports 6.4 times for 2:4 INT8 and 12.7 for 2:4 INT4. The first is 32 / (8 · 0.625), the
second, nearly, 32 / (4 · 0.625): bits of a float32 weight over those of a 2:4 one, of which half is kept, with 2 bits
of metadata for each value that is kept (0.625 of 8 bits; of 4 bits it would be 0.75). Weights of products alone count.
Its FLOPs, 31 and 62 times, have no definition that we found, so multiply-accumulates are counted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gpusq_deploy.artifacts import Value

_FLOAT_BITS = 32
_PUBLISHED_SHARE = 0.625
_METADATA_BITS = 1  # of each weight of a 2:4 row: 2 for each of the half that is kept
_SCALE_BITS = 32


class CountedLayer(NamedTuple):
    """A product's weight [N, K], its multiply-accumulates of one sample, its bits, and whether it is 2:4."""

    n: int
    k: int
    macs: int
    bits: int
    sparse: bool


class Counting(Value):
    """Ratios to the dense float32 model, and what they are of.

    Attributes:
        published: Times smaller as GPUSQ-ViT counts; 1 of a model without products.
        smaller: Times smaller, with metadata, scales and all other parameters.
        size: Bytes of that.
        float_size: Bytes of the dense model in float32.
        macs: Multiply-accumulates of products with weights, of one sample; 0 where unknown.
        left: Those that remain: a 2:4 layer computes half.
        quantized: Those of `left` that are of at most 8 bits.
    """

    published: float
    smaller: float
    size: int
    float_size: int
    macs: int
    left: int
    quantized: int


def count(layers: Sequence[CountedLayer], *, others: int, other_bits: int) -> Counting:
    """Count a model.

    Args:
        layers: Its products with weights.
        others: Number of its other parameters.
        other_bits: Bits of each.
    """
    weights = sum(layer.n * layer.k for layer in layers)
    published = sum(layer.n * layer.k * layer.bits * (_PUBLISHED_SHARE if layer.sparse else 1) for layer in layers)
    bits = sum(map(_bits, layers)) + others * other_bits
    float_size = (weights + others) * _FLOAT_BITS // 8
    left = [(layer.macs // 2 if layer.sparse else layer.macs, layer.bits) for layer in layers]
    return Counting(
        published=weights * _FLOAT_BITS / published if published else 1.0,
        smaller=float_size * 8 / bits if bits else 1.0,
        size=-(-bits // 8),
        float_size=float_size,
        macs=sum(layer.macs for layer in layers),
        left=sum(macs for macs, _ in left),
        quantized=sum(macs for macs, each in left if each <= 8),
    )


def _bits(layer: CountedLayer) -> int:
    weights = layer.n * layer.k
    scales = layer.n * _SCALE_BITS if layer.bits <= 8 else 0
    return (weights // 2 * layer.bits + weights * _METADATA_BITS if layer.sparse else weights * layer.bits) + scales


def counting_text(counting: Counting) -> str:
    """Both counts, and what they are of, in two lines."""
    whole = f"{_megabytes(counting.size)} of {_megabytes(counting.float_size)}"
    size = (
        f"{counting.published:.2f}x smaller as GPUSQ-ViT counts, 32 / (bits x 0.625 if 2:4) of the products' weights; "
        f"{counting.smaller:.2f}x with metadata and scales, {whole}"
    )
    if not counting.macs:
        return size
    work = (
        f"{counting.macs / max(counting.left, 1):.2f}x fewer multiply-accumulates in products with weights, "
        f"{counting.left / 1e9:.3g} of {counting.macs / 1e9:.3g} G a sample (2:4 does half), "
        f"{counting.quantized / max(counting.left, 1):.0%} of them of at most 8 bits"
    )
    return f"{size}\n{work}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB"
