"""Ratios against numbers by hand."""

from __future__ import annotations

import pytest

from gpusq_deploy.numerics.counting import CountedLayer, count


def layer(bits: int, *, sparse: bool, n: int = 64, k: int = 128, macs: int = 1000) -> CountedLayer:
    return CountedLayer(n, k, macs, bits, sparse)


def test_the_published_ratios() -> None:
    assert count([layer(8, sparse=True)] * 3, others=10**6, other_bits=32).published == 6.4
    # The paper prints 12.7 for what is 12.8.
    assert count([layer(4, sparse=True)], others=0, other_bits=32).published == 12.8
    assert count([layer(8, sparse=False)], others=0, other_bits=32).published == 4
    mixed = count([layer(8, sparse=True), layer(32, sparse=False, n=32)], others=0, other_bits=32)
    assert mixed.published == pytest.approx(1.5 / (1 / 6.4 + 0.5))
    assert count([], others=0, other_bits=32).published == 1


def test_all_of_a_model_counts_by_hand() -> None:
    found = count([layer(8, sparse=True), layer(4, sparse=True), layer(16, sparse=False)], others=100, other_bits=16)
    # 8,192 weights each: 4 + 1 bits and 2 + 1 bits a weight, and 64 scales of 32 bits.
    bits = (8192 * 5 + 64 * 32) + (8192 * 3 + 64 * 32) + 8192 * 16 + 100 * 16
    assert found.size == bits // 8
    assert found.float_size == 4 * (3 * 8192 + 100)
    assert found.smaller == pytest.approx(found.float_size * 8 / bits)
    assert (found.macs, found.left, found.quantized) == (3000, 2000, 1000)
