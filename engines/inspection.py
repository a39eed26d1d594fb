"""What an engine says of its own layers, through the inspector. Unverified: reading an engine back needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from gpusq_deploy.engines.api import Api, io_names, sizes_of
from gpusq_deploy.engines.refit import refit_engine

if TYPE_CHECKING:
    import tensorrt as trt

_T = TypeVar("_T")


class Made(Protocol):
    """Returns what a step made; raises with TensorRT's own words where that is nothing."""

    def __call__(self, thing: _T | None, step: str, /) -> _T:
        """Return `thing`, or raise."""
        ...


def inspect_plan(
    engine_bytes: bytes, api: Api, logger: trt.ILogger, made: Made, *, stripped: Path | None, host_code: bool
) -> str:
    """The inspector's JSON of all layers, at the best sizes of the first optimisation profile.

    An inspector without an execution context shows neither the sizes nor the types of what depends on a dynamic batch.

    Args:
        engine_bytes: One that was just built here.
        api: The backend's module.
        logger: TensorRT's.
        made: Raises where TensorRT gives nothing.
        stripped: The model of an engine without weights: nothing can be prepared for running before it has them.
        host_code: Whether the engine holds a runtime of its own, as version-compatible ones do.

    Raises:
        GpusqError: A step failed, or the weights don't fit.
    """
    runtime = api.Runtime(logger)
    runtime.engine_host_code_allowed = host_code
    engine = made(runtime.deserialize_cuda_engine(engine_bytes), "read its own engine back")
    if stripped is not None:
        refit_engine(engine, stripped, api, logger)
    context = made(engine.create_execution_context(), "prepare its own engine for running")
    inputs, _outputs = io_names(engine)
    for name in inputs:
        _smallest, best, _largest = engine.get_tensor_profile_shape(name, 0)
        sizes = sizes_of(best)
        if not context.set_input_shape(name, sizes):
            made(None, f"take {list(sizes)} for {name!r}, its own best size")
    inspector = made(engine.create_engine_inspector(), "inspect its own engine")
    inspector.execution_context = context
    text: str = inspector.get_engine_information(api.LayerInformationFormat.JSON)
    return text
