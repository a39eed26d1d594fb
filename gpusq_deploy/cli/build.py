"""gpusq-build: a checkpoint in, a bundle with engines out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from gpusq_deploy.artifacts.sparsity import PruneMethod
from gpusq_deploy.cli.asked import DEFAULT_TARGET, Given, build_request, chosen_targets, refuse_other_options
from gpusq_deploy.cli.command import Command
from gpusq_deploy.cli.common import (
    CALIBRATORS,
    arch_options,
    echo_json,
    reporting,
    require_model,
    run_command,
    say,
)
from gpusq_deploy.cli.ending import NO_ENGINE, Ending
from gpusq_deploy.cli.listing import LISTS, print_list

if TYPE_CHECKING:
    from gpusq_deploy.bundle import Bundle

@click.command(cls=Command)
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
@click.option("--target", "targets", multiple=True, metavar="NAME", help="GPU to build for; repeatable. Default: a100; none: the ONNX model alone.")
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
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Default: MODEL's name with .gpusq, here.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@click.option(
    "--dry-run", is_flag=True, help="Load and export MODEL, print what would be built, and write nothing."
)
@click.option(
    "--list",
    metavar="|".join(LISTS),
    is_eager=True,
    expose_value=False,
    callback=print_list,
    help="Print the targets, recipes or architectures that are known; architectures:PATTERN prints some.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the table.")
@click.pass_context
def command(context: click.Context, **options: Any) -> None:
    """Compile MODEL, a checkpoint, into a bundle: ONNX with Q/DQ, engines, and the proof of what was built.

    MODEL may also be a bundle: then only the engines of the given targets are built, from its model.
    """
    from gpusq_deploy.bundle import kind_of

    given = Given(**options)
    require_model(given.model)
    if kind_of(given.model) == "bundle":
        refuse_other_options(context, given.model)
        context.exit(_extend(given))
    if given.unpack:
        raise click.UsageError("--unpack is for a bundle")
    if given.dry_run:
        _preview(given)
    else:
        _build(given)


def _build(given: Given) -> None:
    request = build_request(given)
    from gpusq_deploy.compile import compile_checkpoint

    with reporting() as reporter:
        bundle = compile_checkpoint(request, reporter)
    _show(bundle, as_json=given.as_json)


def _preview(given: Given) -> None:
    request = build_request(given)
    from gpusq_deploy.cli.preview import preview_json, print_preview
    from gpusq_deploy.preview import preview

    with reporting() as reporter:
        found = preview(request, reporter)
    if given.as_json:
        echo_json(preview_json(found))
    else:
        print_preview(found)


def _extend(given: Given) -> int:
    """Further engines of a bundle, and its dense weights; the exit code."""
    from gpusq_deploy.cli.preview import print_backends
    from gpusq_deploy.extend import extend_bundle, unpack_bundle

    if given.engine_options and not given.targets:
        raise click.UsageError("--engine-option changes how an engine is built: name a --target")
    if not given.targets and not given.unpack:
        say(f"no --target: building for {DEFAULT_TARGET}")
    targets = chosen_targets(given)
    if not targets and not given.unpack:
        raise click.UsageError("a bundle has its ONNX model already: name a GPU with --target")
    if given.dry_run:
        print_backends(targets, bundle=given.model.name, as_json=given.as_json)
        return 0
    with reporting() as reporter:
        if given.unpack:
            bundle = unpack_bundle(given.model, reporter)
        if not targets:
            _show(bundle, as_json=given.as_json)
            return 0
        extended = extend_bundle(given.model, targets, reporter, engine_options=given.engine_options)
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


def _show(bundle: Bundle, *, as_json: bool, ending: Ending | None = None) -> None:
    from gpusq_deploy.cli.render import bundle_json, print_bundle

    if as_json:
        echo_json({**bundle_json(bundle), **({} if ending is None else ending.error_json())})
    else:
        print_bundle(bundle)


def main() -> None:
    """Entry point."""
    run_command(command)
