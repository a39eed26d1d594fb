"""What is known of an engine's kernels one by one: their work at the optimal batch, and the time predicted of it."""

from __future__ import annotations

from collections.abc import Mapping

from gpusq_deploy.artifacts import BuiltEngine, KernelWork
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.engines import (
    Device,
    kernel_works,
    kernels_of,
    load_devices,
    load_fitted,
    predicted_microseconds,
    works_by_kernel,
)
from gpusq_deploy.errors import GpusqError


def kernel_works_of(bundle: Bundle, engine: BuiltEngine) -> tuple[dict[str, KernelWork], str]:
    """The work of an engine's kernels by their names, and why that isn't known of all of them; empty where it is.

    Args:
        bundle: It is in; its receipt has the work where a dynamic batch hides sizes.
        engine: Itself.
    """
    works, unknown = all_works(bundle, engine)
    if unknown:
        return {}, unknown
    kernels = kernels_of(engine.engine_layers)
    found = works_by_kernel(kernels, works)
    lost = len(kernels) - len(found)
    return found, f"{lost} of {len(kernels)} kernels aren't in the engine of the optimal batch alone" if lost else ""


def all_works(bundle: Bundle, engine: BuiltEngine) -> tuple[tuple[KernelWork, ...], str]:
    """The work of an engine's kernels at the optimal batch alone, where they may be others; and why it isn't known."""
    kernels = kernels_of(engine.engine_layers)
    if not kernels:
        return (), "the receipt lists no kernel"
    if not bundle.manifest.batch.static:
        lost = "the batch is dynamic, and the receipt doesn't hold its kernels' sizes: build again with tensorrt-rtx"
        return bundle.receipt.works, "" if bundle.receipt.works else lost
    try:
        return kernel_works(kernels), ""
    except GpusqError as error:
        return (), error.what


def device_of(engine: BuiltEngine) -> Device | None:
    """The first device to predict for that an engine's target has; None where it has none."""
    return next((device for device in load_devices() if device.target == engine.target), None)


def predicted_kernel_times(engine: BuiltEngine, works: Mapping[str, KernelWork]) -> dict[str, float]:
    """Microseconds that each kernel is predicted to take, of those that can be: see docs/predict.md."""
    device = device_of(engine)
    return {} if device is None else predicted_microseconds(works, device, load_fitted())
