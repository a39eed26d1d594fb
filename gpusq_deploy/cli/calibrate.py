"""gpusq-calibrate: a checkpoint and data in, activation ranges out; under torchrun, by several processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
from gpusq_deploy.wording import counted

if TYPE_CHECKING:
    from gpusq_deploy.artifacts.calibration import CalibrationTable, CalibratorName


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@arch_options
@click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE|NAME", help="TOML rules, or a shipped recipe.")
@click.option(
    "--calib",
    required=True,
    metavar="DATA",
    help="Folder of images; .npy or .npz of preprocessed float32 [N,C,H,W]; package.module:factory; or 'random'.",
)
@click.option("--calibrator", type=click.Choice(CALIBRATORS), default="amax", help="For rules that name none.")
@click.option("--batch", default="1:8:32", show_default=True, metavar="MIN:OPT:MAX", help="One number: a fixed batch.")
@click.option("--opset", type=int, default=20, show_default=True, help="ONNX opset, 19 to 23.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Default: MODEL's name with .ranges.json.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the text.")
def command(  # noqa: PLR0913 - click hands one argument to each option
    *,
    model: Path,
    arch: str | None,
    arch_args: tuple[str, ...],
    state_dict: str | None,
    recipe: Path | None,
    calib: str,
    calibrator: CalibratorName,
    batch: str,
    opset: int,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Find the activation ranges of MODEL, a checkpoint, for `gpusq-build --ranges FILE`.

    Several processes share the samples, and find the same ranges to the last bit:

    torchrun --nproc-per-node 2 -m gpusq_deploy calibrate MODEL --calib DATA --out FILE
    """
    from gpusq_deploy.checkpoint.saved_folder import require_there

    require_there(model)
    from gpusq_deploy.artifacts.calibration import Calibrator
    from gpusq_deploy.calibrate import CalibrateRequest, calibrate_checkpoint
    from gpusq_deploy.ranks import ranks_from_environment
    from gpusq_deploy.request import Reporter

    ranks = ranks_from_environment(os.environ)
    request = CalibrateRequest(
        model=model,
        arch=chosen_arch(model, arch, arch_args),
        state_dict=state_dict,
        recipe=recipe,
        calib=calib,
        calibrator=Calibrator(name=calibrator),
        batch=parse_batch(batch),
        opset=opset,
        out=out or Path(f"{model.stem}.ranges.json"),
        force=force,
    )
    with progress_to_stderr() as progress:
        reporter = Reporter(say=say, progress=progress) if ranks.first else Reporter(say=_quiet, progress=_no_progress)
        table = calibrate_checkpoint(request, ranks, reporter)
    if ranks.first:
        _show(request.out, table, as_json=as_json)


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


def _quiet(_text: str) -> None:
    """The first rank speaks for all."""


def _no_progress(_label: str, _done: int, _total: int) -> None:
    """See `_quiet`."""


def main() -> None:
    """Entry point."""
    run_command(command)
