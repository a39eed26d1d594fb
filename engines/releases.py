"""The one table of what TensorRT's releases can do, and what a request asks of them that they can't.

Names only: flags and enumerations are renumbered between releases. What the installed module has goes before the table,
see `release_here`; the table answers for releases that aren't here, such as the one on a device, and for what no module
tells: opsets.

Where the rows come from: headers at the tags v10.3.0 and v10.16, headers of 11.1 and NVIDIA's migration notes for 11.4,
the parser's changelog between them (see each row), and tensorrt_rtx 1.7 itself, which the tests ask. JetPack 6.1 and
6.2 have 10.3, JetPack 7.2.2 has 11.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from gpusq_deploy.artifacts import EngineOptions, Value
from gpusq_deploy.engines.api import TRAITS, Api, BackendName
from gpusq_deploy.engines.targets import Target
from gpusq_deploy.errors import GpusqError


class Release(Value):
    """What one release of a backend can do; it holds for later ones until the next row.

    Attributes:
        backend: Whose release.
        version: The first version that the row holds for.
        flags: Builder flags of ours that it has.
        hardware: Levels of hardware compatibility.
        limits: Attributes of ours that its builder configuration has and not all releases do.
        opset: The newest ONNX opset that its parser takes; None where it isn't known.
        evidence: Where the row comes from.
    """

    backend: BackendName
    version: str
    flags: tuple[str, ...]
    hardware: tuple[str, ...]
    limits: tuple[str, ...]
    opset: int | None
    evidence: str


_OURS = (
    "SPARSE_WEIGHTS",
    "STRIP_PLAN",
    "REFIT",
    "REFIT_IDENTICAL",
    "WEIGHT_STREAMING",
    "VERSION_COMPATIBLE",
    "ERROR_ON_TIMING_CACHE_MISS",
)
_LIMITS = ("max_num_tactics",)

RELEASES: tuple[Release, ...] = (
    Release(
        backend="tensorrt",
        version="10.3",
        flags=_OURS,
        hardware=("AMPERE_PLUS",),
        limits=(),
        opset=20,
        evidence="headers of v10.3.0; the opset is from memory of its operators.md",
    ),
    Release(
        backend="tensorrt",
        version="10.4",
        flags=_OURS,
        hardware=("AMPERE_PLUS",),
        limits=_LIMITS,
        opset=None,
        evidence="Python bindings of v10.4.0, the first with the limit; nothing says which opset is its newest",
    ),
    Release(
        backend="tensorrt",
        version="10.8",
        flags=(*_OURS, "EDITABLE_TIMING_CACHE"),
        hardware=("AMPERE_PLUS",),
        limits=_LIMITS,
        opset=None,
        evidence="the editable cache came with 10.8; nothing says which opset is its newest",
    ),
    Release(
        backend="tensorrt",
        version="10.9",
        flags=(*_OURS, "EDITABLE_TIMING_CACHE"),
        hardware=("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
        limits=_LIMITS,
        opset=22,
        evidence="the level came with 10.9, stubs of 10.13 have it; the parser's ONNX is 1.17 (opset 22) since 10.6; "
        "its changelog of 10.9 has opset 21's GroupNorm, and an undated summary of its operators.md says 9 to 22",
    ),
    Release(
        backend="tensorrt",
        version="10.14",
        flags=(*_OURS, "EDITABLE_TIMING_CACHE"),
        hardware=("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
        limits=_LIMITS,
        opset=23,
        evidence="the parser's changelog: Attention, of opset 23, came with 10.14",
    ),
    Release(
        backend="tensorrt",
        version="10.16",
        flags=(*_OURS, "EDITABLE_TIMING_CACHE"),
        hardware=("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
        limits=_LIMITS,
        opset=24,
        evidence="headers of v10.16; opset 24 by operators.md of 10.15",
    ),
    Release(
        backend="tensorrt",
        version="11.4",
        flags=(*_OURS, "EDITABLE_TIMING_CACHE"),
        hardware=("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
        limits=_LIMITS,
        opset=24,
        evidence="headers of v11.1 and the 10-to-11 migration notes; opset 24 by 11.2",
    ),
    # Asked of the module by tests/unit/engines/test_releases.py. Its BuilderFlag also names what it can't do: version
    # compatibility needs a lean runtime that isn't shipped, hardware levels are answered with "unsupported" (name
    # several targets instead), and stripping or refitting needs a CUDA driver even while building.
    Release(
        backend="tensorrt-rtx",
        version="1.7",
        flags=(
            "SPARSE_WEIGHTS",
            "STRIP_PLAN",
            "REFIT",
            "REFIT_IDENTICAL",
            "WEIGHT_STREAMING",
            "REQUIRE_USER_ALLOCATION",
        ),
        hardware=(),
        limits=_LIMITS,
        # Its parser doesn't look at the number: it takes 30 as well. 23 is the newest that is built in tests.
        opset=23,
        evidence="the module tensorrt_rtx 1.7.1.116 itself",
    ),
)


def releases_for(target: Target, backend: BackendName) -> tuple[Release, ...]:
    """The rows of a backend that are known to run on a target.

    Raises:
        GpusqError: The target's file names a row that there isn't.
    """
    versions = target.releases.get(backend, ())
    rows = tuple(row for row in RELEASES if row.backend == backend and row.version in versions)
    if len(rows) != len(versions):
        raise GpusqError(f"the table of releases lacks one of {backend} {', '.join(versions)}", place=target.name)
    return rows


def opset_problem(opset: int, rows: Sequence[Release]) -> str:
    """Why none of some releases takes a model of an opset; empty where one does, or where that isn't known."""
    newest = [row.opset for row in rows]
    known = [number for number in newest if number is not None]
    if not known or len(known) < len(newest) or opset <= max(known):
        return ""
    names = " or ".join(f"{row.backend} {row.version} (to {row.opset})" for row in rows)
    return f"opset {opset}: too new for {names}"


def release_of(backend: BackendName, version: str) -> Release:
    """The row that holds for a version; for one older than all, the oldest."""
    rows = [row for row in RELEASES if row.backend == backend]
    fitting = [row for row in rows if _number(row.version) <= _number(version)]
    return (fitting or rows[:1])[-1]


def release_here(backend: BackendName, api: Api) -> Release:
    """The row of an installed module, with the module's own flags, levels and limits in the place of the row's.

    tensorrt-rtx names more than it can do, so of what its row has only what is gone from the module is left out.
    """
    row = release_of(backend, api.__version__)
    flags = tuple(api.BuilderFlag.__members__)
    levels = tuple(name for name in api.HardwareCompatibilityLevel.__members__ if name != "NONE")
    if backend == "tensorrt-rtx":
        flags = tuple(name for name in row.flags if name in flags)
        levels = tuple(name for name in row.hardware if name in levels)
    limits = tuple(name for name in _LIMITS if hasattr(api.IBuilderConfig, name))
    return msgspec.structs.replace(row, version=api.__version__, flags=flags, hardware=levels, limits=limits)


def option_problems(options: EngineOptions, release: Release, *, driver: bool) -> list[str]:
    """Everything that a release can't do of what is asked, one sentence each; empty where it can do all.

    Args:
        options: What is asked.
        release: Who is to do it.
        driver: Whether a CUDA driver answers where the engine is built.
    """
    name = f"{release.backend} {release.version}"
    return [
        *(f"{option}: {name} has no builder flag {flag}" for option, flag in _flags(options, release)),
        *_limit_problems(options, release, name),
        *_hardware_problems(options, release, name),
        *_driver_problems(options, release, name, driver=driver),
        *_cache_problems(options, release, name),
    ]


def wanted_flags(options: EngineOptions) -> Iterator[tuple[str, str]]:
    """The builder flags that options mean, each with the option's name."""
    if options.strip:
        yield "strip", "STRIP_PLAN"
        yield "strip", "REFIT"
    if options.weight_streaming:
        yield "weight-streaming", "WEIGHT_STREAMING"
    if options.version_compatible:
        yield "version-compatible", "VERSION_COMPATIBLE"
    if options.capturable:
        yield "capturable", "REQUIRE_USER_ALLOCATION"
    if options.editable_cache:
        yield "editable-cache", "EDITABLE_TIMING_CACHE"
    if options.error_on_cache_miss:
        yield "error-on-cache-miss", "ERROR_ON_TIMING_CACHE_MISS"


def _flags(options: EngineOptions, release: Release) -> Iterator[tuple[str, str]]:
    timed = TRAITS[release.backend].timing_cache
    for option, flag in wanted_flags(options):
        # Without timings at all, one sentence about the cache says it better.
        if flag not in release.flags and (timed or not option.endswith(("cache", "miss"))):
            yield option, flag


def _limit_problems(options: EngineOptions, release: Release, name: str) -> Iterator[str]:
    if options.tactics is not None and "max_num_tactics" not in release.limits:
        yield f"tactics={options.tactics}: {name} has no such limit; level=0...5 has a say in how many are tried"


def _hardware_problems(options: EngineOptions, release: Release, name: str) -> Iterator[str]:
    level = options.hardware
    if level is not None and level.upper().replace("-", "_") not in release.hardware:
        has = ", ".join(found.lower().replace("_", "-") for found in release.hardware)
        yield f"hardware={level}: {name} has {has or 'no such levels: name each --target instead'}"


def _driver_problems(options: EngineOptions, release: Release, name: str, *, driver: bool) -> Iterator[str]:
    if options.strip and release.backend == "tensorrt-rtx" and not driver:
        yield f"strip: {name} needs a CUDA driver to build an engine without weights, and none answers here"


def _cache_problems(options: EngineOptions, release: Release, name: str) -> Iterator[str]:
    asked = options.timing_cache is not None or options.editable_cache or options.error_on_cache_miss
    if asked and not TRAITS[release.backend].timing_cache:
        yield f"timing-cache: {name} times nothing while it builds, so it has no timing cache"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
