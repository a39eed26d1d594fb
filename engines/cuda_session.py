"""Engines of tensorrt and tensorrt-rtx, run through the CUDA driver.

Unverified: no GPU was at hand. What needs no device is in `engine_io` and tested there; tests/gpu runs the rest where a
driver answers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpusq_deploy.engines.api import Api, BackendName, execution_context, io_names, load_api, runtime_config, sizes_of
from gpusq_deploy.engines.build_log import BuildLog
from gpusq_deploy.engines.cuda_api import CUDA_NAMES, CudaDevice, CudaName, cuda_failed, open_cuda
from gpusq_deploy.engines.cuda_graph import CudaGraph, GraphDriver, find_graph_driver
from gpusq_deploy.engines.engine_file import check_engine_header, engine_misfits
from gpusq_deploy.engines.engine_io import ShapeRange, buffer_bytes, dtype_from_trt, fitting_profile, numpy_dtype
from gpusq_deploy.engines.gpu import Gpu, find_gpu
from gpusq_deploy.engines.refit import refit_engine
from gpusq_deploy.engines.session import Session, SharedSession, TensorSpec, check_feeds
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    import tensorrt as trt

_T = TypeVar("_T")
_ShapeKey = tuple[tuple[str, tuple[int, ...]], ...]

# A byte of outputs that nobody has written: NaN in every type of floats.
_NO_RESULT = 0xFF


def open_engine(
    path: Path,
    backend: BackendName,
    *,
    weights: Path | None = None,
    cuda_graph: bool = False,
    host_code: bool = False,
    through: Sequence[CudaName] = CUDA_NAMES,
) -> SharedSession:
    """Load an engine on the first GPU. Unverified: see the module.

    An engine is native code: check the bundle's digests before.

    Args:
        path: The engine.
        backend: Who built it.
        weights: The ONNX model that an engine without weights takes them from; see `refit`.
        cuda_graph: Whether inferences are launched as a captured CUDA graph.
        host_code: Whether the engine may bring a runtime of its own, which version-compatible ones do.
        through: The packages to call the driver with; the first that can is taken.

    Raises:
        GpusqError: The file isn't an engine of this backend, or the runtime refuses it here; the backend, a package
            that calls the driver, a GPU or what CUDA graphs need is missing; or the weights don't fit.
    """
    try:
        engine_bytes = path.read_bytes()
    except OSError as error:
        raise GpusqError(f"cannot read the engine: {error.strerror}", place=str(path)) from error
    check_engine_header(engine_bytes, backend, place=str(path))
    api, gpu = load_api(backend), find_gpu()
    capability = gpu.compute_capability if isinstance(gpu, Gpu) else None
    graphs = find_graph_driver() if cuda_graph else None
    if isinstance(graphs, str):
        raise GpusqError(f"CUDA graphs can't be used here: {graphs}", place=str(path), hint="leave out --cuda-graph")
    return CudaSession(
        CudaParts(
            engine_bytes=engine_bytes,
            api=api,
            cuda=open_cuda(through, place=str(path)),
            backend=backend,
            path=path,
            weights=weights,
            graphs=graphs,
            host_code=host_code,
            misfits=engine_misfits(engine_bytes, version=api.__version__, capability=capability),
            open_another=partial(open_cuda, through, place=str(path)),
        )
    )


@dataclass(frozen=True, kw_only=True)
class CudaParts:
    """What a session is made of: the engine and its place, TensorRT's module, and the GPU, which the session closes.

    `weights` is for an engine without any, `graphs` for launching CUDA graphs, `host_code` for an engine that brings
    its own runtime; `misfits` say why the engine may not run here, for where the runtime refuses it. `open_another`
    opens the GPU again with a stream of its own, for a session that takes its engine from `shared`.
    """

    engine_bytes: bytes
    api: Api
    cuda: CudaDevice
    backend: BackendName
    path: Path
    weights: Path | None = None
    graphs: GraphDriver | None = None
    host_code: bool = False
    misfits: tuple[str, ...] = ()
    open_another: Callable[[], CudaDevice] | None = None
    shared: CudaSession | None = None


@dataclass(frozen=True, kw_only=True)
class _Buffers:
    """One pinned host buffer and one device buffer per tensor, for one set of input shapes; `held` frees them."""

    inputs: dict[str, tuple[int, ...]]
    shapes: dict[str, tuple[int, ...]]
    host: dict[str, NDArray[np.uint8]]
    device: dict[str, int]
    held: ExitStack


class CudaSession:
    """An engine on a GPU. Unverified: see the module."""

    _logger: trt.ILogger
    _runtime: trt.Runtime
    _engine: trt.ICudaEngine

    def __init__(self, parts: CudaParts) -> None:
        self.runtime: str = parts.backend
        self.runtime_version: str = parts.api.__version__
        # An engine's bytes are of no use once it is loaded.
        self._parts = replace(parts, engine_bytes=b"", shared=None)
        self._path = parts.path
        self._cuda = parts.cuda
        self._misfits = parts.misfits
        self._log = BuildLog()
        self._buffers: dict[_ShapeKey, _Buffers] = {}
        self._graph_driver = parts.graphs
        self._graphs: dict[_ShapeKey, CudaGraph] = {}
        self._profile = 0
        self._closed = False
        self.device: str = parts.cuda.name
        self.cuda_api: str = parts.cuda.api
        try:
            with self._current():
                self._load(parts)
        except BaseException:
            parts.cuda.close()
            raise

    def _load(self, parts: CudaParts) -> None:
        if parts.shared is None:
            self._deserialize(parts)
        else:
            self._log, self._logger = parts.shared._log, parts.shared._logger
            self._runtime, self._engine = parts.shared._runtime, parts.shared._engine
        self._settings = runtime_config(parts.api, self._engine, parts.backend)
        context = execution_context(self._engine, self._settings)
        self._execution = self._made(context, "prepare the engine for running")
        inputs, outputs = io_names(self._engine)
        self._inputs = tuple(self._spec(name) for name in inputs)
        self._outputs = tuple(self._spec(name) for name in outputs)
        self._profiles = [
            {spec.name: self._range(spec.name, index) for spec in self._inputs}
            for index in range(self._engine.num_optimization_profiles)
        ]

    def _deserialize(self, parts: CudaParts) -> None:
        # TensorRT keeps no reference of its own to the logger, nor an engine to its runtime.
        self._logger = self._log.as_logger(parts.api)
        self._runtime = parts.api.Runtime(self._logger)
        self._runtime.engine_host_code_allowed = parts.host_code
        self._engine = self._made(self._runtime.deserialize_cuda_engine(parts.engine_bytes), "read the engine")
        if parts.weights is not None:
            refit_engine(self._engine, parts.weights, parts.api, self._logger)
        # An engine that streams keeps all weights on the host until it is given a budget.
        if self._engine.streamable_weights_size > 0:
            self._engine.weight_streaming_budget_v2 = self._engine.get_weight_streaming_automatic_budget()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs in the engine's order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs in the engine's order."""
        return self._outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Infer once; see `Session.run`."""
        with self._current():
            buffers = self._upload(feeds)
            self._launcher(buffers)()
            for spec in self._outputs:
                self._cuda.download(buffers.host[spec.name], buffers.device[spec.name])
            self._cuda.synchronize()
        return {spec.name: self._host_view(buffers, spec).copy() for spec in self._outputs}

    def timer(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], float]:
        """Milliseconds between two CUDA events around one inference, copies not included; see `Session.timer`."""
        with self._current():
            shapes = self._upload(feeds).inputs
            self._cuda.synchronize()

        def take() -> float:
            with self._current():
                return self._cuda.time(self._launcher(self._bind(shapes)))

        return take

    def another(self) -> Session:
        """See `SharedSession`: an execution context of the same engine, with a stream and buffers of its own."""
        if self._parts.open_another is None:
            raise ValueError("the session can't open its GPU again")
        return CudaSession(replace(self._parts, cuda=self._parts.open_another(), shared=self))

    def close(self) -> None:
        """Free the buffers and give the device back."""
        if self._closed:
            return
        try:
            with self._current():
                self._free()
                # In this order: each needs the one after it.
                del self._execution, self._settings, self._engine, self._runtime
        finally:
            self._closed = True
            with _cuda_errors(self._cuda, self._path):
                self._cuda.close()

    def _free(self) -> None:
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        with ExitStack() as all_of_them:
            for buffers in self._buffers.values():
                all_of_them.push(buffers.held)
        self._buffers.clear()

    def _upload(self, feeds: Mapping[str, NDArray[Any]]) -> _Buffers:
        check_feeds(self._inputs, feeds, place=str(self._path))
        buffers = self._bind({spec.name: tuple(feeds[spec.name].shape) for spec in self._inputs})
        for spec in self._inputs:
            self._host_view(buffers, spec)[...] = feeds[spec.name]
            self._cuda.upload(buffers.device[spec.name], buffers.host[spec.name])
        return buffers

    def _take_profile(self, index: int) -> None:
        if index == self._profile:
            return
        if not self._execution.set_optimization_profile_async(index, self._cuda.stream):
            self._made(None, f"change to its optimisation profile {index}")
        self._profile = index

    def _launcher(self, buffers: _Buffers) -> Callable[[], None]:
        """What launches one inference on buffers that are bound and hold its inputs."""
        if self._graph_driver is None:
            return self._launch
        key: _ShapeKey = tuple(buffers.inputs.items())
        if key not in self._graphs:
            self._graphs[key] = self._capture(self._graph_driver, buffers)
        return self._graphs[key].launch

    def _capture(self, driver: GraphDriver, buffers: _Buffers) -> CudaGraph:
        # The first launch after a change of shapes allocates, which can't be captured.
        self._launch()
        self._cuda.synchronize()
        # tensorrt-rtx can tell; tensorrt can't.
        capturable = getattr(self._execution, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._cuda.stream):
            raise GpusqError(
                "this engine's inferences can't be captured as a CUDA graph: it allocates while it runs",
                place=str(self._path),
                hint="build it with --engine-option capturable, or leave out --cuda-graph",
            )
        graph = CudaGraph(driver, self._cuda.stream, self._launch)
        # Whoever compares outputs must see the graph's, not those of the launch above.
        for spec in self._outputs:
            buffers.host[spec.name].fill(_NO_RESULT)
            self._cuda.upload(buffers.device[spec.name], buffers.host[spec.name])
        self._cuda.synchronize()
        return graph

    def _bind(self, shapes: dict[str, tuple[int, ...]]) -> _Buffers:
        """Tell the execution context profile, shapes and addresses."""
        self._take_profile(fitting_profile(self._profiles, shapes, place=str(self._path)))
        for name, shape in shapes.items():
            if not self._execution.set_input_shape(name, shape):
                self._made(None, f"accept {name!r} {list(shape)}")
        key: _ShapeKey = tuple(shapes.items())
        if key not in self._buffers:
            self._buffers[key] = self._allocate(shapes)
        buffers = self._buffers[key]
        for name, address in buffers.device.items():
            if not self._execution.set_tensor_address(name, address):
                self._made(None, f"take a buffer for {name!r}")
        return buffers

    def _allocate(self, shapes: dict[str, tuple[int, ...]]) -> _Buffers:
        found = {spec.name: sizes_of(self._execution.get_tensor_shape(spec.name)) for spec in self._outputs}
        full = {**shapes, **found}
        sizes = buffer_bytes((*self._inputs, *self._outputs), full, place=str(self._path))
        host: dict[str, NDArray[np.uint8]] = {}
        device: dict[str, int] = {}
        # Where memory runs out, what was taken of it is given back, and a smaller batch can be tried.
        with ExitStack() as held:
            for name, size in sizes.items():
                host[name] = self._cuda.pinned(size)
                held.callback(self._cuda.unpin, host[name])
                device[name] = self._cuda.memory(size)
                held.callback(self._cuda.free, device[name])
            return _Buffers(inputs=shapes, shapes=full, host=host, device=device, held=held.pop_all())

    def _host_view(self, buffers: _Buffers, spec: TensorSpec) -> NDArray[Any]:
        shape, dtype = buffers.shapes[spec.name], numpy_dtype(spec.dtype)
        used = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return buffers.host[spec.name][:used].view(dtype).reshape(shape)

    def _launch(self) -> None:
        if not self._execution.execute_async_v3(self._cuda.stream):
            self._made(None, "run the engine")

    def _spec(self, name: str) -> TensorSpec:
        dtype = dtype_from_trt(self._engine.get_tensor_dtype(name).name, place=str(self._path))
        return TensorSpec(name=name, shape=sizes_of(self._engine.get_tensor_shape(name)), dtype=dtype)

    def _range(self, name: str, profile: int) -> ShapeRange:
        smallest, best, largest = (sizes_of(dims) for dims in self._engine.get_tensor_profile_shape(name, profile))
        return ShapeRange(minimum=smallest, best=best, maximum=largest)

    @contextmanager
    def _current(self) -> Generator[None, None, None]:
        """Make the device's context current, so that sessions and other CUDA users don't disturb one another."""
        if self._closed:
            raise ValueError("the session is closed")
        with _cuda_errors(self._cuda, self._path):
            self._cuda.push()
            try:
                yield
            finally:
                self._cuda.pop()

    def _made(self, thing: _T | None, step: str) -> _T:
        if thing is not None:
            return thing
        said = "; ".join([*self._log.errors(), *self._misfits]) or "it gave no reason"
        raise GpusqError(
            f"{self.runtime} {self.runtime_version} couldn't {step}: {said}",
            place=str(self._path),
            hint="an engine runs on the GPU and the version that it was built for; the bundle's receipt names them",
        )


@contextmanager
def _cuda_errors(device: CudaDevice, path: Path) -> Generator[None, None, None]:
    try:
        yield
    except device.Error as error:
        raise cuda_failed(error, place=str(path)) from error
