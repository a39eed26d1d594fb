"""gpusq-build: a checkpoint in, a bundle with engines out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from gpusq_deploy.artifacts.sparsity import PruneMethod
from gpusq_deploy.cli.common import (
    CALIBRATORS,
    arch_options,
    chosen_arch,
    echo_json,
    parse_batch,
    progress_to_stderr,
    run_command,
    say,
)
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    from gpusq_deploy.artifacts.calibration import CalibratorName
    from gpusq_deploy.artifacts.manifest import BatchRange
    from gpusq_deploy.artifacts.plan import FloatPrecision, Precision
    from gpusq_deploy.bundle import Bundle
    from gpusq_deploy.placements import OutputWish
    from gpusq_deploy.recipe import QuantizedPrecision
    from gpusq_deploy.request import RewriteChoice
    from gpusq_deploy.targets import Target

_DEFAULT_TARGET = "a100"
# By benchmarks/peers/sparse_outputs.py: 30 costs DINOv2 14.5 dB in all, 33 costs it 0.8.
_LEAST_OUTPUT_DB = 33.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@arch_options
@click.option("--int8", is_flag=True, help="INT8 weights and inputs for the layers that the recipe names.")
@click.option("--fp8", is_flag=True, help="The same in FP8 (E4M3), for Ada, Hopper and Blackwell.")
@click.option("--int4", is_flag=True, help="INT4 weights in blocks; inputs and products stay FP16.")
@click.option("--sparse", is_flag=True, help="Require 2:4 weights and allow sparse kernels.")
@click.option("--fp16", is_flag=True, help="Everything else in FP16 (default).")
@click.option("--bf16", is_flag=True, help="Everything else in BF16.")
@click.option("--fp32", is_flag=True, help="Everything else in FP32.")
@click.option("--pack", is_flag=True, help="Store 2:4 INT8 weights packed too: 0.625 of dense INT8.")
@click.option("--unpack", is_flag=True, help="Of a bundle: make the dense weights again from the packed ones.")
@click.option(
    "--prune",
    type=click.Choice(get_args(PruneMethod)),
    help="Make the layers that the recipe names 2:4 first, untrained; the last two learn from --calib.",
)
@click.option("--permute", is_flag=True, help="With --prune: first order channels so that 2:4 keeps more.")
@click.option(
    "--sparse-outputs",
    metavar="int8[:DB]",
    help="Let sparse INT8 layers write INT8 where that is predicted to keep DB of their signal. Default: float; 33.",
)
@click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE|NAME", help="TOML rules, or a shipped recipe.")
@click.option(
    "--calib",
    metavar="DATA",
    help="Folder of images; .npy or .npz of preprocessed float32 [N,C,H,W]; package.module:factory; or 'random'.",
)
@click.option("--calibrator", type=click.Choice(CALIBRATORS), help="For rules that name none. Default: amax.")
@click.option(
    "--ranges",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What gpusq-calibrate wrote, or a TensorRT calibration cache.",
)
@click.option("--recalibrate", is_flag=True, help="Set the ranges that the checkpoint records aside, for --calib.")
@click.option("--allow-pickle", is_flag=True, help="Run code that MODEL names. Only for a file that you made yourself.")
@click.option("--target", "targets", multiple=True, metavar="NAME", help="GPU to build for; repeatable. Default: a100.")
@click.option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="Fail, and keep evidence, below this SQNR of all outputs to the float graph (with --prune, the pruned one).",
)
@click.option(
    "--min-agreement", type=float, metavar="FRACTION", help="Fail, and keep the evidence, below this top-1 agreement."
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    default=("1:8:32",),
    show_default=True,
    metavar="MIN:OPT:MAX",
    help="One number: a fixed batch. Repeatable: one optimisation profile for each.",
)
@click.option(
    "--engine-option",
    "engine_options",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="How the engine builder works: workspace, level, strip, timing-cache and more, docs/engines.md; repeatable.",
)
@click.option(
    "--rewrites",
    type=click.Choice(["measured", "all"]),
    default="measured",
    show_default=True,
    help="Of the graph rewrites for speed, those that give this model fewer kernels, compiled here to see; or all.",
)
@click.option("--opset", type=int, default=None, help="ONNX opset, 19 to 23. Default: 20; 21 with --bf16.")
@click.option("--input-name", metavar="NAME", help="Of the graph's input. Default: the model's forward's.")
@click.option("--output-names", metavar="A,B", help="Of the graph's outputs, in order. Default: the model's own keys.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Default: MODEL's name with .gpusq, here.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the table.")
@click.pass_context
def command(  # noqa: PLR0913 - click hands one argument to each option
    context: click.Context,
    *,
    model: Path,
    arch: str | None,
    arch_args: tuple[str, ...],
    state_dict: str | None,
    int8: bool,
    fp8: bool,
    int4: bool,
    sparse: bool,
    fp16: bool,
    bf16: bool,
    fp32: bool,
    pack: bool,
    unpack: bool,
    prune: PruneMethod | None,
    permute: bool,
    sparse_outputs: str | None,
    recipe: Path | None,
    calib: str | None,
    calibrator: CalibratorName | None,
    ranges: Path | None,
    recalibrate: bool,
    allow_pickle: bool,
    targets: tuple[str, ...],
    min_sqnr: float | None,
    min_agreement: float | None,
    batches: tuple[str, ...],
    engine_options: tuple[str, ...],
    rewrites: RewriteChoice,
    opset: int | None,
    input_name: str | None,
    output_names: str | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compile MODEL, a checkpoint, into a bundle: ONNX with Q/DQ, engines, and the proof of what was built.

    MODEL may also be a bundle: then only the engines of the given targets are built, from its model.
    """
    from gpusq_deploy.bundle import kind_of
    from gpusq_deploy.targets import find_target

    chosen = [find_target(name) for name in targets or (() if unpack else (_DEFAULT_TARGET,))]
    is_bundle = kind_of(model) == "bundle"
    if unpack and not is_bundle:
        raise click.UsageError("--unpack is for a bundle")
    if not targets and not unpack:
        say(f"no --target: building for {_DEFAULT_TARGET}")
    if is_bundle:
        _refuse_other_options(context, model)
        if engine_options and not targets:
            raise click.UsageError("--engine-option changes how an engine is built: name a --target")
        bundle = _extend(model, chosen, engine_options, unpack=unpack)
    else:
        from gpusq_deploy.artifacts.calibration import Calibrator
        from gpusq_deploy.build_engines import Asked, require_reachable
        from gpusq_deploy.compile import compile_checkpoint
        from gpusq_deploy.engines.option_text import options_from_text
        from gpusq_deploy.recipe import OPSETS
        from gpusq_deploy.request import BuildRequest, Reporter

        quantized = _quantized(int8=int8, fp8=fp8, int4=int4)
        if recipe is not None and not (quantized or sparse):
            raise click.UsageError("--recipe needs --int8, --fp8, --int4 or --sparse: it says which layers those mean")
        _require_sense(quantized=quantized, calib=calib, calibrator=calibrator, ranges=ranges)
        recipe, types = _recipe(recipe, quantized)
        if recalibrate and (calib is None or ranges is not None):
            raise click.UsageError("--recalibrate needs --calib, and no --ranges")
        if permute and prune is None:
            raise click.UsageError("--permute needs --prune: it orders channels for it")
        _require_prunable(prune, sparse=sparse, calib=calib, ranges=ranges)
        wish = _output_wish(sparse_outputs, int8=quantized == "int8", sparse=sparse, calib=calib)
        if pack and not (quantized == "int8" and sparse):
            raise click.UsageError("--pack needs --int8 --sparse: it stores 2:4 INT8 weights")
        remainder = _remainder(fp16=fp16, bf16=bf16, fp32=fp32)
        _require_verifiable(min_sqnr, min_agreement, remainder=remainder, calib=calib)
        batch, profiles = _batches(batches)
        options = options_from_text(engine_options, profiles=profiles)
        newest = opset or max([21 if remainder == "bf16" else 20, *(OPSETS[name] for name in types)])
        # INT4 weights are unpacked, and multiply in the remainder's type.
        multiplied: frozenset[Precision] = frozenset({remainder, *(types - {"int4"})})
        require_reachable(Asked(options=options, types=multiplied, sparse=sparse, opset=newest), chosen)
        request = BuildRequest(
            model=model,
            arch=chosen_arch(model, arch, arch_args),
            state_dict=state_dict,
            int8=quantized is not None,
            sparse=sparse,
            remainder=remainder,
            recipe=recipe,
            calib=calib,
            calibrator=Calibrator(name=calibrator or "amax"),
            ranges=ranges,
            recalibrate=recalibrate,
            allow_pickle=allow_pickle,
            targets=chosen,
            batch=batch,
            engine=options,
            opset=newest,
            input_name=input_name,
            output_names=tuple(output_names.split(",")) if output_names is not None else (),
            out=out or Path(f"{model.stem}.gpusq"),
            force=force,
            pack=pack,
            prune=prune,
            permute=permute,
            min_sqnr=min_sqnr,
            min_agreement=min_agreement,
            sparse_outputs=wish,
            rewrites=rewrites,
        )
        with progress_to_stderr() as progress:
            bundle = compile_checkpoint(request, Reporter(say=say, progress=progress))
    _show(bundle, as_json=as_json)


def _quantized(*, int8: bool, fp8: bool, int4: bool) -> QuantizedPrecision | None:
    if int8 + fp8 + int4 > 1:
        raise click.UsageError("give one of --int8, --fp8 and --int4; a recipe may mix them")
    return "int8" if int8 else "fp8" if fp8 else "int4" if int4 else None


def _recipe(
    recipe: Path | None, quantized: QuantizedPrecision | None
) -> tuple[Path | None, frozenset[QuantizedPrecision]]:
    """The recipe that the precision means where none is named, and all precisions that it makes layers of.

    Raises:
        GpusqError: The recipe can't be read, or makes nothing of that precision.
    """
    from gpusq_deploy.recipe import FP8_RECIPE, INT4_RECIPE, load_recipe

    if quantized is None:
        return recipe, frozenset()
    usual = {"int8": None, "fp8": Path(FP8_RECIPE), "int4": Path(INT4_RECIPE)}
    chosen = usual[quantized] if recipe is None else recipe
    precisions = load_recipe(chosen).precisions
    if quantized not in precisions:
        makes = " or ".join(f"--{name}" for name in sorted(precisions)) or "neither --int8, --fp8 nor --int4"
        raise GpusqError(f"the recipe makes no layer {quantized.upper()}", place=f"--recipe {recipe}", hint=makes)
    return chosen, precisions


def _require_sense(
    *,
    quantized: QuantizedPrecision | None,
    calib: str | None,
    calibrator: CalibratorName | None,
    ranges: Path | None,
) -> None:
    """An option that would change nothing must not be passed over in silence."""
    if (calibrator or ranges) and quantized not in {"int8", "fp8"}:
        raise click.UsageError("--calibrator and --ranges need --int8 or --fp8")
    if calibrator and ranges:
        raise click.UsageError("--calibrator changes nothing about --ranges: give it to gpusq-calibrate")
    if calibrator and calib is None:
        raise click.UsageError("--calibrator needs --calib: recorded ranges stay as they are")


def _require_prunable(prune: PruneMethod | None, *, sparse: bool, calib: str | None, ranges: Path | None) -> None:
    if prune is None:
        return
    if not sparse:
        raise click.UsageError("--prune needs --sparse: the recipe says which layers that means")
    if ranges is not None:
        raise click.UsageError("--prune changes the weights: the --ranges of another model don't hold; give --calib")
    if prune != "magnitude" and calib in (None, "random"):
        raise click.UsageError(f"--prune {prune} learns from data: give real samples with --calib")


def _output_wish(text: str | None, *, int8: bool, sparse: bool, calib: str | None) -> OutputWish | None:
    from gpusq_deploy.placements import OutputWish

    if text is None:
        return None
    kind, colon, number = text.partition(":")
    try:
        least = float(number) if colon else _LEAST_OUTPUT_DB
    except ValueError:
        least = math.nan
    if kind != "int8" or not math.isfinite(least):
        raise click.UsageError("--sparse-outputs is int8, or int8:DB with a number of decibels")
    if not (int8 and sparse) or calib is None:
        raise click.UsageError("--sparse-outputs needs --int8, --sparse and --calib: it places quantisers by data")
    return OutputWish(least_db=least)


def _require_verifiable(
    min_sqnr: float | None, min_agreement: float | None, *, remainder: FloatPrecision, calib: str | None
) -> None:
    if min_sqnr is None and min_agreement is None:
        return
    if calib in (None, "random"):
        raise click.UsageError("--min-sqnr and --min-agreement are measured on real samples: give them with --calib")
    if remainder == "bf16":
        raise click.UsageError("--min-sqnr and --min-agreement can't be checked with --bf16: the CPU can't run it")
    if min_sqnr is not None and not math.isfinite(min_sqnr):
        raise click.UsageError("--min-sqnr is a number of decibels")
    if min_agreement is not None and not 0 <= min_agreement <= 1:
        raise click.UsageError("--min-agreement is a share, from 0 to 1")


def _remainder(*, fp16: bool, bf16: bool, fp32: bool) -> FloatPrecision:
    if fp16 + bf16 + fp32 > 1:
        raise click.UsageError("give one of --fp16, --bf16 and --fp32")
    return "bf16" if bf16 else "fp32" if fp32 else "fp16"


def _refuse_other_options(context: click.Context, path: Path) -> None:
    """A bundle's model is made already: an option that would change it must not be passed over in silence."""
    allowed = {"model", "targets", "engine_options", "unpack", "as_json"}
    source = click.core.ParameterSource.COMMANDLINE
    given = [name for name in context.params if context.get_parameter_source(name) == source and name not in allowed]
    if given:
        spelt = {param.name: param.opts[0] for param in context.command.params}
        names = ", ".join(spelt[name] for name in given)
        raise GpusqError(
            f"a bundle is built already: only --target, --engine-option and --unpack apply to it, not {names}",
            place=str(path),
            hint="give the checkpoint to build with other options",
        )


def _batches(texts: tuple[str, ...]) -> tuple[BatchRange, tuple[BatchRange, ...]]:
    """The range that holds all batches, tuned for the first, and one profile for each of several."""
    from gpusq_deploy.artifacts.manifest import BatchRange

    found = tuple(parse_batch(text) for text in texts)
    if len(set(found)) != len(found):
        raise click.BadParameter("a range is named twice", param_hint="--batch")
    whole = BatchRange(
        minimum=min(batch.minimum for batch in found),
        optimum=found[0].optimum,
        maximum=max(batch.maximum for batch in found),
    )
    return whole, found if len(found) > 1 else ()


def _extend(path: Path, targets: list[Target], engine_options: tuple[str, ...], *, unpack: bool) -> Bundle:
    from gpusq_deploy.extend import extend_bundle, unpack_bundle
    from gpusq_deploy.request import Reporter

    with progress_to_stderr() as progress:
        reporter = Reporter(say=say, progress=progress)
        if unpack:
            bundle = unpack_bundle(path, reporter)
            if not targets:
                return bundle
        return extend_bundle(path, targets, reporter, engine_options=engine_options)


def _show(bundle: Bundle, *, as_json: bool) -> None:
    from gpusq_deploy.cli.render import bundle_json, print_bundle

    if as_json:
        echo_json(bundle_json(bundle))
    else:
        print_bundle(bundle)


def main() -> None:
    """Entry point."""
    run_command(command)
