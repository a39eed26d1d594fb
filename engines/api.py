"""What we use of TensorRT's Python module, and where its twins `tensorrt` and `tensorrt_rtx` differ.

Flags and enumerations are renumbered between TensorRT versions, so they are always reached by name. Types come from
TensorRT's stubs; what only tensorrt_rtx has is typed here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Protocol, cast, get_args

from gpusq_deploy.artifacts import Value
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    import tensorrt as trt

BackendName = Literal["tensorrt", "tensorrt-rtx"]


class Api(Protocol):
    """The attributes of either module that we use."""

    __version__: str
    Builder: type[trt.Builder]
    BuilderFlag: type[trt.BuilderFlag]
    Dims: type[trt.Dims]
    HardwareCompatibilityLevel: type[trt.HardwareCompatibilityLevel]
    IBuilderConfig: type[trt.IBuilderConfig]
    ILogger: type[trt.ILogger]
    IProgressMonitor: type[trt.IProgressMonitor]
    LayerInformationFormat: type[trt.LayerInformationFormat]
    MemoryPoolType: type[trt.MemoryPoolType]
    NetworkDefinitionCreationFlag: type[trt.NetworkDefinitionCreationFlag]
    OnnxParser: type[trt.OnnxParser]
    OnnxParserRefitter: type[trt.OnnxParserRefitter]
    ProfilingVerbosity: type[trt.ProfilingVerbosity]
    Refitter: type[trt.Refitter]
    Runtime: type[trt.Runtime]
    TensorIOMode: type[trt.TensorIOMode]


def sizes_of(dims: trt.Dims) -> tuple[int, ...]:
    """A TensorRT shape as a tuple; the stubs know its length and its items, but not that it can be iterated."""
    return tuple(dims[index] for index in range(len(dims)))


class ComputeCapability(Protocol):
    """One member of `tensorrt_rtx.ComputeCapability`, such as SM80."""

    @property
    def name(self) -> str:
        """The member's name."""
        ...


class ComputeCapabilities(Protocol):
    """The enumeration `tensorrt_rtx.ComputeCapability`."""

    @property
    def __members__(self) -> Mapping[str, ComputeCapability]: ...


class KernelStrategy(Protocol):
    """One member of `tensorrt_rtx.DynamicShapesKernelSpecializationStrategy`."""


class KernelStrategies(Protocol):
    """The enumeration `tensorrt_rtx.DynamicShapesKernelSpecializationStrategy`."""

    EAGER: KernelStrategy


class RtxApi(Protocol):
    """What only tensorrt_rtx has."""

    ComputeCapability: ComputeCapabilities
    DynamicShapesKernelSpecializationStrategy: KernelStrategies


class RtxRuntimeConfig(Protocol):
    """How tensorrt_rtx's execution contexts behave."""

    dynamic_shapes_kernel_specialization_strategy: KernelStrategy


class RtxEngine(Protocol):
    """What only tensorrt_rtx's engines have."""

    def create_runtime_config(self) -> RtxRuntimeConfig | None:
        """A configuration for `create_execution_context`."""
        ...

    def create_execution_context(self, runtime_config: RtxRuntimeConfig, /) -> trt.IExecutionContext | None:
        """A context of that configuration."""
        ...


class RtxBuilderConfig(Protocol):
    """What only tensorrt_rtx's builder configuration has."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool:
        """Name one GPU architecture that the engine must run on."""
        ...


class BackendTraits(Value):
    """How one backend differs, as far as it matters here."""

    module: str
    package: str
    needs_gpu: bool
    ahead_of_time: bool
    timing_cache: bool
    compiles_at_run: bool
    evidence: Literal["inspector", "log"]


TRAITS: Mapping[BackendName, BackendTraits] = {
    "tensorrt": BackendTraits(
        module="tensorrt",
        package="tensorrt",
        needs_gpu=True,
        ahead_of_time=False,
        timing_cache=True,
        compiles_at_run=False,
        evidence="inspector",
    ),
    # Reading an engine back through the inspector needs a driver; the verbose build log doesn't. Timing-cache calls are
    # deprecated no-ops since 1.2: kernels are chosen when the engine is loaded.
    "tensorrt-rtx": BackendTraits(
        module="tensorrt_rtx",
        package="tensorrt-rtx",
        needs_gpu=False,
        ahead_of_time=True,
        timing_cache=False,
        compiles_at_run=True,
        evidence="log",
    ),
}


def find_api(name: BackendName) -> Api | str:
    """The backend's module, or the reason why there is none."""
    traits = TRAITS[name]
    try:
        module = importlib.import_module(traits.module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == traits.module:
            return f"the package {traits.package} is not installed"
        return f"the package {traits.package} can't be imported: {error}"
    return _checked(module, traits)


def load_api(name: BackendName) -> Api:
    """The backend's module.

    Raises:
        GpusqError: It isn't installed, or is only an empty shell.
    """
    found = find_api(name)
    if isinstance(found, str):
        raise GpusqError(
            found, place=name, hint=f"pip install {TRAITS[name].package}; on a Jetson it comes with JetPack"
        )
    return found


def rtx_compute_capability(api: Api, compute_capability: str) -> ComputeCapability:
    """tensorrt_rtx's name for an architecture: "8.6" is SM86.

    Raises:
        GpusqError: This tensorrt_rtx can't build for it.
    """
    known = cast("RtxApi", api).ComputeCapability.__members__
    name = "SM" + compute_capability.replace(".", "")
    if name not in known:
        buildable = ", ".join(sorted(member for member in known if member.startswith("SM")))
        raise GpusqError(
            f"tensorrt-rtx {api.__version__} can't build for {name}",
            place=f"compute capability {compute_capability}",
            hint=f"it builds for {buildable}; others need tensorrt on the device itself",
        )
    return known[name]


def io_names(engine: trt.ICudaEngine) -> tuple[list[str], list[str]]:
    """An engine's inputs and its outputs, in the engine's order."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name).name == "INPUT"]
    return inputs, [name for name in names if name not in inputs]


def runtime_config(api: Api, engine: trt.ICudaEngine, backend: BackendName) -> RtxRuntimeConfig | None:
    """How an engine's contexts are to behave; None where there is nothing to say.

    tensorrt-rtx compiles kernels for the shapes that it meets, by default in the background: meanwhile others run, so
    that what is timed first isn't what is deployed. Here it is told to wait for its own.

    Raises:
        GpusqError: The runtime gives none.
    """
    if not TRAITS[backend].compiles_at_run:
        return None
    config = cast("RtxEngine", engine).create_runtime_config()
    if config is None:
        raise GpusqError(f"{backend} {api.__version__} gives no configuration for running", hint="install it again")
    strategies = cast("RtxApi", api).DynamicShapesKernelSpecializationStrategy
    config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    return config


def execution_context(engine: trt.ICudaEngine, config: RtxRuntimeConfig | None) -> trt.IExecutionContext | None:
    """A context that runs an engine; None where the runtime refuses, and its logger has heard why.

    Args:
        engine: The engine, which must outlive the context.
        config: Its configuration, which must too.
    """
    if config is None:
        return engine.create_execution_context()
    return cast("RtxEngine", engine).create_execution_context(config)


def _checked(module: ModuleType, traits: BackendTraits) -> Api | str:
    # A stubs package leaves a folder of .pyi files, which imports as an empty namespace package.
    missing = [name for name in needed_names() if not hasattr(module, name)]
    if "Builder" in missing:
        return f"the module {traits.module} is an empty shell (stubs without the package {traits.package})"
    if missing:
        return f"the package {traits.package} lacks {', '.join(missing)}; it is too old or too new"
    return cast("Api", module)


def needed_names() -> tuple[str, ...]:
    """The attributes that `Api` promises, in order."""
    return tuple(Api.__annotations__)


assert set(TRAITS) == set(get_args(BackendName))
