"""gpusq-build: a checkpoint in, a bundle with engines out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

import gpusq_deploy
from gpusq_deploy.artifacts import CalibratorName, PruneMethod
from gpusq_deploy.cli.asked import Given, build_arguments, chosen_targets, refuse_other_options
from gpusq_deploy.cli.command import LOUDNESS, Command
from gpusq_deploy.cli.common import (
    arch_options,
    calib_samples_option,
    echo_json,
    label_options,
    reporting,
    run_command,
)
from gpusq_deploy.cli.ending import NO_ENGINE, Ending
from gpusq_deploy.cli.listing import LISTS, print_list
from gpusq_deploy.cli.shares import Share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpusq_deploy.bundle import Bundle


# Options: those that most people need, then by what they are about.
_GROUPS = (
    ("Most used", ("--int8", "--sparse", "--calib", "--target", "--out")),
    (
        "What to build",
        (
            *(
                "--arch",
                "--arch-arg",
                "--state-dict",
                "--allow-pickle",
                "--fp8",
                "--int4",
                "--fp16",
                "--bf16",
                "--fp32",
            ),
            *("--recipe", "--batch", "--opset", "--input-name", "--output-names"),
        ),
    ),
    (
        "Accuracy",
        (
            *("--calibrator", "--calib-samples", "--ranges", "--recalibrate", "--keep-grid"),
            *("--min-sqnr", "--min-agreement", "--expect-outputs"),
            *("--eval", "--max-drop", "--annotations", "--reduce-labels"),
        ),
    ),
    ("Sparsity", ("--prune", "--permute", "--sparse-outputs", "--pack", "--unpack")),
    ("Engine", ("--engine-option", "--rewrites")),
    ("Output", ("--force", "--dry-run", "--dump-passes", "--list", *LOUDNESS)),
)


@click.command(cls=Command, groups=_GROUPS)
@click.argument("model", type=click.Path(path_type=Path))
@arch_options
@click.option("--int8", is_flag=True, help="Quantise the layers that the recipe names to INT8, weights and inputs.")
@click.option("--fp8", is_flag=True, help="Quantise those layers to FP8 (E4M3) instead, for Ada, Hopper and Blackwell.")
@click.option("--int4", is_flag=True, help="Quantise only the weights, to INT4 in blocks; the GEMMs stay float.")
@click.option("--sparse", is_flag=True, help="Require 2:4 weights and allow sparse kernels.")
@click.option("--fp16", is_flag=True, help="Keep everything else in FP16 (default).")
@click.option("--bf16", is_flag=True, help="Keep everything else in BF16.")
@click.option("--fp32", is_flag=True, help="Keep everything else in FP32.")
@click.option("--pack", is_flag=True, help="Also store 2:4 INT8 weights packed, at 0.625 of their size.")
@click.option("--unpack", is_flag=True, help="Restore the dense weights of a bundle from the packed ones.")
@click.option(
    "--prune",
    type=click.Choice(get_args(PruneMethod)),
    help="Prune the recipe's layers to 2:4 first, without training; activation and second-order use --calib.",
)
@click.option("--permute", is_flag=True, help="With --prune, permute channels first so that 2:4 keeps more magnitude.")
@click.option(
    "--sparse-outputs",
    metavar="int8[:DB]",
    help="Let sparse INT8 layers write INT8 where their predicted SQNR is at least DB (default: 33).",
)
@click.option(
    "--recipe", type=click.Path(path_type=Path), metavar="FILE|NAME", help="Use this TOML file or shipped recipe."
)
@click.option(
    "--calib",
    metavar="DATA",
    help="Calibrate on a folder of images; on .npy or .npz of preprocessed float32 [N,C,H,W]; on "
    "package.module:factory; or on 'random'.",
)
@click.option(
    "--calibrator",
    type=click.Choice(get_args(CalibratorName)),
    help="Use this calibrator where the recipe names none (default: amax).",
)
@calib_samples_option
@click.option(
    "--ranges",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Use the ranges of gpusq-calibrate, of a TensorRT calibration cache or of an ONNX Runtime calibration table.",
)
@click.option("--recalibrate", is_flag=True, help="Calibrate again, and ignore the ranges that the checkpoint records.")
@click.option(
    "--keep-grid/--no-keep-grid",
    default=True,
    show_default=True,
    help="Keep the INT8 grids of weights that the checkpoint records, as they were trained.",
)
@click.option("--allow-pickle", is_flag=True, help="Run code that MODEL names; only for a file that you made yourself.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="Build for this GPU (default: a100), or 'none' for the ONNX model alone; repeatable.",
)
@click.option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="Fail, and keep the evidence, if an output's SQNR to the float model is lower.",
)
@click.option(
    "--min-agreement",
    type=Share(),
    metavar="SHARE",
    help="Fail, and keep the evidence, if top-1 agreement is lower (0.99 or 99%).",
)
@click.option(
    "--eval",
    "eval_data",
    metavar="DIR|SHARDS|MODULE:FACTORY",
    help="Measure top-1, mAP or mIoU of MODEL and of the built model on these labelled images (docs/evaluation.md).",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Fail, and keep the evidence, if that measure drops by more points.",
)
@label_options("With --eval, measure a detector", data="it")
@click.option(
    "--expect-outputs",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Compare the built model with these inputs and outputs of the quantised one; --min-sqnr holds of that too.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    default=("1:8:32",),
    show_default=True,
    metavar="MIN:OPT:MAX",
    help="Build for batches of MIN to MAX, tuned for OPT, or for one size; repeat it for each further profile.",
)
@click.option(
    "--engine-option",
    "engine_options",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Set an option of the engine builder, such as workspace, level or strip (docs/engines.md); repeatable.",
)
@click.option(
    "--rewrites",
    type=click.Choice(["all", "measured"]),
    default="all",
    show_default=True,
    help="Apply all graph rewrites, or those that reduce this model's kernel count, compiled here.",
)
@click.option("--opset", type=int, default=None, help="Use this ONNX opset, 19 to 23 (default: 20; 21 with --bf16).")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Write the bundle here (default: MODEL's name.gpusq)."
)
@click.option("--input-name", metavar="NAME", help="Name the graph's input (default: as the model's forward does).")
@click.option("--output-names", metavar="A,B", help="Name the graph's outputs, in order (default: the model's keys).")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@click.option("--dry-run", is_flag=True, help="Load and export MODEL, print what would be built, and write nothing.")
@click.option(
    "--dump-passes",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the graph after each pass to this new folder, without large weights, and what each changed.",
)
@click.option(
    "--list",
    metavar="|".join(LISTS),
    is_eager=True,
    expose_value=False,
    callback=print_list,
    help="List the known targets, recipes or architectures (architectures:PATTERN: those that match), and exit.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """Compile MODEL, a checkpoint or an ONNX file, into a bundle: ONNX with Q/DQ, engines, and the proof of both.

    Where MODEL is a bundle, only the engines of the given targets are built, from its model.
    """
    from gpusq_deploy.artifacts import require_input
    from gpusq_deploy.frontend import kind_of

    given = Given(**options)
    require_input(given.model)
    if kind_of(given.model) == "bundle":
        refuse_other_options(context, given.model)
        context.exit(_extend(given))
    if given.unpack:
        raise click.UsageError("--unpack is for a bundle")
    if given.dry_run:
        if given.dump_passes is not None:
            raise click.UsageError("--dry-run writes nothing: leave out --dump-passes")
        _preview(given)
    else:
        _build(given)


def _build(given: Given) -> None:
    asked = build_arguments(given)
    with reporting() as reporter:
        bundle = gpusq_deploy.build(given.model, out=given.place, reporter=reporter, **asked)
    _show(bundle, as_json=given.as_json)


def _preview(given: Given) -> None:
    from gpusq_deploy.cli.preview import preview_json, print_preview

    asked = build_arguments(given)
    with reporting() as reporter:
        found = gpusq_deploy.preview(given.model, out=given.place, reporter=reporter, **asked)
    if given.as_json:
        echo_json(preview_json(found))
    else:
        print_preview(found)


def _extend(given: Given) -> int:
    """Further engines of a bundle, and its dense weights; the exit code."""
    from gpusq_deploy.api import targets_of

    if given.engine_options and not given.targets:
        raise click.UsageError("--engine-option changes how an engine is built: name a --target")
    targets = () if given.unpack and not given.targets else chosen_targets(given)
    if targets == () and not given.unpack:
        raise click.UsageError("a bundle has its ONNX model already: name a GPU with --target")
    if given.dry_run:
        return _preview_engines(given, targets)
    targets_of(targets)  # an unknown one is told before anything is done
    with reporting() as reporter:
        unpacked = gpusq_deploy.unpack(given.model, reporter=reporter) if given.unpack else None
        extended = (
            gpusq_deploy.add_engines(
                given.model, targets=targets, engine_options=given.engine_options, reporter=reporter
            )
            if targets != ()
            else None
        )
    if extended is None:
        _show(unpacked or gpusq_deploy.open_bundle(given.model).bundle, as_json=given.as_json)
        return 0
    if extended.built:
        _show(extended.bundle, as_json=given.as_json)
        return 0
    ending = Ending(
        code=NO_ENGINE,
        what=f"no engine was built: {'; '.join(f'{entry.target}: {entry.reason}' for entry in extended.skipped)}",
        place=str(given.model),
        hint=f"on the device: {extended.skipped[0].command}",
    )
    _show(extended.bundle, as_json=given.as_json, ending=ending)
    click.echo(str(ending), err=True)
    return ending.code


def _preview_engines(given: Given, targets: Sequence[str] | None) -> int:
    from gpusq_deploy.api import targets_of
    from gpusq_deploy.cli.preview import extension_json, print_extension

    with reporting() as reporter:
        checked = gpusq_deploy.preview_engines(
            given.model,
            targets=targets,
            engine_options=given.engine_options,
            unpack=given.unpack,
            reporter=reporter,
        )
    if given.as_json:
        echo_json(extension_json(checked, targets_of(targets)))
    else:
        print_extension(checked, targets_of(targets))
    return 0


def _show(bundle: Bundle, *, as_json: bool, ending: Ending | None = None) -> None:
    from gpusq_deploy.bundle import bundle_json, print_bundle

    if as_json:
        echo_json({**bundle_json(bundle), **({} if ending is None else ending.error_json())})
    else:
        print_bundle(bundle)


def main() -> None:
    """Entry point."""
    run_command(command)
