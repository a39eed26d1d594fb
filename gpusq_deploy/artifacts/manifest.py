"""The manifest: what a bundle holds, how it was made, and digests to check it by."""

from __future__ import annotations

from typing import Any, Literal, cast

import msgspec

from gpusq_deploy.artifacts.arch import ArchSpec, Preprocessing
from gpusq_deploy.artifacts.base import Value
from gpusq_deploy.artifacts.build_options import BuildOptionsRecord, build_options_from_0_1
from gpusq_deploy.artifacts.sparsity import SparsityReport

# What the builders' bindings take: counts of 32 bits, sizes in bytes of 64, both signed.
_MOST, _MOST_BYTES = 2**31 - 1, 2**63 - 1


class BundleFile(Value):
    """One file of the bundle: path below it, size in bytes, digest."""

    path: str
    size: int
    digest: str


class ModelSource(Value):
    """The checkpoint that the bundle was made from."""

    file: str
    digest: str
    format: str
    arch: ArchSpec


class BatchRange(Value):
    """The batch sizes that an engine accepts, and the one it is tuned for. All equal: a static batch."""

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise ValueError("a batch range needs 1 <= MIN <= OPT <= MAX")

    @property
    def static(self) -> bool:
        """True where only one batch size is allowed."""
        return self.minimum == self.maximum

    def __str__(self) -> str:
        return f"{self.minimum}:{self.optimum}:{self.maximum}"


class EngineOptions(Value):
    """How the engine builder is asked to work, beyond the model, the target and the batch; None leaves it the choice.

    Attributes:
        profiles: Batch ranges that the plan is tuned for, one optimisation profile each; none: one for the whole range.
        workspace_mib: Most scratch memory that a layer may use.
        shared_memory_kib: Most shared memory that a kernel may use.
        tactics: Most kernels to try for a layer.
        level: The builder's 0 (fast build) to 5 (fast engine).
        strip: A plan without weights, which takes them from the bundle's model when it is loaded.
        weight_streaming: A plan that can keep part of its weights on the host.
        version_compatible: A plan that later versions of the runtime take too.
        capturable: A plan whose inferences can always be captured as a CUDA graph.
        hardware: A plan that other GPUs take too.
        timing_cache: Folder of kernel timings, kept from one build to the next.
        editable_cache: Record timings so that kernels can be pinned in the cache.
        error_on_cache_miss: Fail rather than time a kernel that the cache lacks: the build is then reproducible.
    """

    profiles: tuple[BatchRange, ...] = ()
    workspace_mib: int | None = None
    shared_memory_kib: int | None = None
    tactics: int | None = None
    level: int | None = None
    strip: bool = False
    weight_streaming: bool = False
    version_compatible: bool = False
    capturable: bool = False
    hardware: Literal["ampere-plus", "same-compute-capability"] | None = None
    timing_cache: str | None = None
    editable_cache: bool = False
    error_on_cache_miss: bool = False

    @property
    def portable(self) -> EngineOptions:
        """What of this belongs to the bundle: a timing cache belongs to the machine."""
        return EngineOptions(
            profiles=self.profiles,
            workspace_mib=self.workspace_mib,
            shared_memory_kib=self.shared_memory_kib,
            tactics=self.tactics,
            level=self.level,
            strip=self.strip,
            weight_streaming=self.weight_streaming,
            version_compatible=self.version_compatible,
            capturable=self.capturable,
            hardware=self.hardware,
        )

    def __post_init__(self) -> None:
        limits = (
            ("workspace", self.workspace_mib, _MOST_BYTES >> 20),
            ("shared-memory", self.shared_memory_kib, _MOST_BYTES >> 10),
            ("tactics", self.tactics, _MOST),
        )
        for name, limit, most in limits:
            if limit is not None and not 1 <= limit <= most:
                raise ValueError(f"{name} must be positive, and {most} at most")
        if self.level is not None and not 0 <= self.level <= 5:
            raise ValueError("level must be 0 to 5")
        if (self.editable_cache or self.error_on_cache_miss) and self.timing_cache is None:
            raise ValueError("editable-cache and error-on-cache-miss need timing-cache=FOLDER")


class Manifest(Value):
    """The bundle's table of contents. Written last; a folder without it is not a bundle.

    `engine` holds for engines that are built later, on a device.
    """

    schema: Literal["gpusq.bundle/1"] = "gpusq.bundle/1"
    created: str
    versions: dict[str, str]
    source: ModelSource
    preprocessing: Preprocessing
    recipe: str
    options: BuildOptionsRecord
    batch: BatchRange
    opset: int
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    synthetic_calibration: bool
    sparsity: SparsityReport
    files: tuple[BundleFile, ...]
    engine: EngineOptions = EngineOptions()
    notes: tuple[str, ...] = ()

    @classmethod
    def upgraded(cls, data: bytes) -> bytes:
        """As 0.1 wrote it, all `options` are texts."""
        try:
            content: Any = msgspec.json.decode(data)
            old = content["options"]
            if not isinstance(old["int8"], str):
                return data
            content["options"] = build_options_from_0_1(cast("dict[str, str]", old))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError, ValueError):
            return data
        return msgspec.json.encode(content)


NO_OPTIONS = EngineOptions()
