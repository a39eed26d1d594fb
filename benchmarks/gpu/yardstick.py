"""Step 4: what the silicon can do, by torch: products dense and 2:4, in FP16, INT8 and FP8. torch is imported late."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from gpusq_deploy.benchmarks.gpu.cases import TOKENS, all_cases
from gpusq_deploy.benchmarks.gpu.kernels import torch_problem
from gpusq_deploy.benchmarks.gpu.runs import ITERATIONS, WARMUP, Ground, refused, with_facts, with_kernels
from gpusq_deploy.benchmarks.gpu.values import Finding

if TYPE_CHECKING:
    import torch

# INT8 products write INT32, as torch's dense one does; "to int8" writes INT8, as TensorRT's sparse kernels do. FP8
# products write FP16.
Product = Literal["fp16 dense", "fp16 2:4", "int8 dense", "int8 2:4", "int8 2:4 to int8", "fp8 dense", "fp8 2:4"]

# A single small product ends before Python has launched the next: what is timed is a row of them.
LAUNCHES = 20
# Of torch's 2:4 product in INT8: both sizes of its dense operand are multiples of this.
_ROWS = 16
# So that sums of codes fit FP16: a power of two, which loses nothing.
_FP16_SCALE = 128
# Of the largest value in FP16, into which FP8 products are written too; integers are exact.
# The fast accumulation of Hopper's FP8 keeps about 14 bits.
_MOST_ERROR = {"fp16": 0.01, "fp8 ": 0.05, "int8": 0.0}


def items(_ground: Ground) -> tuple[str, ...]:
    """Every product of the cases' shapes: the largest batch of ViT-B first, where a kernel has most to do."""
    cases = sorted(all_cases(), key=lambda case: (case.batch != 32, case.model != "ViT-B"))
    shapes = dict.fromkeys((case.n, case.k, case.batch) for case in cases)
    return tuple(
        f"{n}x{k} b{batch} {product}" for (n, k, batch), product in itertools.product(shapes, get_args(Product))
    )


def run(item: str, _ground: Ground) -> Iterator[Finding]:
    """One product's finding."""
    finding = Finding(step="torch", name=item)
    reason = torch_problem()
    sizes, batch, product = item.split(" ", 2)
    n, k = (int(size) for size in sizes.split("x"))
    known = next(name for name in get_args(Product) if name == product)
    yield refused(finding, reason) if reason else measure_product(k, n, int(batch[1:]), known, finding)


def measure_product(k: int, n: int, batch: int, product: Product, finding: Finding) -> Finding:
    """Time x [batch · tokens, K] by w [N, K], 2:4 along K where asked; see `operands`.

    Returns:
        The finding with samples of one product, each the mean of `LAUNCHES` in a row, and the kernels; why not where it
        is wrong.

    Raises:
        RuntimeError: This torch or this GPU can't do it; NotImplementedError and ValueError mean the same.
    """
    import torch

    rows = batch * TOKENS
    once = prepared(k, n, rows, product, "cuda")
    error = error_of(once, *operands(k, n, rows, product, "cuda"), product)
    finding = with_facts(finding, error=error, flops=2 * rows * n * k)
    most = _MOST_ERROR[product[:4]]
    if not error <= most:
        finding = refused(finding, f"its outputs are wrong: error {error:.3g}, at most {most:g}")
    for _ in range(WARMUP):
        once()
    # Its constructor has no types.
    event: Any = torch.cuda.Event
    samples: list[float] = []
    for _ in range(ITERATIONS):
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        for _ in range(LAUNCHES):
            once()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / LAUNCHES)
    return with_kernels(msgspec.structs.replace(finding, samples_ms=tuple(samples)), once)


def operands(k: int, n: int, rows: int, product: Product, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What is multiplied: x [rows, K] and w [N, K], of FP16, INT8 or FP8 (E4M3), w 2:4 along K where asked.

    The rows are filled up to a multiple of 16, in every product so that they compare: torch's 2:4 product in INT8 pads
    another operand by a copy, which lies row by row. Unverified on a GPU.
    """
    import torch

    generator = torch.Generator(device=device).manual_seed(0)

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(-127, 128, shape, dtype=torch.int8, device=device, generator=generator)

    x, w = codes(rows + -rows % _ROWS, k), codes(n, k)
    if "2:4" in product:
        w = w * torch.tensor([1, 1, 0, 0], dtype=torch.int8, device=device).repeat(k // 4)
    if product.startswith("int8"):
        return x, w
    kind = torch.float16 if product.startswith("fp16") else torch.float8_e4m3fn
    return (x.half() / _FP16_SCALE).to(kind), (w.half() / _FP16_SCALE).to(kind)


def prepared(k: int, n: int, rows: int, product: Product, device: str) -> Callable[[], torch.Tensor]:
    """The product x w^T as a function of nothing: operands are made and packed, and its kernel is searched for."""
    import torch

    x, w = operands(k, n, rows, product, device)
    # torch's public names take neither the output's type nor a kernel of cuSPARSELt, and have no INT8 product.
    ops: Any = torch.ops.aten
    if "2:4" in product:
        # As a view, column by column: cuSPARSELt refuses an INT8 operand that lies row by row, so no contiguous().
        packed, columns = ops._cslt_compress(w), x.t()
        # The operands' own type is what nothing means, and torch refuses it by its name.
        out = {"int8 2:4": torch.int32, "fp8 2:4": torch.float16}.get(product)
        best = _searched(packed, columns, out)
        return lambda: ops._cslt_sparse_mm(packed, columns, out_dtype=out, **best).t()
    if product.startswith("fp16"):
        return lambda: torch.mm(x, w.t())
    if product.startswith("fp8"):
        one = torch.ones((), device=device)
        return lambda: ops._scaled_mm(x, w.t(), one, one, out_dtype=torch.float16, use_fast_accum=True)
    return lambda: ops._int_mm(x, w.t())


def _searched(packed: torch.Tensor, columns: torch.Tensor, out: torch.dtype | None) -> dict[str, int]:
    """CuSPARSELt's fastest kernel for a product, as what `_cslt_sparse_mm` calls its parts; of some, one alone."""
    import torch

    # Not exported, so no attribute; torch's public name for it is deprecated and keeps a part to itself.
    internals: Any = getattr(torch, "_C")  # noqa: B009 - as above
    search = getattr(getattr(internals, "_cusparselt", None), "mm_search", None)
    if search is None:
        ops: Any = torch.ops.aten
        return {"alg_id": ops._cslt_sparse_mm_search(packed, columns, out_dtype=out)}
    found: tuple[int, ...] = search(packed, columns, None, None, out, False)
    return dict(zip(("alg_id", "split_k", "split_k_mode"), found[:3], strict=True))


def error_of(run: Callable[[], torch.Tensor], x: torch.Tensor, w: torch.Tensor, product: Product) -> float:
    """Largest difference of the first two rows from float64 on the CPU; for floats relative to the largest value."""
    wanted = x[:2].double().cpu() @ w.double().cpu().t()
    if product.endswith("to int8"):
        wanted = wanted.clamp(-128, 127)
    got = run()[:2].cpu().double()
    largest = float(wanted.abs().max()) if product.startswith("fp") else 1.0
    return float((got - wanted).abs().max()) / largest
