"""gpusq-calibrate: a checkpoint and data in, activation ranges out; under torchrun, by several processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

import gpusq_deploy
from gpusq_deploy.artifacts import CalibratorName
from gpusq_deploy.cli.command import LOUDNESS, Command
from gpusq_deploy.cli.common import (
    arch_options,
    calib_samples_option,
    echo_json,
    parse_batches,
    reporting,
    require_arch,
    run_command,
)
from gpusq_deploy.text import counted

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import CalibrationTable


_GROUPS = (
    ("Most used", ("--calib", "--out")),
    ("What to calibrate", ("--arch", "--arch-arg", "--state-dict", "--recipe", "--batch", "--opset")),
    ("Accuracy", ("--calibrator", "--calib-samples")),
    ("Output", ("--force", *LOUDNESS)),
)


@click.command(cls=Command, groups=_GROUPS)
@click.argument("model", type=click.Path(path_type=Path))
@arch_options
@click.option(
    "--recipe", type=click.Path(path_type=Path), metavar="FILE|NAME", help="Use this TOML file or shipped recipe."
)
@click.option(
    "--calib",
    required=True,
    metavar="DATA",
    help="Calibrate on a folder of images; on .npy or .npz of preprocessed float32 [N,C,H,W]; on "
    "package.module:factory; or on 'random'.",
)
@click.option(
    "--calibrator",
    type=click.Choice(get_args(CalibratorName)),
    default="amax",
    help="Use this calibrator where the recipe names none (default: amax).",
)
@click.option(
    "--batch",
    default="1:8:32",
    show_default=True,
    metavar="MIN:OPT:MAX",
    help="Export for batches of MIN to MAX, or for one size.",
)
@click.option("--opset", type=int, default=20, show_default=True, help="Use this ONNX opset, 19 to 23.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the ranges here (default: MODEL's name.ranges.json).",
)
@calib_samples_option
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
def command(  # noqa: PLR0913 - click hands one argument to each option
    *,
    model: Path,
    arch: str | None,
    arch_args: tuple[str, ...],
    state_dict: str | None,
    recipe: Path | None,
    calib: str,
    calib_samples: int | None,
    calibrator: CalibratorName,
    batch: str,
    opset: int,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Find the activation ranges of MODEL, a checkpoint or an ONNX file, for `gpusq-build --ranges FILE`.

    Several processes share the samples, and find the same ranges to the last bit:

    torchrun --nproc-per-node 2 -m gpusq_deploy calibrate MODEL --calib DATA --out FILE
    """
    from gpusq_deploy.artifacts import require_input

    require_input(model)
    from gpusq_deploy.calibration import ranks_from_environment

    ranks = ranks_from_environment(os.environ)
    require_arch(model, arch, arch_args)
    (batches,) = parse_batches([batch])
    place = out or Path(f"{model.stem}.ranges.json")
    with reporting(silent=not ranks.first) as reporter:
        table = gpusq_deploy.calibrate(
            model,
            out=place,
            data=calib,
            arch=arch,
            arch_args=arch_args,
            state_dict=state_dict,
            recipe=recipe,
            samples=calib_samples,
            calibrator=calibrator,
            batch=batches,
            opset=opset,
            force=force,
            ranks=ranks,
            reporter=reporter,
        )
    if ranks.first:
        _show(place, table, as_json=as_json)


def _show(out: Path, table: CalibrationTable, *, as_json: bool) -> None:
    if as_json:
        echo_json(
            {
                "file": str(out),
                "ranges": len(table.ranges),
                "observer": table.observer,
                "images": table.images,
                "digest": table.digest,
                "synthetic": table.synthetic,
                "skipped": list(table.skipped),
                "warnings": list(table.warnings),
            }
        )
        return
    noise = "; random data: ranges mean nothing, don't deploy this" if table.synthetic else ""
    click.echo(
        f"{out}: {counted(len(table.ranges), 'range')} ({table.observer}) over {counted(table.images, 'sample')}{noise}"
    )


def main() -> None:
    """Entry point."""
    run_command(command)
