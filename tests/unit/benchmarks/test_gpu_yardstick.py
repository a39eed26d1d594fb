"""The yardstick's operands, on the CPU: the products themselves need a GPU."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from gpusq_deploy.benchmarks.gpu_results import Product
from gpusq_deploy.benchmarks.gpu_yardstick import operands, prepared

K, N = 64, 48


@pytest.mark.parametrize("product", get_args(Product))
@pytest.mark.parametrize(("rows", "filled"), [(197, 208), (208, 208), (1, 16)])
def test_operands_have_the_sizes_and_the_zeros_that_torch_asks_for(product: Product, rows: int, filled: int) -> None:
    x, w = operands(K, N, rows, product, "cpu")
    assert (tuple(x.shape), tuple(w.shape)) == ((filled, K), (N, K))
    assert x.dtype == w.dtype == (torch.float16 if product.startswith("fp16") else torch.int8)
    most = int((w.reshape(N, K // 4, 4) != 0).sum(dim=2).max())
    assert most == (2 if product.endswith("2:4") else 4)


@pytest.mark.parametrize("product", ["fp16 2:4", "int8 2:4"])
def test_the_dense_operand_of_a_sparse_product_lies_column_by_column(
    product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuSPARSELt refuses an INT8 operand that lies row by row, and torch's padding would copy it so."""
    seen: list[torch.Tensor] = []

    def same(weight: torch.Tensor) -> torch.Tensor:
        return weight

    def multiply(_packed: torch.Tensor, dense: torch.Tensor) -> None:
        seen.append(dense)

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", same)
    monkeypatch.setattr(torch, "mm", multiply)
    prepared(K, N, 197, product, "cpu")()
    (dense,) = seen
    assert (tuple(dense.shape), dense.stride()) == ((K, 208), (1, K))


@pytest.mark.parametrize("product", ["fp16 dense", "int8 dense"])
def test_dense_products_multiply_the_same_codes(product: Product) -> None:
    x, w = operands(K, N, 197, product, "cpu")
    wanted = x.long() @ w.long().t()
    got = prepared(K, N, 197, product, "cpu")()
    assert got.dtype == (torch.int32 if product == "int8 dense" else torch.float16)
    if product == "int8 dense":
        assert torch.equal(got.long(), wanted)
    else:
        near = wanted.abs() < 60000
        torch.testing.assert_close(got.double()[near], wanted.double()[near], rtol=2e-3, atol=64)
