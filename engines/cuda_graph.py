"""CUDA graphs on a stream that somebody else made, through the driver itself, so that nothing need be installed.

PyCUDA has no graphs. Every package's streams are the driver's, so the driver's own functions capture what TensorRT
enqueues there, whichever package made them.
Unverified: no GPU was at hand; the tests pretend the driver.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol, cast

from gpusq_deploy.engines.gpu import status_text
from gpusq_deploy.errors import GpusqError

_LIBRARY = "libcuda.so.1"
_SUCCESS = 0
# CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile doesn't spoil the capture.
_THREAD_LOCAL = 1
_NEEDED = (
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
)


class GraphDriver(Protocol):
    """The driver's functions for graphs, as ctypes finds them; each answers 0 where all went well."""

    cuStreamBeginCapture_v2: Callable[..., int]  # noqa: N815 - the driver's name
    cuStreamEndCapture: Callable[..., int]  # noqa: N815 - the driver's name
    cuGraphInstantiateWithFlags: Callable[..., int]  # noqa: N815 - the driver's name
    cuGraphLaunch: Callable[..., int]  # noqa: N815 - the driver's name
    cuGraphExecDestroy: Callable[..., int]  # noqa: N815 - the driver's name
    cuGraphDestroy: Callable[..., int]  # noqa: N815 - the driver's name


def find_graph_driver(library: str = _LIBRARY) -> GraphDriver | str:
    """The driver, or why it can't capture graphs."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver is installed ({library} can't be loaded)"
    missing = [name for name in _NEEDED if not hasattr(driver, name)]
    if missing:
        return f"the NVIDIA driver is too old for CUDA graphs: it has no {', '.join(missing)} (CUDA 11.4 has them)"
    return cast("GraphDriver", driver)


class CudaGraph:
    """What was enqueued on a stream once, ready to be launched again in one call."""

    def __init__(self, driver: GraphDriver, stream: int, enqueue: Callable[[], None]) -> None:
        """Capture.

        Args:
            driver: The driver's functions.
            stream: A stream's handle, not the default stream's; the graph belongs to its context.
            enqueue: Puts the work into the stream. It must have run outside a capture before: the first inference
                after a change of shapes allocates, which can't be captured.

        Raises:
            GpusqError: The driver refused, or `enqueue` raised; the capture is ended all the same.
        """
        self._driver = driver
        self._stream = ctypes.c_void_p(stream)
        self._executable = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        _require(driver, driver.cuStreamBeginCapture_v2(self._stream, _THREAD_LOCAL), "begin a capture")
        try:
            enqueue()
        finally:
            ended = driver.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        _require(driver, ended, "end a capture")
        try:
            made = driver.cuGraphInstantiateWithFlags(ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        finally:
            driver.cuGraphDestroy(graph)
        _require(driver, made, "prepare a captured graph")

    def launch(self) -> None:
        """Put the graph into its stream.

        Raises:
            GpusqError: The driver refused.
        """
        _require(self._driver, self._driver.cuGraphLaunch(self._executable, self._stream), "launch a graph")

    def close(self) -> None:
        """Give it back; a second time does nothing."""
        executable: Any = self._executable
        if executable.value is not None:
            self._driver.cuGraphExecDestroy(executable)
            self._executable = ctypes.c_void_p()


def _require(driver: GraphDriver, status: int, step: str) -> None:
    if status != _SUCCESS:
        raise GpusqError(
            f"the CUDA driver couldn't {step} ({status_text(driver, status)})",
            hint="measure without --cuda-graph; an engine with data-dependent shapes can't be captured",
        )
