"""From gpusq-build's command line to the arguments of `gpusq_deploy.build`; `BuildRequest` has the rules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpusq_deploy.cli.command import on_command_line
from gpusq_deploy.cli.common import parse_batches, require_arch

if TYPE_CHECKING:
    from gpusq_deploy.api import BuildArguments
    from gpusq_deploy.artifacts import CalibratorName, FloatPrecision, PruneMethod, QuantizedPrecision, RewriteChoice

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
    keep_grid: bool
    allow_pickle: bool
    targets: tuple[str, ...]
    min_sqnr: float | None
    min_agreement: float | None
    eval_data: str | None
    max_drop: float | None
    annotations: Path | None
    reduce_labels: bool
    expect_outputs: Path | None
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

    @property
    def place(self) -> Path:
        """Where the bundle goes."""
        return self.out or Path(f"{self.model.stem}.gpusq")


def build_arguments(given: Given) -> BuildArguments:
    """What is asked of a build from a checkpoint, as the API takes it.

    Raises:
        click.UsageError: Words that mean nothing, or two that exclude each other.
    """
    require_arch(given.model, given.arch, given.arch_args)
    return {
        "data": given.calib,
        "precision": _quantized(given),
        "sparse": given.sparse,
        "targets": chosen_targets(given),
        "recipe": given.recipe,
        "arch": given.arch,
        "arch_args": given.arch_args,
        "state_dict": given.state_dict,
        "allow_pickle": given.allow_pickle,
        "float_type": _float_type(given),
        "batch": parse_batches(given.batches),
        "opset": given.opset,
        "input_name": given.input_name,
        "output_names": () if given.output_names is None else tuple(given.output_names.split(",")),
        "calibrator": given.calibrator,
        "samples": given.calib_samples,
        "ranges": given.ranges,
        "recalibrate": given.recalibrate,
        "keep_grid": given.keep_grid,
        "expect_outputs": given.expect_outputs,
        "min_sqnr": given.min_sqnr,
        "min_agreement": given.min_agreement,
        "eval_data": given.eval_data,
        "annotations": given.annotations,
        "reduce_labels": given.reduce_labels,
        "max_drop": given.max_drop,
        "prune": given.prune,
        "permute": given.permute,
        "sparse_outputs": _output_wish(given.sparse_outputs),
        "pack": given.pack,
        "engine_options": given.engine_options,
        "rewrites": given.rewrites,
        "dump_passes": given.dump_passes,
        "force": given.force,
    }


def chosen_targets(given: Given) -> tuple[str, ...] | None:
    """The targets' names; None where none is named, and none of them where that was asked for."""
    if NO_TARGET not in given.targets:
        return given.targets or None
    if len(given.targets) > 1 or given.engine_options:
        raise click.UsageError(f"--target {NO_TARGET} builds no engine: leave out other targets and engine options")
    return ()


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


def _output_wish(text: str | None) -> float | None:
    """The least SQNR in decibels."""
    if text is None:
        return None
    kind, colon, number = text.partition(":")
    try:
        least = float(number) if colon else _LEAST_OUTPUT_DB
    except ValueError:
        least = math.nan
    if kind != "int8" or not math.isfinite(least):
        raise click.UsageError("--sparse-outputs is int8, or int8:DB with a number of decibels")
    return least
