"""From a Q/DQ ONNX model to an engine, and to what the builder made of every layer.

tensorrt-rtx builds ahead of time, on any machine, and its layers are read from the verbose build log. tensorrt builds
on the target device itself, and its layers are read back through the engine inspector: the same code with the module
swapped, unverified so far, because no GPU was at hand.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gpusq_deploy.artifacts import EngineLayer
from gpusq_deploy.engines.api import (
    TRAITS,
    Api,
    BackendName,
    load_api,
    sizes_of,
)
from gpusq_deploy.engines.build_log import BuildLog, Progress, ProgressCallback, run_stoppable
from gpusq_deploy.engines.configure import BuildSettings, add_profiles, aim, apply_settings, require_options
from gpusq_deploy.engines.inspection import inspect_plan
from gpusq_deploy.engines.layer_list_parser import first_profile, layers_from_inspector, layers_from_log
from gpusq_deploy.engines.targets import Target
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import nodes_named_in

if TYPE_CHECKING:
    import tensorrt as trt

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class EngineBuild:
    """A built engine.

    Attributes:
        engine_bytes: The serialised engine.
        backend: Who built it, and in which version.
        version: The backend's version.
        seconds: Wall-clock time of parsing and building.
        layers: Its layers after fusion, in the builder's order; those of the first optimisation profile.
        source: Where `layers` was read from, as a sentence.
        notes: The builder's warnings and what it said about sparsity, each once.
        timing_cache: The timing cache after the build, where one was given; it belongs to this device and version.
    """

    engine_bytes: bytes
    backend: BackendName
    version: str
    seconds: float
    layers: tuple[EngineLayer, ...]
    source: str
    notes: tuple[str, ...]
    timing_cache: bytes | None


@dataclass(frozen=True, kw_only=True)
class EngineBuildOptions:
    """How to build, as far as it doesn't change what is asked for.

    Attributes:
        backend: Who builds; None takes the target's first.
        progress: Called with phase, steps done and steps in all, from the builder's thread.
        timing_cache: Kernel timings of an earlier build; empty bytes start a new one. tensorrt-rtx has none.
        place: What errors call the model; None is its path.
        capability: For tensorrt-rtx, whom to build for in its own words instead of the target's; see `aim`.
    """

    backend: BackendName | None = None
    progress: ProgressCallback | None = None
    timing_cache: bytes | None = None
    place: str | None = None
    capability: str | None = None


def build_engine(
    model: Path, target: Target, settings: BuildSettings, options: EngineBuildOptions | None = None
) -> EngineBuild:
    """Compile an ONNX model for one target.

    Ctrl-C stops the builder cleanly and then raises KeyboardInterrupt.

    Args:
        model: A strongly typed Q/DQ model; external data beside it is found.
        target: The GPU to build for.
        settings: Batch range, sparsity and builder limits.
        options: Which backend, who hears of progress, and a timing cache.

    Raises:
        GpusqError: The backend isn't here, can't build for the target or can't do what the options ask; the model
            can't be parsed, has a dynamic dimension besides the batch, or can't be built.
    """
    options = options or EngineBuildOptions()
    backend = options.backend or default_backend(target)
    if not model.is_file():
        raise GpusqError("there is no such model file", place=str(model))
    api = load_api(backend)
    require_options(settings.options, api, backend)
    progress = Progress(options.progress)
    job = _Build(api, model, target, settings, replace(options, backend=backend))
    return run_stoppable(lambda: job.run(progress), progress)


def default_backend(target: Target) -> BackendName:
    """The backend that builds for a target where none is asked for: ahead of time where that can be done."""
    return (*target.ahead_of_time, *target.on_device)[0]


class _Build:
    """One build: the builder, what it says, and the steps from a model to an engine."""

    def __init__(
        self, api: Api, model: Path, target: Target, settings: BuildSettings, options: EngineBuildOptions
    ) -> None:
        self._api = api
        self._backend: BackendName = options.backend or default_backend(target)
        self._model = model
        self._called = options.place or str(model)
        self._timings = options.timing_cache
        self._capability = options.capability
        self._target = target
        self._settings = settings
        self._log = BuildLog()
        # TensorRT keeps no reference of its own to these two.
        self._logger = self._log.as_logger(api)
        self._monitor: trt.IProgressMonitor | None = None

    def run(self, progress: Progress) -> EngineBuild:
        start = time.perf_counter()
        builder = self._start()
        network = self._parse(builder)
        config = self._configure(builder, network)
        self._monitor = progress.as_monitor(self._api)
        config.progress_monitor = self._monitor
        cache = self._use_cache(config)
        built = builder.build_serialized_network(network, config)
        if progress.stop.is_set():
            # `run_stoppable` raises what stopped it; this is never seen.
            raise GpusqError("the build was stopped", place=self._called)
        engine_bytes = bytes(self._made(built, f"build for {self._target.name}"))
        seconds = time.perf_counter() - start
        version = self._api.__version__
        timings = None if cache is None else bytes(cache.serialize())
        # To read an engine back takes room, and a device has little.
        del built, cache, config, network, builder
        layers, source = self._layers(engine_bytes)
        return EngineBuild(
            engine_bytes=engine_bytes,
            backend=self._backend,
            version=version,
            seconds=seconds,
            layers=layers,
            source=source,
            notes=self._notes(),
            timing_cache=timings,
        )

    def _start(self) -> trt.Builder:
        try:
            return self._api.Builder(self._logger)
        # Without a usable GPU, tensorrt's constructor returns nothing, which its binding turns into a TypeError.
        except (TypeError, RuntimeError) as error:
            self._log.add("ERROR", str(error))
        return self._made(None, "start its builder")

    def _parse(self, builder: trt.Builder) -> trt.INetworkDefinition:
        # TensorRT 11 knows nothing but strong typing and calls the flag deprecated.
        flag = self._api.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
        flags = 0 if flag is None else 1 << int(flag)
        network = self._made(builder.create_network(flags), "create a network")
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
            place=self._place(" ".join(error.node_name() for error in errors)),
            hint="the operator must be rewritten, or run outside the engine" if of_a_node else "is it an ONNX model?",
        )

    def _configure(self, builder: trt.Builder, network: trt.INetworkDefinition) -> trt.IBuilderConfig:
        config = self._made(builder.create_builder_config(), "create a configuration")
        apply_settings(self._api, config, self._settings)
        if self._backend == "tensorrt-rtx":
            aim(self._api, config, self._target, self._capability)
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        shapes = {tensor.name: sizes_of(tensor.shape) for tensor in inputs}
        add_profiles(self._api, builder, config, shapes, self._settings, place=self._called)
        return config

    def _use_cache(self, config: trt.IBuilderConfig) -> trt.ITimingCache | None:
        if self._timings is None:
            return None
        if not TRAITS[self._backend].timing_cache:
            raise GpusqError(f"{self._backend} times nothing while it builds", hint="leave out the timing cache")
        cache = config.create_timing_cache(self._timings)
        # A cache of another device or version would give wrong timings: it is refused, not forced.
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            raise GpusqError(
                "the timing cache belongs to another device or TensorRT version",
                hint="delete it; the build makes a new one",
            )
        return cache

    def _layers(self, engine_bytes: bytes) -> tuple[tuple[EngineLayer, ...], str]:
        name = f"{self._backend} {self._api.__version__}"
        if TRAITS[self._backend].evidence == "log":
            layers = layers_from_log(line.text for line in self._log.lines)
            return first_profile(layers, len(self._settings.profiles)), f"verbose build log of {name}"
        options = self._settings.options
        text = inspect_plan(
            engine_bytes,
            self._api,
            self._logger,
            self._made,
            stripped=self._model if options.strip else None,
            host_code=options.version_compatible,
        )
        best = self._settings.profiles[0].optimum
        return first_profile(layers_from_inspector(text), 1), f"engine inspector of {name} at batch {best}"

    def _notes(self) -> tuple[str, ...]:
        warnings = self._log.texts("WARNING")
        sparsity = [text for text in self._log.texts() if text.startswith("(Sparsity)")]
        return tuple(dict.fromkeys([*warnings, *sparsity]))

    def _made(self, thing: _T | None, step: str) -> _T:
        if thing is not None:
            return thing
        said = "; ".join(self._log.errors()) or "it gave no reason"
        limited = self._settings.options.workspace_mib is not None and "workspace" in said
        raise GpusqError(
            f"{self._backend} {self._api.__version__} couldn't {step}: {said}",
            place=self._place(said),
            hint="give workspace=MIB more, or leave it out"
            if limited
            else "gpusq-build without --int8 tells whether quantisation is the cause",
        )

    def _place(self, said: str) -> str:
        """The model, and which of its nodes the builder's words name and who made them."""
        try:
            nodes = nodes_named_in(said, self._model)
        except GpusqError:
            nodes = ""
        return f"{self._called}: {nodes}" if nodes else self._called


def _parser_sentence(error: trt.ParserError) -> str:
    node, operator = error.node_name(), error.node_operator()
    where = f"node {node!r} ({operator}): " if node or operator else ""
    return where + " ".join(error.desc().split())
