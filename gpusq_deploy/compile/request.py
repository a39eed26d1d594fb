"""What gpusq-build was asked, what contradicts itself in that, and who hears how it goes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpusq_deploy.artifacts import (
    AMAX,
    FP8_RECIPE,
    INT4_RECIPE,
    NO_OPTIONS,
    ArchSpec,
    BatchRange,
    Calibrator,
    EngineOptions,
    FloatPrecision,
    PruneMethod,
    QuantizedPrecision,
    Recipe,
    RewriteChoice,
    load_recipe,
)
from gpusq_deploy.engines import Target
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import is_onnx
from gpusq_deploy.quantize import Int8OutputRequest

# What is told of a request and of its recipe alike.
_PACK = "--pack needs --int8 --sparse: it stores 2:4 INT8 weights"
# The batch sizes that a build is for where nobody names any.
USUAL_BATCH = BatchRange(minimum=1, optimum=8, maximum=32)
UNUSED_RECIPE = "--recipe needs --int8, --fp8, --int4 or --sparse: it says which layers those mean"
_OUTPUTS = "--sparse-outputs needs --int8, --sparse and --calib: it places quantisers by data"


class RequestError(GpusqError):
    """What was asked contradicts itself, or part of it would change nothing. A mistake in the command: exit 2."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskData:
    """Labelled data to take the task's measure on, as gpusq-eval does, and the points of it that may be lost.

    `annotations` is COCO's file of boxes; `reduce_labels`: 0 in label maps is no class.
    """

    data: str
    annotations: Path | None = None
    reduce_labels: bool = False
    max_drop: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRequest:
    """Everything that gpusq-build was asked. `recipe` None is the default one; `calib` None means no data.

    `int8` quantises the layers that the recipe names, to INT8 or whatever it says.

    `pack` stores 2:4 INT8 weights in packed form too. `ranges` are those of gpusq-calibrate, or a TensorRT calibration
    cache; `calibrator` is for rules that name none; None means amax. `recalibrate` sets recorded ranges aside.
    `calib_samples` is how many of the data's samples are used at most, spread evenly; None: all.
    `allow_pickle` runs code that the checkpoint names; `state_dict` chooses among several that it holds.
    `prune` makes the layers that should be sparse 2:4 first, and `permute` orders channels for it.
    `sparse_outputs` wants INT8 outputs for sparse layers where that is predicted to hold.
    `rewrites` says which of the rewrites for speed are applied: all, or those that are seen to help, compiled here.
    `input_name` and `output_names` are those of the graph; None and empty: the model's own.
    `min_sqnr` (dB) and `min_agreement` (a share) are what the verification must reach; `evaluation` what the task's
    measure must keep.
    `keep_grid` keeps the grids of weights that the checkpoint records; else their scales are computed anew.
    `expect_outputs` is an .npz of inputs and what the model's producer answers: the built graph is held against it.
    `dump_passes` is a new folder for the graph after each pass; it can't lie in the bundle.
    No `targets` means no engine: the bundle holds the ONNX model alone.

    Raises:
        RequestError: Two wishes contradict each other, or one needs another; see also `require_recipe`.
    """

    model: Path
    arch: ArchSpec | None
    quantize: bool
    sparse: bool
    float_type: FloatPrecision
    recipe: Recipe | None
    calib: str | None
    targets: Sequence[Target]
    batch: BatchRange
    opset: int
    out: Path
    force: bool
    pack: bool = False
    ranges: Path | None = None
    calibrator: Calibrator | None = None
    recalibrate: bool = False
    allow_pickle: bool = False
    state_dict: str | None = None
    prune: PruneMethod | None = None
    permute: bool = False
    engine: EngineOptions = NO_OPTIONS
    min_sqnr: float | None = None
    min_agreement: float | None = None
    sparse_outputs: Int8OutputRequest | None = None
    rewrites: RewriteChoice = "all"
    input_name: str | None = None
    output_names: tuple[str, ...] = ()
    calib_samples: int | None = None
    dump_passes: Path | None = None
    keep_grid: bool = True
    expect_outputs: Path | None = None
    evaluation: TaskData | None = None

    def __post_init__(self) -> None:
        checks = (
            *(_range_problems, _data_problems, _prune_problems, _sparsity_problems),
            *(_onnx_problems, _limit_problems, _evaluation_problems, _producer_problems, _dump_problems),
        )
        for problems in checks:
            for problem in problems(self):
                raise RequestError(problem)

    @property
    def own_recipe(self) -> bool:
        """Whether the user named a recipe, and not a precision alone, which means a shipped one."""
        return self.recipe is not None and self.recipe not in [load_recipe(Path(n)) for n in (FP8_RECIPE, INT4_RECIPE)]

    @property
    def usual_calibrator(self) -> Calibrator:
        """The calibrator of rules that name none."""
        return AMAX if self.calibrator is None else self.calibrator

    def require_recipe(self, recipe: Recipe) -> None:
        """Refuse a recipe under which something that was asked would change nothing.

        Raises:
            RequestError: Ranges without a layer that has any, or INT8's options without an INT8 layer.
        """
        made: frozenset[QuantizedPrecision] = recipe.precisions if self.quantize else frozenset()
        if (self.calibrator or self.ranges) and not made & {"int8", "fp8"}:
            raise RequestError("--calibrator and --ranges need --int8 or --fp8: other layers have no ranges")
        if self.pack and "int8" not in made:
            raise RequestError(_PACK)
        if self.sparse_outputs is not None and "int8" not in made:
            raise RequestError(_OUTPUTS)


def _range_problems(asked: BuildRequest) -> Iterator[str]:
    if asked.recipe is not None and not (asked.quantize or asked.sparse):
        yield UNUSED_RECIPE
    if (asked.calibrator or asked.ranges) and not asked.quantize:
        yield "--calibrator and --ranges need --int8 or --fp8"
    if asked.calibrator and asked.ranges:
        yield "--calibrator changes nothing about --ranges: give it to gpusq-calibrate"
    if asked.calibrator and asked.calib is None:
        yield "--calibrator needs --calib: recorded ranges stay as they are"


def _data_problems(asked: BuildRequest) -> Iterator[str]:
    if asked.recalibrate and (asked.calib is None or asked.ranges is not None):
        yield "--recalibrate needs --calib, and no --ranges"
    if asked.calib_samples is not None and asked.calib is None:
        yield "--calib-samples needs --calib"


def _prune_problems(asked: BuildRequest) -> Iterator[str]:
    if asked.permute and asked.prune is None:
        yield "--permute needs --prune: it orders channels for it"
    if asked.prune is not None and not asked.sparse:
        yield "--prune needs --sparse: the recipe says which layers that means"
    if asked.prune is not None and asked.ranges is not None:
        yield "--prune changes the weights: the --ranges of another model don't hold; give --calib"
    if asked.prune not in {None, "magnitude"} and asked.calib in {None, "random"}:
        yield f"--prune {asked.prune} learns from data: give real samples with --calib"


def _onnx_problems(asked: BuildRequest) -> Iterator[str]:
    """What asks for a module, of which an ONNX file has none."""
    if not is_onnx(asked.model):
        return
    if asked.prune is not None:
        yield "--prune takes a checkpoint: prune that, with gpusq-compress, and export it to ONNX"
    if asked.state_dict is not None or asked.allow_pickle:
        yield "--state-dict and --allow-pickle are for checkpoints: an ONNX file holds one model, and no code"
    if asked.recalibrate or not asked.keep_grid:
        yield "--recalibrate and --no-keep-grid set aside what a checkpoint records: a float ONNX file records nothing"


def _sparsity_problems(asked: BuildRequest) -> Iterator[str]:
    if asked.sparse_outputs is not None and (not (asked.quantize and asked.sparse) or asked.calib is None):
        yield _OUTPUTS
    if asked.pack and not (asked.quantize and asked.sparse):
        yield _PACK


def _limit_problems(asked: BuildRequest) -> Iterator[str]:
    if asked.min_sqnr is None and asked.min_agreement is None:
        return
    if asked.calib in {None, "random"} and asked.expect_outputs is None:
        yield "--min-sqnr and --min-agreement are measured on real samples: give them with --calib or --expect-outputs"
    if asked.float_type == "bf16":
        yield "--min-sqnr and --min-agreement can't be checked with --bf16: the CPU can't run it"
    if asked.min_sqnr is not None and not math.isfinite(asked.min_sqnr):
        yield "--min-sqnr is a number of decibels"
    if asked.min_agreement is not None and not 0 <= asked.min_agreement <= 1:
        yield "--min-agreement is a share, from 0 to 1"


def _evaluation_problems(asked: BuildRequest) -> Iterator[str]:
    if asked.evaluation is None:
        return
    if asked.float_type == "bf16":
        yield "--eval can't be measured with --bf16: the CPU can't run it"
    if asked.allow_pickle:
        yield "--eval loads the model again without running its code: it doesn't go with --allow-pickle"
    drop = asked.evaluation.max_drop
    if drop is not None and not 0 <= drop <= 100:
        yield "--max-drop is a number of points, from 0 to 100"


def _producer_problems(asked: BuildRequest) -> Iterator[str]:
    if asked.expect_outputs is not None and asked.float_type == "bf16":
        yield "--expect-outputs can't be checked with --bf16: the CPU can't run it"
    if not asked.keep_grid and not asked.quantize:
        yield "--no-keep-grid needs --int8: other layers have no grid"


def _dump_problems(asked: BuildRequest) -> Iterator[str]:
    if asked.dump_passes is not None and asked.dump_passes.resolve().is_relative_to(asked.out.resolve()):
        yield "--dump-passes can't lie in the bundle: name a folder outside --out"
