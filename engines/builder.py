"""From a Q/DQ ONNX model to an engine plan, and to what the builder made of every layer.

tensorrt-rtx builds ahead of time, on any machine, and its layers are read from the verbose build log. tensorrt builds
on the target device itself, and its layers are read back through the engine inspector: the same code with the module
swapped, unverified so far, because no GPU was at hand.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from gpusq_deploy.artifacts.base import Value
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.receipt import EngineLayer
from gpusq_deploy.engines.api import (
    TRAITS,
    Api,
    BackendName,
    RtxBuilderConfig,
    load_api,
    rtx_compute_capability,
    sizes_of,
)
from gpusq_deploy.engines.build_log import BuildLog, Progress, ProgressCallback, run_stoppable
from gpusq_deploy.engines.layer_text import layers_from_inspector, layers_from_log
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.targets import Target

if TYPE_CHECKING:
    import tensorrt as trt

_T = TypeVar("_T")

_MIB = 1 << 20


class BuildSettings(Value):
    """What to build.

    Attributes:
        batch: Batch sizes that the plan must accept.
        sparse: Whether the builder may use sparse kernels where weights are 2:4.
        workspace_mib: Most scratch memory that a layer may use, in MiB; None leaves it to the builder.
        optimization_level: The builder's 0 (fast build) to 5 (fast engine); None leaves it to the builder.
    """

    batch: BatchRange
    sparse: bool = False
    workspace_mib: int | None = None
    optimization_level: int | None = None

    def __post_init__(self) -> None:
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ValueError("workspace_mib must be positive")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ValueError("optimization_level must be 0 to 5")


@dataclass(frozen=True, kw_only=True)
class EngineBuild:
    """A built engine.

    Attributes:
        plan: The serialised engine.
        backend: Who built it, and in which version.
        version: The backend's version.
        seconds: Wall-clock time of parsing and building.
        layers: Its layers after fusion, in the builder's order.
        source: Where `layers` was read from, as a sentence.
        notes: The builder's warnings and what it said about sparsity, each once.
        timing_cache: The timing cache after the build, where one was given; it belongs to this device and version.
    """

    plan: bytes
    backend: BackendName
    version: str
    seconds: float
    layers: tuple[EngineLayer, ...]
    source: str
    notes: tuple[str, ...]
    timing_cache: bytes | None


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build, as far as it doesn't change what is asked for.

    Attributes:
        backend: Who builds; None takes the target's first.
        progress: Called with phase, steps done and steps in all, from the builder's thread.
        timing_cache: Kernel timings of an earlier build; empty bytes start a new one. tensorrt-rtx has none.
    """

    backend: BackendName | None = None
    progress: ProgressCallback | None = None
    timing_cache: bytes | None = None


def build_engine(
    model: Path, target: Target, settings: BuildSettings, options: BuildOptions | None = None
) -> EngineBuild:
    """Compile an ONNX model for one target.

    Ctrl-C stops the builder cleanly and then raises KeyboardInterrupt.

    Args:
        model: A strongly typed Q/DQ model; external data beside it is found.
        target: The GPU to build for.
        settings: Batch range, sparsity and builder limits.
        options: Which backend, who hears of progress, and a timing cache.

    Raises:
        GpusqError: The backend isn't here or can't build for the target, the model can't be parsed, has a dynamic
            dimension besides the batch, or can't be built.
    """
    options = options or BuildOptions()
    backend = options.backend or default_backend(target)
    if not model.is_file():
        raise GpusqError("there is no such model file", place=str(model))
    api = load_api(backend)
    progress = Progress(options.progress)
    job = _Build(api=api, backend=backend, model=model, target=target, settings=settings)
    return run_stoppable(lambda: job.run(progress, options.timing_cache), progress)


def default_backend(target: Target) -> BackendName:
    """The backend that builds for a target where none is asked for: ahead of time where that can be done."""
    return (*target.ahead_of_time, *target.on_device)[0]


class _Build:
    """One build: the builder, what it says, and the steps from a model to a plan."""

    def __init__(self, *, api: Api, backend: BackendName, model: Path, target: Target, settings: BuildSettings) -> None:
        self._api = api
        self._backend: BackendName = backend
        self._model = model
        self._target = target
        self._settings = settings
        self._log = BuildLog()
        # TensorRT keeps no reference of its own to these two.
        self._logger = self._log.as_logger(api)
        self._monitor: trt.IProgressMonitor | None = None

    def run(self, progress: Progress, timing_cache: bytes | None) -> EngineBuild:
        start = time.perf_counter()
        builder = self._start()
        network = self._parse(builder)
        config = self._configure(builder, network)
        self._monitor = progress.as_monitor(self._api)
        config.progress_monitor = self._monitor
        cache = self._use_cache(config, timing_cache)
        built = builder.build_serialized_network(network, config)
        if progress.stop.is_set():
            # `run_stoppable` raises what stopped it; this is never seen.
            raise GpusqError("the build was stopped", place=str(self._model))
        plan = bytes(self._made(built, f"build for {self._target.name}"))
        seconds = time.perf_counter() - start
        version = self._api.__version__
        layers, source = self._layers(plan)
        return EngineBuild(
            plan=plan,
            backend=self._backend,
            version=version,
            seconds=seconds,
            layers=layers,
            source=source,
            notes=self._notes(),
            timing_cache=None if cache is None else bytes(cache.serialize()),
        )

    def _start(self) -> trt.Builder:
        try:
            return self._api.Builder(self._logger)
        # Without a usable GPU, tensorrt's constructor returns nothing, which its binding turns into a TypeError.
        except (TypeError, RuntimeError) as error:
            self._log.add("ERROR", str(error))
        return self._made(None, "start its builder")

    def _parse(self, builder: trt.Builder) -> trt.INetworkDefinition:
        flag = self._api.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = self._made(builder.create_network(1 << int(flag)), "create a network")
        parser = self._api.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(self._model)):
            raise self._parse_error([parser.get_error(index) for index in range(parser.num_errors)])
        return network

    def _parse_error(self, errors: list[trt.ParserError]) -> GpusqError:
        said = [_parser_sentence(error) for error in errors] or self._log.errors()
        of_a_node = any(error.node_operator() for error in errors)
        return GpusqError(
            f"{self._backend} {self._api.__version__} can't parse the model: "
            + ("; ".join(said) or "it gave no reason"),
            place=str(self._model),
            hint="the operator must be rewritten, or run outside the engine" if of_a_node else "is it an ONNX model?",
        )

    def _configure(self, builder: trt.Builder, network: trt.INetworkDefinition) -> trt.IBuilderConfig:
        api, settings = self._api, self._settings
        config = self._made(builder.create_builder_config(), "create a configuration")
        config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
        if settings.sparse:
            config.set_flag(api.BuilderFlag.SPARSE_WEIGHTS)
        if settings.workspace_mib is not None:
            config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, settings.workspace_mib * _MIB)
        if settings.optimization_level is not None:
            config.builder_optimization_level = settings.optimization_level
        if self._backend == "tensorrt-rtx":
            self._aim(cast("RtxBuilderConfig", config))
        self._add_profile(builder, network, config)
        return config

    def _aim(self, config: RtxBuilderConfig) -> None:
        capability = rtx_compute_capability(self._api, self._target.compute_capability)
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(capability, 0):
            raise GpusqError(f"tensorrt-rtx refuses to build for {capability.name}", place=self._target.name)

    def _add_profile(self, builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> None:
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        shapes = {tensor.name: sizes_of(tensor.shape) for tensor in inputs}
        ranges = profile_shapes(shapes, self._settings.batch, place=str(self._model))
        if not ranges:
            return
        profile = builder.create_optimization_profile()
        for name, (smallest, best, largest) in ranges.items():
            profile.set_shape(name, *(self._api.Dims(list(shape)) for shape in (smallest, best, largest)))
        if config.add_optimization_profile(profile) < 0:
            raise GpusqError("the builder refuses the batch range " + str(self._settings.batch), place=str(self._model))

    def _use_cache(self, config: trt.IBuilderConfig, timing_cache: bytes | None) -> trt.ITimingCache | None:
        if timing_cache is None:
            return None
        if not TRAITS[self._backend].timing_cache:
            raise GpusqError(f"{self._backend} times nothing while it builds", hint="leave out the timing cache")
        cache = config.create_timing_cache(timing_cache)
        # A cache of another device or version would give wrong timings: it is refused, not forced.
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            raise GpusqError(
                "the timing cache belongs to another device or TensorRT version",
                hint="delete it; the build makes a new one",
            )
        return cache

    def _layers(self, plan: bytes) -> tuple[tuple[EngineLayer, ...], str]:
        name = f"{self._backend} {self._api.__version__}"
        if TRAITS[self._backend].evidence == "log":
            return layers_from_log(line.text for line in self._log.lines), f"verbose build log of {name}"
        runtime = self._api.Runtime(self._logger)
        engine = self._made(runtime.deserialize_cuda_engine(plan), "read its own plan back")
        inspector = self._made(engine.create_engine_inspector(), "inspect its own plan")
        text = inspector.get_engine_information(self._api.LayerInformationFormat.JSON)
        return layers_from_inspector(text), f"engine inspector of {name}"

    def _notes(self) -> tuple[str, ...]:
        warnings = self._log.texts("WARNING")
        sparsity = [text for text in self._log.texts() if text.startswith("(Sparsity)")]
        return tuple(dict.fromkeys([*warnings, *sparsity]))

    def _made(self, thing: _T | None, step: str) -> _T:
        if thing is not None:
            return thing
        said = "; ".join(self._log.errors()) or "it gave no reason"
        raise GpusqError(
            f"{self._backend} {self._api.__version__} couldn't {step}: {said}",
            place=str(self._model),
            hint="gpusq-build without --int8 tells whether quantisation is the cause",
        )


def profile_shapes(
    shapes: dict[str, tuple[int, ...]], batch: BatchRange, *, place: str
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Smallest, best and largest shape of every input whose batch is dynamic.

    Args:
        shapes: Shapes by input name; -1 is dynamic.
        batch: The batch sizes asked for.
        place: The model, for the error.

    Returns:
        Shapes by input name; none for a model with a static batch.

    Raises:
        GpusqError: A dimension besides the first is dynamic, or a static batch isn't the one asked for.
    """
    problems = [problem for name, shape in shapes.items() for problem in _shape_problems(name, shape, batch)]
    if problems:
        raise GpusqError(
            "; ".join(problems), place=place, hint="export the model with a dynamic batch and nothing else"
        )
    dynamic = {name: shape[1:] for name, shape in shapes.items() if shape[:1] == (-1,)}
    sizes = (batch.minimum, batch.optimum, batch.maximum)
    return {name: tuple((size, *rest) for size in sizes) for name, rest in dynamic.items()}


def _shape_problems(name: str, shape: tuple[int, ...], batch: BatchRange) -> Iterator[str]:
    if -1 in shape[1:]:
        yield f"input {name!r} {list(shape)} is dynamic beyond its batch"
    if shape and shape[0] != -1 and not batch.minimum == shape[0] == batch.maximum:
        yield f"input {name!r} {list(shape)} has the static batch {shape[0]}, not {batch}"


def _parser_sentence(error: trt.ParserError) -> str:
    node, operator = error.node_name(), error.node_operator()
    where = f"node {node!r} ({operator}): " if node or operator else ""
    return where + " ".join(error.desc().split())
