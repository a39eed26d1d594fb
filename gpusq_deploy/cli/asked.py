"""From gpusq-build's command line to what it asks: flags become values here, and `BuildRequest` has the rules."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpusq_deploy.cli.command import on_command_line
from gpusq_deploy.cli.common import chosen_arch, parse_batch, say
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import (
        BatchRange,
        CalibratorName,
        FloatPrecision,
        PruneMethod,
        QuantizedPrecision,
        RewriteChoice,
    )
    from gpusq_deploy.compile import BuildRequest
    from gpusq_deploy.engines import Target
    from gpusq_deploy.quantize import Int8OutputRequest

DEFAULT_TARGET = "a100"
# Of a build that ends with the ONNX model.
NO_TARGET = "none"
# By benchmarks/peers/sparse_outputs.py: 30 costs DINOv2 14.5 dB in all, 33 costs it 0.8.
_LEAST_OUTPUT_DB = 33.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """gpusq-build's arguments and options, as click hands them over; its `--help` says what each means."""

    model: Path
    arch: str | None
    arch_args: tuple[str, ...]
    state_dict: str | None
    int8: bool
    fp8: bool
    int4: bool
    sparse: bool
    fp16: bool
    bf16: bool
    fp32: bool
    pack: bool
    unpack: bool
    prune: PruneMethod | None
    permute: bool
    sparse_outputs: str | None
    recipe: Path | None
    calib: str | None
    calib_samples: int | None
    calibrator: CalibratorName | None
    ranges: Path | None
    recalibrate: bool
    allow_pickle: bool
    targets: tuple[str, ...]
    min_sqnr: float | None
    min_agreement: float | None
    batches: tuple[str, ...]
    engine_options: tuple[str, ...]
    rewrites: RewriteChoice
    opset: int | None
    input_name: str | None
    output_names: str | None
    out: Path | None
    force: bool
    dry_run: bool
    dump_passes: Path | None
    as_json: bool


def build_request(given: Given) -> BuildRequest:
    """What is asked of a build from a checkpoint, if targets and builders can do it.

    Raises:
        click.UsageError: Words that mean nothing, or two that exclude each other.
        GpusqError: See `BuildRequest` and `expressible_recipe`.
    """
    from gpusq_deploy.compile import expressible_recipe

    request = _request(given)
    expressible_recipe(request)
    if not given.targets:
        say(f"no --target: building for {DEFAULT_TARGET}")
    # Last, for it loads torch.
    return replace(request, arch=chosen_arch(given.model, given.arch, given.arch_args))


def _request(given: Given) -> BuildRequest:
    from gpusq_deploy.artifacts import Calibrator
    from gpusq_deploy.compile import BuildRequest
    from gpusq_deploy.engines import options_from_text

    quantized = _quantized(given)
    recipe, types = _recipe(given.recipe, quantized)
    float_type = _float_type(given)
    batch, profiles = _batches(given.batches)
    return BuildRequest(
        model=given.model,
        arch=None,
        state_dict=given.state_dict,
        quantize=quantized is not None,
        sparse=given.sparse,
        float_type=float_type,
        recipe=recipe,
        calib=given.calib,
        calib_samples=given.calib_samples,
        calibrator=None if given.calibrator is None else Calibrator(name=given.calibrator),
        ranges=given.ranges,
        recalibrate=given.recalibrate,
        allow_pickle=given.allow_pickle,
        targets=chosen_targets(given),
        batch=batch,
        engine=options_from_text(given.engine_options, profiles=profiles),
        opset=_opset(float_type, types) if given.opset is None else given.opset,
        input_name=given.input_name,
        output_names=() if given.output_names is None else tuple(given.output_names.split(",")),
        out=given.out or Path(f"{given.model.stem}.gpusq"),
        force=given.force,
        pack=given.pack,
        prune=given.prune,
        permute=given.permute,
        min_sqnr=given.min_sqnr,
        min_agreement=given.min_agreement,
        sparse_outputs=_output_wish(given.sparse_outputs),
        rewrites=given.rewrites,
        dump_passes=given.dump_passes,
    )


def chosen_targets(given: Given) -> tuple[Target, ...]:
    """The targets that are named, each once; the default one where none is, and none where that was asked for.

    Raises:
        GpusqError: An unknown name.
    """
    from gpusq_deploy.engines import find_target

    if NO_TARGET in given.targets:
        if len(given.targets) > 1 or given.engine_options:
            raise click.UsageError(f"--target {NO_TARGET} builds no engine: leave out other targets and engine options")
        return ()
    names = given.targets or (() if given.unpack else (DEFAULT_TARGET,))
    return tuple({target.name: target for target in map(find_target, names)}.values())


def refuse_other_options(context: click.Context, path: Path) -> None:
    """A bundle's model is made already: an option that would change it must not be passed over in silence.

    Raises:
        click.UsageError: Names each such option.
    """
    allowed = {"model", "targets", "engine_options", "unpack", "dry_run", "as_json"}
    given = on_command_line(context, [name for name in context.params if name not in allowed])
    if given:
        names = ", ".join(given)
        raise click.UsageError(
            f"{path} is a bundle, which is built already: only --target, --engine-option and --unpack apply to it, not "
            f"{names}; give the checkpoint to build with other options",
            context,
        )


def _quantized(given: Given) -> QuantizedPrecision | None:
    if given.int8 + given.fp8 + given.int4 > 1:
        raise click.UsageError("give one of --int8, --fp8 and --int4; a recipe may mix them")
    return "int8" if given.int8 else "fp8" if given.fp8 else "int4" if given.int4 else None


def _float_type(given: Given) -> FloatPrecision:
    if given.fp16 + given.bf16 + given.fp32 > 1:
        raise click.UsageError("give one of --fp16, --bf16 and --fp32")
    return "bf16" if given.bf16 else "fp32" if given.fp32 else "fp16"


def _recipe(
    recipe: Path | None, quantized: QuantizedPrecision | None
) -> tuple[Path | None, frozenset[QuantizedPrecision]]:
    """The recipe that the precision means where none is named, and all precisions that it makes layers of.

    Raises:
        GpusqError: The recipe can't be read, or makes nothing of that precision.
    """
    from gpusq_deploy.artifacts import FP8_RECIPE, INT4_RECIPE, load_recipe

    if quantized is None:
        return recipe, frozenset()
    usual = {"int8": None, "fp8": Path(FP8_RECIPE), "int4": Path(INT4_RECIPE)}
    chosen = usual[quantized] if recipe is None else recipe
    precisions = load_recipe(chosen).precisions
    if quantized not in precisions:
        makes = " or ".join(f"--{name}" for name in sorted(precisions)) or "neither --int8, --fp8 nor --int4"
        raise GpusqError(f"the recipe makes no layer {quantized.upper()}", place=f"--recipe {recipe}", hint=makes)
    return chosen, precisions


def _opset(float_type: FloatPrecision, types: frozenset[QuantizedPrecision]) -> int:
    from gpusq_deploy.artifacts import OPSETS

    return max([21 if float_type == "bf16" else 20, *(OPSETS[name] for name in types)])


def _output_wish(text: str | None) -> Int8OutputRequest | None:
    from gpusq_deploy.quantize import Int8OutputRequest

    if text is None:
        return None
    kind, colon, number = text.partition(":")
    try:
        least = float(number) if colon else _LEAST_OUTPUT_DB
    except ValueError:
        least = math.nan
    if kind != "int8" or not math.isfinite(least):
        raise click.UsageError("--sparse-outputs is int8, or int8:DB with a number of decibels")
    return Int8OutputRequest(least_db=least)


def _batches(texts: tuple[str, ...]) -> tuple[BatchRange, tuple[BatchRange, ...]]:
    """The range that holds all batches, tuned for the first, and one profile for each of several."""
    from gpusq_deploy.artifacts import BatchRange

    found = tuple(parse_batch(text) for text in texts)
    if len(set(found)) != len(found):
        raise click.BadParameter("a range is named twice", param_hint="--batch")
    whole = BatchRange(
        minimum=min(batch.minimum for batch in found),
        optimum=found[0].optimum,
        maximum=max(batch.maximum for batch in found),
    )
    return whole, found if len(found) > 1 else ()
