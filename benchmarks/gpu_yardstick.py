"""What the silicon can do, by torch: products dense and 2:4, in FP16 and INT8; and the names of kernels that ran.

Part of the GPU suite, which is a script: torch is imported here alone, late, and may be missing. Unverified on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from gpusq_deploy.benchmarks.gemm_cases import TOKENS
from gpusq_deploy.benchmarks.gpu_results import Outcome, Product

if TYPE_CHECKING:
    import torch

_WARMUP = 10
# Of torch's 2:4 product in INT8: both sizes of its dense operand are multiples of this.
_ROWS = 16
# As torch's profiler names what CUDA moves without a kernel: "Memcpy HtoD (Pageable -> Device)", "Memset (Device)".
_COPIES = ("Memcpy", "Memset")


def torch_problem() -> str:
    """Why torch can't be the yardstick here; empty where it can."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU"
    return ""


def measure_product(k: int, n: int, batch: int, product: Product, iterations: int) -> Outcome:
    """Time x [batch · tokens, K] by w [N, K], 2:4 along K where asked; see `operands`.

    Returns:
        The samples and kernel names; the reason where this torch or GPU can't do it.
    """
    import torch

    try:
        run = prepared(k, n, batch * TOKENS, product, "cuda")
        for _ in range(_WARMUP):
            run()
        # Its constructor has no types.
        event: Any = torch.cuda.Event
        samples: list[float] = []
        for _ in range(iterations):
            start, end = event(enable_timing=True), event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end))
        return Outcome(samples_ms=tuple(samples), kernels=kernels_of(run))
    # What a library lacks for a type or a GPU shows as one of these.
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return Outcome(why_not=f"torch: {' '.join(str(error).split())[:200]}")


def kernels_of(run: Callable[[], Any]) -> tuple[str, ...]:
    """Names of the kernels that one call launches, by torch's profiler, which sees those of other libraries too."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    # An untyped list, or nothing where the profiler saw nothing.
    return kernel_names(list(cast("Any", seen.events()) or ()))


def kernel_names(events: Iterable[Any]) -> tuple[str, ...]:
    """The kernels among a profiler's events: what ran on the GPU, but for copies to and from it and fills."""
    names = (str(event.name) for event in events if str(event.device_type).endswith("CUDA"))
    return tuple(name for name in names if not name.startswith(_COPIES))


def operands(k: int, n: int, rows: int, product: Product, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What is multiplied: x [rows, K] and w [N, K], of FP16 or INT8, w 2:4 along K where asked.

    The rows are filled up to a multiple of 16, in every product so that they compare: torch's 2:4 product in INT8 pads
    another operand by a copy, which lies row by row. Unverified on a GPU.
    """
    import torch

    generator = torch.Generator(device=device).manual_seed(0)

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(-127, 128, shape, dtype=torch.int8, device=device, generator=generator)

    x, w = codes(rows + -rows % _ROWS, k), codes(n, k)
    if product.endswith("2:4"):
        w = w * torch.tensor([1, 1, 0, 0], dtype=torch.int8, device=device).repeat(k // 4)
    return (x.half(), w.half()) if product.startswith("fp16") else (x, w)


def prepared(k: int, n: int, rows: int, product: Product, device: str) -> Callable[[], Any]:
    """The product as a function of nothing: what is timed. Operands are made and packed before."""
    import torch
    from torch.sparse import to_sparse_semi_structured

    x, w = operands(k, n, rows, product, device)
    if product.endswith("2:4"):
        # As a view, column by column: cuSPARSELt refuses an INT8 operand that lies row by row, so no contiguous().
        packed, columns = to_sparse_semi_structured(w), x.t()
        return lambda: torch.mm(packed, columns)
    if product.startswith("fp16"):
        return lambda: torch.mm(x, w.t())
    # torch has no public name for a product of INT8 with INT32 sums.
    int_mm: Callable[..., torch.Tensor] = getattr(torch, "_int_mm")  # noqa: B009 - not exported, so no attribute
    return lambda: int_mm(x, w.t())
