"""What the silicon can do, by torch: products dense and 2:4, in FP16 and INT8; and the names of kernels that ran.

Part of the GPU suite, which is a script: torch is imported here alone, late, and may be missing. Unverified on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from gpusq_deploy.benchmarks.gemm_cases import TOKENS
from gpusq_deploy.benchmarks.gpu_results import Outcome, Product

if TYPE_CHECKING:
    import torch

_WARMUP = 10
# A single small product ends before Python has launched the next: what is timed is a row of them.
LAUNCHES = 20
# Of torch's 2:4 product in INT8: both sizes of its dense operand are multiples of this.
_ROWS = 16
# So that sums of codes fit FP16: a power of two, which loses nothing.
_FP16_SCALE = 128
# Of the largest value in FP16; integers are exact.
_MOST_ERROR = {"fp16": 0.01, "int8": 0.0}
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
        Samples of one product, each the mean of `LAUNCHES` in a row, and the kernels; why not where it is wrong.

    Raises:
        RuntimeError: This torch or this GPU can't do it; NotImplementedError and ValueError mean the same.
    """
    import torch

    rows = batch * TOKENS
    run = prepared(k, n, rows, product, "cuda")
    error = error_of(run, *operands(k, n, rows, product, "cuda"), product)
    most = _MOST_ERROR[product[:4]]
    if not error <= most:
        return Outcome(error=error, why_not=f"not timed, for it is wrong: error {error:.3g}, at most {most:g}")
    for _ in range(_WARMUP):
        run()
    # Its constructor has no types.
    event: Any = torch.cuda.Event
    samples: list[float] = []
    for _ in range(iterations):
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        for _ in range(LAUNCHES):
            run()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / LAUNCHES)
    ran = kernels_of(run)
    return Outcome(samples_ms=tuple(samples), error=error, kernels=ran.names, kernels_us=ran.microseconds)


class Kernels(NamedTuple):
    """The kernels of one call: names, and how long each ran."""

    names: tuple[str, ...]
    microseconds: tuple[float, ...]


def kernels_of(run: Callable[[], Any]) -> Kernels:
    """The kernels that one call launches, by torch's profiler, which sees those of other libraries too."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    # An untyped list, or nothing where the profiler saw nothing.
    return kernels_among(list(cast("Any", seen.events()) or ()))


def kernels_among(events: Iterable[Any]) -> Kernels:
    """The kernels among a profiler's events: what ran on the GPU, but for copies to and from it and fills."""
    on_gpu = [event for event in events if str(event.device_type).endswith("CUDA")]
    kernels = [event for event in on_gpu if not str(event.name).startswith(_COPIES)]
    return Kernels(
        names=tuple(str(event.name) for event in kernels),
        microseconds=tuple(float(event.time_range.elapsed_us()) for event in kernels),
    )


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
    if "2:4" in product:
        w = w * torch.tensor([1, 1, 0, 0], dtype=torch.int8, device=device).repeat(k // 4)
    return (x.half() / _FP16_SCALE, w.half() / _FP16_SCALE) if product.startswith("fp16") else (x, w)


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
        out = torch.int32 if product == "int8 2:4" else None
        best = _searched(packed, columns, out)
        return lambda: ops._cslt_sparse_mm(packed, columns, out_dtype=out, **best).t()
    if product.startswith("fp16"):
        return lambda: torch.mm(x, w.t())
    return lambda: ops._int_mm(x, w.t())


def _searched(packed: torch.Tensor, columns: torch.Tensor, out: torch.dtype | None) -> dict[str, int]:
    """CuSPARSELt's fastest kernel for a product, as what `_cslt_sparse_mm` calls its parts."""
    import torch

    # Not exported, so no attribute; torch's public name for it is deprecated and keeps a part to itself.
    internals: Any = getattr(torch, "_C")  # noqa: B009 - as above
    found: tuple[int, ...] = internals._cusparselt.mm_search(packed, columns, None, None, out, False)
    return dict(zip(("alg_id", "split_k", "split_k_mode"), found[:3], strict=True))


def error_of(run: Callable[[], torch.Tensor], x: torch.Tensor, w: torch.Tensor, product: Product) -> float:
    """Largest difference of the first two rows from float64 on the CPU; for FP16 relative to the largest value."""
    wanted = x[:2].cpu().double() @ w.cpu().double().t()
    if product.endswith("to int8"):
        wanted = wanted.clamp(-128, 127)
    got = run()[:2].cpu().double()
    largest = float(wanted.abs().max()) if product.startswith("fp16") else 1.0
    return float((got - wanted).abs().max()) / largest
