"""What every runtime offers: named tensors in, named tensors out, and one timed inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from gpusq_deploy.artifacts import Value
from gpusq_deploy.errors import GpusqError


class TensorSpec(Value):
    """A model's input or output. A dynamic dimension is -1; `dtype` is numpy's name, or ml_dtypes' (bfloat16)."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Session(Protocol):
    """A model that is loaded and ready to run. Not safe to share between threads.

    Attributes:
        runtime: Which runtime runs it: `onnxruntime`, `tensorrt` or `tensorrt-rtx`.
        runtime_version: The runtime's own version.
        device: The processor it runs on, by name.
    """

    runtime: str
    runtime_version: str
    device: str

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs in the model's order."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs in the model's order."""
        ...

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Infer once.

        Args:
            feeds: One array per input, of that input's exact type and shape.

        Returns:
            One array per output, in the model's order, owned by the caller.

        Raises:
            GpusqError: A feed is missing, unknown or doesn't fit, or the runtime failed.
        """
        ...

    def timer(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], float]:
        """Bring feeds to the device once, to time inferences on them.

        Returns:
            Each call infers once and answers its milliseconds: wall clock on a CPU, CUDA events without the copies on a
            GPU. Another timer or run of the same shapes replaces the feeds.

        Raises:
            GpusqError: As of `run`, at once or in a call.
        """
        ...

    def close(self) -> None:
        """Give back memory and device. A closed session must not be used; closing twice does nothing."""
        ...


class SharedSession(Session, Protocol):
    """A session whose loaded model further threads can run too, each through a session of its own."""

    def another(self) -> Session:
        """A session of the same loaded model for another thread, which must call this, use it and close it.

        Weights are held once. It must be closed before this one.

        Raises:
            GpusqError: There is no room for it.
        """
        ...


def check_feeds(inputs: tuple[TensorSpec, ...], feeds: Mapping[str, NDArray[Any]], *, place: str) -> None:
    """Compare feeds with what the model takes, and name every mismatch at once.

    Args:
        inputs: The model's inputs.
        feeds: Arrays by input name.
        place: The model, for the error.

    Raises:
        GpusqError: At least one feed is missing, unknown, of another type, or of a shape that can't fit.
    """
    known = {spec.name for spec in inputs}
    problems = [f"{name!r} is not an input" for name in feeds if name not in known]
    for spec in inputs:
        feed = feeds.get(spec.name)
        if feed is None:
            problems.append(f"{spec.name!r} is missing")
        elif feed.dtype.name != spec.dtype or not _fits(feed.shape, spec.shape):
            problems.append(f"{spec.name!r} is {feed.dtype.name}{list(feed.shape)}, not {spec.dtype}{list(spec.shape)}")
    if problems:
        takes = ", ".join(f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in inputs)
        raise GpusqError("the feeds don't fit the model: " + "; ".join(problems), place=place, hint=f"it takes {takes}")


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, got) for got, want in zip(shape, wanted, strict=True))
