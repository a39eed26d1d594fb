"""The manifest: what a bundle holds, how it was made, and digests to check it by."""

from __future__ import annotations

from typing import Literal

from gpusq_deploy.artifacts.arch import ArchSpec, Preprocessing
from gpusq_deploy.artifacts.base import Value
from gpusq_deploy.artifacts.sparsity import SparsityReport


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


class Manifest(Value):
    """The bundle's table of contents. Written last; a folder without it is not a bundle."""

    schema: Literal["gpusq.bundle/1"] = "gpusq.bundle/1"
    created: str
    versions: dict[str, str]
    source: ModelSource
    preprocessing: Preprocessing
    recipe: str
    options: dict[str, str]
    batch: BatchRange
    opset: int
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    synthetic_calibration: bool
    sparsity: SparsityReport
    files: tuple[BundleFile, ...]
    notes: tuple[str, ...] = ()
