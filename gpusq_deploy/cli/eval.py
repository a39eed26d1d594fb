"""gpusq-eval: how accurate are models, in their task's own measure, and are they different?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import gpusq_deploy
from gpusq_deploy.cli.command import LOUDNESS, Command
from gpusq_deploy.cli.common import (
    arch_options,
    echo_json,
    label_options,
    reporting,
    require_arch,
    run_command,
    runtime_option,
    say,
)

if TYPE_CHECKING:
    from gpusq_deploy.benchmarks import Evaluation

_TASKS = ("auto", "classification", "detection", "segmentation", "retrieval")
_SHOWN = 10
_GROUPS = (
    ("Most used", ("--data", "--task", "--runtime", "--limit")),
    ("Data", ("--annotations", "--reduce-labels")),
    ("Models", ("--arch", "--arch-arg", "--state-dict", "--batch")),
    ("Output", ("--max-drop", "--resume", "--html", *LOUDNESS)),
)


@click.command(name="gpusq-eval", cls=Command, groups=_GROUPS)
@click.argument(
    "subjects", metavar="BUNDLE|CHECKPOINT|ONNX...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@arch_options
@click.option(
    "--data",
    required=True,
    metavar="DIR|SHARDS|MODULE:FACTORY",
    help="Evaluate on these labelled images: a sub-folder per class in the models' order, or images/ and annotations/.",
)
@label_options("Evaluate a detector")
@click.option(
    "--task",
    type=click.Choice(_TASKS),
    default="auto",
    show_default=True,
    help="Measure this; auto: what the models' answer is.",
)
@runtime_option("Run bundles and ONNX files with this runtime; checkpoints run in torch.")
@click.option(
    "--batch",
    "batch_size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Run so many images at once.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use N images, spread evenly over all.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Append predictions to this file as they are made, and don't make those again that are in it.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write a page that shows the images whose answer changed.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Exit 1 where a model is this much below the first, 3 where the images are too few to tell.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    subjects: tuple[Path, ...],
    arch: str | None,
    arch_args: tuple[str, ...],
    html: Path | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Measure models on labelled images: top-1 and top-5, COCO's mAP, mIoU, or kNN accuracy and retrieval of features.

    Several models see the same images; the others are compared with the first, with the 95 % interval of the
    difference (paired bootstrap over the images). Under torchrun several processes share the images.

    Exit codes with --max-drop: 0 holds, 1 dropped, 3 inconclusive.
    """
    from gpusq_deploy.artifacts import builtins_from_value, require_input

    for path in subjects:
        require_input(path)
    from gpusq_deploy.calibration import ranks_from_environment

    ranks = ranks_from_environment(os.environ)
    require_arch(subjects[0], arch, arch_args)
    with reporting(silent=not ranks.first) as reporter:
        found = gpusq_deploy.evaluate(subjects, arch=arch, arch_args=arch_args, html=html, reporter=reporter, **chosen)
    if not ranks.first:
        context.exit(0)
    if as_json:
        echo_json(builtins_from_value(found))
    else:
        _print(found)
    if html is not None:
        say(f"wrote {html}")
    context.exit(found.exit_code)


def _print(found: Evaluation) -> None:
    from gpusq_deploy.benchmarks import heading_of, rows_of
    from gpusq_deploy.bundle import print_rows, result_console

    console = result_console()
    headings, rows = rows_of(found)
    print_rows(console, heading_of(found), headings, rows, right=headings[2:])
    for note in (*(f"skipped {name}" for name in found.skipped), *found.notes):
        say(note)
    if found.verdict is not None:
        click.echo(f"at most {found.max_drop:g} points below {found.subjects[0].name}: {found.verdict}")
    if not found.changed:
        return
    shown = found.changed[:_SHOWN]
    more = f", the first {_SHOWN}" if len(found.changed) > _SHOWN else ""
    title = f"{len(found.changed)} images changed their answer{more}"
    names = [subject.name for subject in found.subjects]
    print_rows(
        console,
        title,
        ["image", "label", *names],
        [[each.image, each.label, *each.answers] for each in shown],
        prose=["label", *names],
    )


def main() -> None:
    """Entry point of gpusq-eval."""
    run_command(command)


if __name__ == "__main__":
    main()
