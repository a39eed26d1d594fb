"""What can be asked of a build, and the request that it comes to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from gpusq_deploy.api.arguments import (
    DEFAULT_BATCH,
    PathLike,
    batch_ranges,
    path_of,
    say_default_target,
    spec_of,
    targets_of,
    whole_range,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.progress import Reporter

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import (
        ArchArgument,
        ArchSpec,
        BatchRange,
        CalibratorName,
        FloatPrecision,
        PruneMethod,
        QuantizedPrecision,
        Recipe,
        RewriteChoice,
    )
    from gpusq_deploy.compile import BuildRequest, TaskData
    from gpusq_deploy.engines import Target
    from gpusq_deploy.quantize import Int8OutputRequest


class BuildOptions(TypedDict, total=False):
    """Further options of `build` and `preview`; what is left out is as gpusq-build does without its option.

    Attributes:
        arch: The architecture, such as `"timm:vit_small_patch16_224"`, where the checkpoint doesn't describe itself;
            of an ONNX file, for its preprocessing.
        arch_args: Arguments of the architecture, by name or as `"K=V"`.
        state_dict: Which of the file's state dicts, where it holds several.
        allow_pickle: Run code that the checkpoint names; only for a file that you made yourself.
        float_type: The type of everything that isn't quantised: `"fp16"` (the default), `"bf16"` or `"fp32"`.
        batch: `"MIN:OPT:MAX"`, one size, or several for as many profiles; `"1:8:32"`.
        opset: ONNX opset, 19 to 23; None: the lowest that can say it, from 20 on.
        input_name: The graph's input; None: as the model's forward names it.
        output_names: The graph's outputs, in order; empty: the model's own.
        calibrator: For rules of the recipe that name none; None: amax.
        samples: Use at most so many of the data's samples, spread evenly; None: all.
        ranges: A file of `calibrate`, a TensorRT calibration cache, or an ONNX Runtime calibration table.
        recalibrate: Set aside the ranges that the checkpoint records.
        keep_grid: Keep the INT8 grids of weights that the checkpoint records (the default), as they were trained.
        expect_outputs: An .npz of inputs and the quantised model's own outputs: what is built is compared with them,
            and `min_sqnr` and `min_agreement` are asked of that too.
        min_sqnr: Fail, and keep the evidence, where an output's SQNR to the float model is lower, in dB.
        min_agreement: The same of top-1 agreement, a share.
        eval_data: Labelled data, as `evaluate` takes it: the task's measure of the model as given and of the built one
            go into the receipt.
        annotations: COCO's file of the boxes in its images, for a detector.
        reduce_labels: In its label maps 0 is no class and 1 is the first.
        max_drop: Fail, and keep the evidence, where the measure drops by more points.
        prune: Prune the recipe's layers to 2:4 first, by this method.
        permute: Permute channels before that.
        sparse_outputs: Let sparse INT8 layers write INT8 where their predicted SQNR is at least this, in dB.
        pack: Also store 2:4 INT8 weights packed.
        engine_options: Options of the engine builder, `"NAME=VALUE"` each (docs/engines.md).
        rewrites: Apply `"all"` graph rewrites (the default), or those that are `"measured"` to help, compiled here.
        dump_passes: A new folder for the graph after each pass, outside the bundle.
        force: Replace a bundle that is there.
    """

    arch: ArchSpec | str | None
    arch_args: Mapping[str, ArchArgument] | Sequence[str]
    state_dict: str | None
    allow_pickle: bool
    float_type: FloatPrecision
    batch: BatchRange | int | str | Sequence[BatchRange | int | str]
    opset: int | None
    input_name: str | None
    output_names: Sequence[str]
    calibrator: CalibratorName | None
    samples: int | None
    ranges: PathLike | None
    recalibrate: bool
    keep_grid: bool
    expect_outputs: PathLike | None
    min_sqnr: float | None
    min_agreement: float | None
    eval_data: PathLike | None
    annotations: PathLike | None
    reduce_labels: bool
    max_drop: float | None
    prune: PruneMethod | None
    permute: bool
    sparse_outputs: float | None
    pack: bool
    engine_options: Sequence[str]
    rewrites: RewriteChoice
    dump_passes: PathLike | None
    force: bool


class BuildArguments(BuildOptions, total=False):
    """All that can be asked of a build from a checkpoint; see `build`."""

    data: PathLike | None
    precision: QuantizedPrecision | None
    sparse: bool
    targets: Sequence[str | Target] | None
    recipe: PathLike | None


def request_of(model: PathLike, out: PathLike, asked: BuildArguments, reporter: Reporter) -> BuildRequest:
    """What is asked of a build from a checkpoint, if targets and builders can do it.

    Raises:
        TypeError: There is no such option.
        GpusqError: See `BuildRequest` and `expressible_recipe`; or the model is a bundle.
    """
    from gpusq_deploy.compile import expressible_recipe

    for name in asked.keys() - BuildArguments.__annotations__.keys():
        raise TypeError(f"a build has no option {name!r}")
    place = Path(model)
    _require_checkpoint(place)
    request = _request(place, Path(out), asked)
    expressible_recipe(request)
    say_default_target(asked.get("targets"), reporter)
    # Last, for it loads torch.
    return replace(request, arch=spec_of(place, asked.get("arch"), asked.get("arch_args", ())))


def _require_checkpoint(model: Path) -> None:
    from gpusq_deploy.frontend import kind_of

    kind = kind_of(model)
    if kind == "bundle":
        raise GpusqError("a bundle is built already", place=str(model), hint="add_engines builds further engines of it")


def _request(model: Path, out: Path, asked: BuildArguments) -> BuildRequest:
    """All but the architecture, which nothing depends on yet."""
    from gpusq_deploy.artifacts import Calibrator
    from gpusq_deploy.compile import UNUSED_RECIPE, BuildRequest, RequestError
    from gpusq_deploy.engines import options_from_text

    if asked.get("recipe") is not None and asked.get("precision") is None and not asked.get("sparse"):
        raise RequestError(UNUSED_RECIPE)  # before the file is read
    recipe = _recipe(asked.get("recipe"), asked.get("precision"))
    ranges = batch_ranges(asked.get("batch", DEFAULT_BATCH))
    float_type, calibrator = asked.get("float_type", "fp16"), asked.get("calibrator")
    return BuildRequest(
        model=model,
        arch=None,
        state_dict=asked.get("state_dict"),
        quantize=asked.get("precision") is not None,
        sparse=asked.get("sparse", False),
        float_type=float_type,
        recipe=recipe,
        calib=_text(asked.get("data")),
        calib_samples=asked.get("samples"),
        calibrator=None if calibrator is None else Calibrator(name=calibrator),
        ranges=path_of(asked.get("ranges")),
        recalibrate=asked.get("recalibrate", False),
        keep_grid=asked.get("keep_grid", True),
        expect_outputs=path_of(asked.get("expect_outputs")),
        allow_pickle=asked.get("allow_pickle", False),
        targets=targets_of(asked.get("targets")),
        batch=whole_range(ranges),
        engine=options_from_text(asked.get("engine_options", ()), profiles=ranges if len(ranges) > 1 else ()),
        opset=_opset(float_type, recipe, asked.get("precision")) if (opset := asked.get("opset")) is None else opset,
        input_name=asked.get("input_name"),
        output_names=tuple(asked.get("output_names", ())),
        out=out,
        force=asked.get("force", False),
        pack=asked.get("pack", False),
        prune=asked.get("prune"),
        permute=asked.get("permute", False),
        min_sqnr=asked.get("min_sqnr"),
        min_agreement=asked.get("min_agreement"),
        evaluation=_task_data(asked),
        sparse_outputs=_int8_outputs(asked.get("sparse_outputs")),
        rewrites=asked.get("rewrites", "all"),
        dump_passes=path_of(asked.get("dump_passes")),
    )


def _task_data(asked: BuildArguments) -> TaskData | None:
    """The labelled data, where some is named.

    Raises:
        RequestError: What is said of it without it.
        GpusqError: It isn't there.
    """
    from gpusq_deploy.artifacts import require_input
    from gpusq_deploy.compile import RequestError, TaskData

    data, annotations = _text(asked.get("eval_data")), path_of(asked.get("annotations"))
    reduce_labels, max_drop = asked.get("reduce_labels", False), asked.get("max_drop")
    if data is None:
        if annotations is not None or reduce_labels or max_drop is not None:
            raise RequestError("--max-drop, --annotations and --reduce-labels need --eval: they say how it is measured")
        return None
    if annotations is not None:
        require_input(annotations)
    return TaskData(data=data, annotations=annotations, reduce_labels=reduce_labels, max_drop=max_drop)


def _int8_outputs(least_db: float | None) -> Int8OutputRequest | None:
    from gpusq_deploy.quantize import Int8OutputRequest

    return None if least_db is None else Int8OutputRequest(least_db=least_db)


def _recipe(recipe: PathLike | None, quantized: QuantizedPrecision | None) -> Recipe | None:
    """The recipe that was named, else the one that the precision means; None for the default one.

    Raises:
        GpusqError: The recipe can't be read, or makes nothing of that precision.
    """
    from gpusq_deploy.artifacts import FP8_RECIPE, INT4_RECIPE, load_recipe

    if quantized is None:
        return None if recipe is None else load_recipe(Path(recipe))
    usual = {"int8": None, "fp8": Path(FP8_RECIPE), "int4": Path(INT4_RECIPE)}
    found = load_recipe(usual[quantized] if recipe is None else Path(recipe))
    if quantized not in found.precisions:
        makes = " or ".join(f"--{name}" for name in sorted(found.precisions)) or "neither --int8, --fp8 nor --int4"
        raise GpusqError(f"the recipe makes no layer {quantized.upper()}", place=f"--recipe {recipe}", hint=makes)
    return None if recipe is None and quantized == "int8" else found


def _opset(float_type: FloatPrecision, recipe: Recipe | None, quantized: QuantizedPrecision | None) -> int:
    """The lowest that says the types, from 20 on."""
    from gpusq_deploy.artifacts import OPSETS

    types = () if quantized is None else (quantized,) if recipe is None else recipe.precisions
    return max([21 if float_type == "bf16" else 20, *(OPSETS[name] for name in types)])


def _text(data: PathLike | None) -> str | None:
    return None if data is None else os.fspath(data)
