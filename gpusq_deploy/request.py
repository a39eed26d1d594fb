"""What gpusq-build was asked, and who hears how it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.artifacts.calibration import AMAX, Calibrator
from gpusq_deploy.artifacts.manifest import BatchRange, EngineOptions
from gpusq_deploy.artifacts.plan import FloatPrecision
from gpusq_deploy.artifacts.sparsity import PruneMethod
from gpusq_deploy.placements import OutputWish
from gpusq_deploy.targets import Target

NO_OPTIONS = EngineOptions()
RewriteChoice = Literal["measured", "all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRequest:
    """Everything that gpusq-build was asked. `recipe` None is the default one; `calib` None means no data.

    `int8` quantises the layers that the recipe names, to INT8 or whatever it says.

    `pack` stores 2:4 INT8 weights in packed form too. `ranges` are those of gpusq-calibrate, or a TensorRT calibration
    cache; `calibrator` is for rules that name none. `recalibrate` sets recorded ranges aside.
    `allow_pickle` runs code that the checkpoint names; `state_dict` chooses among several that it holds.
    `prune` makes the layers that should be sparse 2:4 first, and `permute` orders channels for it.
    `sparse_outputs` wants INT8 outputs for sparse layers where that is predicted to hold.
    `rewrites` says which of the rewrites for speed are applied: those that were seen to help, or all.
    `input_name` and `output_names` are those of the graph; None and empty: the model's own.
    `min_sqnr` (dB) and `min_agreement` (a share) are what the verification must reach.
    """

    model: Path
    arch: ArchSpec | None
    int8: bool
    sparse: bool
    remainder: FloatPrecision
    recipe: Path | None
    calib: str | None
    targets: Sequence[Target]
    batch: BatchRange
    opset: int
    out: Path
    force: bool
    pack: bool = False
    ranges: Path | None = None
    calibrator: Calibrator = AMAX
    recalibrate: bool = False
    allow_pickle: bool = False
    state_dict: str | None = None
    prune: PruneMethod | None = None
    permute: bool = False
    engine: EngineOptions = NO_OPTIONS
    min_sqnr: float | None = None
    min_agreement: float | None = None
    sparse_outputs: OutputWish | None = None
    rewrites: RewriteChoice = "measured"
    input_name: str | None = None
    output_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Reporter:
    """Who hears what is going on: sentences, and progress as label, done, total."""

    say: Callable[[str], None]
    progress: Callable[[str, int, int], None]
