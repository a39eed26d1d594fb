"""From what is asked to a builder's configuration: flags, limits, optimisation profiles, and what can't be done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, cast

from gpusq_deploy.artifacts import BatchRange, EngineOptions, Value
from gpusq_deploy.engines.api import Api, BackendName, RtxApi, RtxBuilderConfig, rtx_compute_capability
from gpusq_deploy.engines.gpu import Gpu, find_gpu
from gpusq_deploy.engines.releases import option_problems, release_here, wanted_flags
from gpusq_deploy.engines.targets import Target
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    import tensorrt as trt

_KIB, _MIB = 1 << 10, 1 << 20

# Smallest, best and largest shape of each input, by its name.
Shapes = dict[str, tuple[tuple[int, ...], ...]]


class BuildSettings(Value):
    """What to build.

    Attributes:
        batch: Batch sizes that the engine must accept.
        sparse: Whether the builder may use sparse kernels where weights are 2:4.
        options: Everything else that the builder can be asked.
    """

    batch: BatchRange
    sparse: bool = False
    options: EngineOptions = EngineOptions()

    def __post_init__(self) -> None:
        for profile in self.options.profiles:
            if not self.batch.minimum <= profile.minimum <= profile.maximum <= self.batch.maximum:
                raise ValueError(f"the profile {profile} isn't within the batch range {self.batch}")

    @property
    def profiles(self) -> tuple[BatchRange, ...]:
        """One batch range per optimisation profile."""
        return self.options.profiles or (self.batch,)


def require_options(options: EngineOptions, api: Api, backend: BackendName) -> None:
    """Refuse what a backend can't do, all problems at once.

    Raises:
        GpusqError: At least one option is out of its reach.
    """
    problems = option_problems(options, release_here(backend, api), driver=isinstance(find_gpu(), Gpu))
    if problems:
        raise GpusqError(
            "; ".join(dict.fromkeys(problems)),
            place=f"--engine-option, {backend} {api.__version__}",
            hint="leave these out, or build with another backend or for another target",
        )


def apply_settings(api: Api, config: trt.IBuilderConfig, settings: BuildSettings) -> None:
    """Flags and limits; `require_options` has refused what the backend lacks."""
    options = settings.options
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    flags = ["SPARSE_WEIGHTS"] if settings.sparse else []
    for name in (*flags, *(flag for _, flag in wanted_flags(options))):
        config.set_flag(api.BuilderFlag.__members__[name])
    limits = (
        (api.MemoryPoolType.WORKSPACE, options.workspace_mib, _MIB),
        (api.MemoryPoolType.TACTIC_SHARED_MEMORY, options.shared_memory_kib, _KIB),
    )
    for pool, limit, unit in limits:
        if limit is not None:
            config.set_memory_pool_limit(pool, limit * unit)
    if options.tactics is not None:
        config.max_num_tactics = options.tactics
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.hardware is not None:
        level = options.hardware.upper().replace("-", "_")
        config.hardware_compatibility_level = api.HardwareCompatibilityLevel.__members__[level]


def aim(api: Api, config: trt.IBuilderConfig, target: Target, named: str | None = None) -> None:
    """Name the GPU that tensorrt-rtx builds for.

    Args:
        api: Its module.
        config: Gets the name.
        target: The GPU.
        named: A capability in the module's words instead of the target's, such as CURRENT; empty names none.

    Raises:
        GpusqError: It can't build for it.
    """
    if named == "":
        return
    rtx = cast("RtxBuilderConfig", config)
    if named is None:
        capability = rtx_compute_capability(api, target.compute_capability)
    else:
        capability = cast("RtxApi", api).ComputeCapability.__members__[named]
    rtx.num_compute_capabilities = 1
    if not rtx.set_compute_capability(capability, 0):
        raise GpusqError(f"tensorrt-rtx refuses to build for {capability.name}", place=target.name)


def add_profiles(
    api: Api,
    builder: trt.Builder,
    config: trt.IBuilderConfig,
    shapes: Mapping[str, tuple[int, ...]],
    settings: BuildSettings,
    *,
    place: str,
) -> None:
    """One optimisation profile per batch range; none for a model with a static batch.

    Args:
        api: The backend's module.
        builder: Makes the profiles.
        config: Gets them.
        shapes: Shapes by input name; -1 is dynamic.
        settings: The batch ranges.
        place: The model, for the error.

    Raises:
        GpusqError: See `profile_shapes`; or the builder refuses a range.
    """
    for batch in settings.profiles:
        ranges = profile_shapes(shapes, batch, place=place)
        if not ranges:
            return
        profile = builder.create_optimization_profile()
        for name, (smallest, best, largest) in ranges.items():
            profile.set_shape(name, *(api.Dims(list(shape)) for shape in (smallest, best, largest)))
        if config.add_optimization_profile(profile) < 0:
            raise GpusqError(f"the builder refuses the batch range {batch}", place=place)


def profile_shapes(shapes: Mapping[str, tuple[int, ...]], batch: BatchRange, *, place: str) -> Shapes:
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
