"""What reaches a builder's configuration: real enumerations of TensorRT-RTX, a pretended configuration."""

from __future__ import annotations

import importlib.util
import types
from typing import Any, cast

import msgspec
import pytest

from gpusq_deploy.artifacts.manifest import BatchRange, EngineOptions
from gpusq_deploy.engines.api import find_api
from gpusq_deploy.engines.build_log import BuildLog
from gpusq_deploy.engines.configure import BuildSettings, add_profiles, apply_settings
from gpusq_deploy.errors import GpusqError

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
)
BATCH = BatchRange(minimum=1, optimum=8, maximum=32)


class Config:
    """A builder configuration that remembers what it was told."""

    def __init__(self) -> None:
        self.flags: list[str] = []
        self.limits: dict[str, int] = {}
        self.profiles: list[object] = []
        self.refuses = False

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.limits[pool.name] = size

    def add_optimization_profile(self, profile: object) -> int:
        self.profiles.append(profile)
        return -1 if self.refuses else len(self.profiles) - 1


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shapes[name] = [tuple(shape) for shape in shapes]


def applied(options: EngineOptions, *, sparse: bool = False) -> Config:
    config = Config()
    api: Any = find_api("tensorrt-rtx")
    apply_settings(api, cast("Any", config), BuildSettings(batch=BATCH, sparse=sparse, options=options))
    return config


@needs_rtx
@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (EngineOptions(), []),
        (EngineOptions(strip=True), ["STRIP_PLAN", "REFIT"]),
        (EngineOptions(weight_streaming=True, version_compatible=True), ["WEIGHT_STREAMING", "VERSION_COMPATIBLE"]),
        (
            EngineOptions(timing_cache="c", editable_cache=True, error_on_cache_miss=True),
            ["EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS"],
        ),
    ],
)
def test_options_become_flags(options: EngineOptions, flags: list[str]) -> None:
    assert applied(options).flags == flags
    assert applied(options, sparse=True).flags == ["SPARSE_WEIGHTS", *flags]


@needs_rtx
def test_limits_are_in_bytes_and_levels_by_name() -> None:
    found: Any = applied(
        EngineOptions(workspace_mib=3, shared_memory_kib=48, tactics=7, level=2, hardware="same-compute-capability")
    )
    assert found.limits == {"WORKSPACE": 3 * 1024 * 1024, "TACTIC_SHARED_MEMORY": 48 * 1024}
    assert (found.max_num_tactics, found.builder_optimization_level) == (7, 2)
    assert found.hardware_compatibility_level.name == "SAME_COMPUTE_CAPABILITY"
    untouched: Any = applied(EngineOptions())
    assert untouched.limits == {}
    assert not hasattr(untouched, "max_num_tactics")


@needs_rtx
@pytest.mark.parametrize("name", ["workspace_mib", "shared_memory_kib", "tactics"])
def test_the_largest_limits_are_taken_by_the_builder_itself(name: str) -> None:
    most = {"workspace_mib": (2**63 - 1) >> 20, "shared_memory_kib": (2**63 - 1) >> 10, "tactics": 2**31 - 1}
    api: Any = find_api("tensorrt-rtx")
    log = BuildLog()
    logger = log.as_logger(api)
    config = api.Builder(logger).create_builder_config()
    options = msgspec.convert({name: most[name]}, EngineOptions)
    apply_settings(api, config, BuildSettings(batch=BATCH, options=options))


def profiles_of(config: Config, *batches: BatchRange, shape: tuple[int, ...] = (-1, 3)) -> None:
    api: Any = types.SimpleNamespace(Dims=tuple)
    builder: Any = types.SimpleNamespace(create_optimization_profile=Profile)
    settings = BuildSettings(batch=BATCH, options=EngineOptions(profiles=batches))
    add_profiles(api, builder, cast("Any", config), {"x": shape}, settings, place="m")


def test_every_batch_range_is_a_profile() -> None:
    config = Config()
    profiles_of(config, BatchRange(minimum=1, optimum=1, maximum=1), BatchRange(minimum=4, optimum=8, maximum=32))
    found = [cast("Profile", profile).shapes["x"] for profile in config.profiles]
    assert found == [[(1, 3), (1, 3), (1, 3)], [(4, 3), (8, 3), (32, 3)]]
    whole = Config()
    profiles_of(whole)
    assert [cast("Profile", profile).shapes["x"] for profile in whole.profiles] == [[(1, 3), (8, 3), (32, 3)]]


def test_a_refused_profile_is_named() -> None:
    config = Config()
    config.refuses = True
    with pytest.raises(GpusqError, match="refuses the batch range 1:8:32"):
        profiles_of(config)
