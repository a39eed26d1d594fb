"""The yardstick's operands, on the CPU: the products themselves need a GPU."""

from __future__ import annotations

import types
from typing import get_args

import pytest
import torch

from gpusq_deploy.benchmarks.gpu.yardstick import Product, error_of, operands, prepared

K, N = 64, 48


@pytest.mark.parametrize("product", get_args(Product))
@pytest.mark.parametrize(("rows", "filled"), [(197, 208), (208, 208), (1, 16)])
def test_operands_have_the_sizes_and_the_zeros_that_torch_asks_for(product: Product, rows: int, filled: int) -> None:
    x, w = operands(K, N, rows, product, "cpu")
    assert (tuple(x.shape), tuple(w.shape)) == ((filled, K), (N, K))
    kinds = {"fp16": torch.float16, "int8": torch.int8, "fp8 ": torch.float8_e4m3fn}
    assert x.dtype == w.dtype == kinds[product[:4]]
    most = int((w.float().reshape(N, K // 4, 4) != 0).sum(dim=2).max())
    assert most == (2 if "2:4" in product else 4)


SPARSE: tuple[Product, ...] = ("fp16 2:4", "int8 2:4", "int8 2:4 to int8", "fp8 2:4")


class Lt:
    """torch's operators with a pretended cuSPARSELt that multiplies on the CPU; it insists on its layout and kernel."""

    _int_mm = staticmethod(torch.ops.aten._int_mm)
    _scaled_mm = staticmethod(torch.ops.aten._scaled_mm)

    def __init__(self, wrong: float = 0.0) -> None:
        self.wrong = wrong

    def _cslt_compress(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def mm_search(
        self,
        packed: torch.Tensor,
        dense: torch.Tensor,
        bias: None,
        alpha: None,
        out_dtype: torch.dtype | None,
        transpose_result: bool,
    ) -> tuple[int, int, int, int]:
        require_output(packed, dense, out_dtype)
        assert (bias, alpha, transpose_result) == (None, None, False)
        return 3, 2, 1, 40

    def _cslt_sparse_mm(
        self,
        packed: torch.Tensor,
        dense: torch.Tensor,
        *,
        out_dtype: torch.dtype | None,
        alg_id: int,
        split_k: int,
        split_k_mode: int,
    ) -> torch.Tensor:
        require_output(packed, dense, out_dtype)
        # cuSPARSELt refuses an INT8 operand that lies row by row, and torch's padding would copy it so.
        assert (tuple(dense.shape), dense.stride()) == ((K, 208), (1, K))
        assert (alg_id, split_k, split_k_mode) == (3, 2, 1)
        exact = packed.double() @ dense.double() + self.wrong
        kind = out_dtype or packed.dtype
        return exact.clamp(-128, 127).to(kind) if kind == torch.int8 else exact.to(kind)


def require_output(packed: torch.Tensor, dense: torch.Tensor, out_dtype: torch.dtype | None) -> None:
    """As torch has it: another type than the operands' for INT8 alone, and of these three."""
    assert packed.dtype == dense.dtype
    if out_dtype is not None:
        supported = {torch.int8, torch.float8_e4m3fn}
        assert packed.dtype in supported, "out_dtype support only available for int8/fp8 inputs"
        assert out_dtype in {torch.float16, torch.bfloat16, torch.int32}


@pytest.mark.parametrize("product", get_args(Product))
@pytest.mark.parametrize("wrong", [0.0, 300.0])
def test_products_are_held_against_float64(product: Product, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    lt = Lt(wrong)
    monkeypatch.setattr(torch, "ops", types.SimpleNamespace(aten=lt))
    monkeypatch.setattr("torch._C._cusparselt", lt, raising=False)
    run = prepared(K, N, 197, product, "cpu")
    x, w = operands(K, N, 197, product, "cpu")
    result = run()
    assert tuple(result.shape) == (208, N)
    kinds = {"fp16": torch.float16, "int8": torch.int32, "fp8 ": torch.float16}
    assert result.dtype == (torch.int8 if product.endswith("to int8") else kinds[product[:4]])
    error = error_of(run, x, w, product)
    if wrong and product in SPARSE:
        assert error > 1
    elif product.startswith("fp"):
        assert error < 0.01
    else:
        assert error == 0


@pytest.mark.parametrize("product", ["fp16 dense", "int8 dense"])
def test_dense_products_multiply_the_same_codes(product: Product) -> None:
    x, w = operands(K, N, 197, product, "cpu")
    codes = operands(K, N, 197, "int8 dense", "cpu")
    scale = 128 if product == "fp16 dense" else 1
    assert all(torch.equal((own * scale).long(), code.long()) for own, code in zip((x, w), codes, strict=True))
    wanted = codes[0].long() @ codes[1].long().t()
    got = prepared(K, N, 197, product, "cpu")()
    torch.testing.assert_close(got.double() * scale**2, wanted.double(), rtol=2e-3, atol=0.05 * scale**2 * (scale > 1))
