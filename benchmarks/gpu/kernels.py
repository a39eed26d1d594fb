"""The kernels that ran, by torch's profiler, which sees those of other libraries too. torch is imported late."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

# As torch's profiler names what CUDA moves without a kernel: "Memcpy HtoD (Pageable -> Device)", "Memset (Device)".
_COPIES = ("Memcpy", "Memset")


def torch_problem() -> str:
    """Why torch can't look here; empty where it can."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU"
    return ""


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
