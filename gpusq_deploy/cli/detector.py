"""gpusq-detector: a Mask R-CNN in, a folder with its parts and what lies between them out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import gpusq_deploy
from gpusq_deploy.cli.command import LOUDNESS, Command
from gpusq_deploy.cli.common import echo_json, reporting, run_command

if TYPE_CHECKING:
    from gpusq_deploy.bundle import Bundle

_GROUPS = (
    ("Most used", ("--int8", "--calib", "--height", "--width", "--target", "--out")),
    ("What to build", ("--detector", "--arch-arg", "--sparse", "--recipe")),
    ("Output", LOUDNESS),
)


@click.command(name="gpusq-detector", cls=Command, groups=_GROUPS)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--calib",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Calibrate on these images, in which the detector finds something.",
)
@click.option("--height", required=True, type=click.IntRange(min=32), help="Fit images into this height, in pixels.")
@click.option("--width", required=True, type=click.IntRange(min=32), help="Fit images into this width, in pixels.")
@click.option(
    "--detector", metavar="SPEC", help="Build this detector, such as torchvision:NAME (default: a Swin-T with FPN)."
)
@click.option("--arch-arg", "arch_args", multiple=True, metavar="K=V", help="Pass this to the detector; repeatable.")
@click.option("--int8", is_flag=True, help="Quantise the layers that the recipe names to INT8.")
@click.option("--sparse", is_flag=True, help="Require 2:4 weights and allow sparse kernels.")
@click.option(
    "--recipe", type=click.Path(path_type=Path), metavar="FILE|NAME", help="Use this TOML file or shipped recipe."
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="Build for this GPU (default: a100), or 'none' for the ONNX models alone; repeatable.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the parts here (default: MODEL's name.detector).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tables.")
def command(  # noqa: PLR0913 - click hands one argument to each option
    *,
    model: Path,
    calib: Path,
    height: int,
    width: int,
    detector: str | None,
    arch_args: tuple[str, ...],
    int8: bool,
    sparse: bool,
    recipe: Path | None,
    targets: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Compile MODEL, a Mask R-CNN of torchvision, in three parts, and write what lies between them (docs/detectors.md).

    gpusq_deploy.open_detector runs the result.
    """
    from gpusq_deploy.artifacts import require_input

    require_input(model)
    if "none" in targets and len(targets) > 1:
        raise click.UsageError("--target none builds no engine: leave out other targets")
    place = out or Path(f"{model.stem}.detector")
    with reporting() as reporter:
        parts = gpusq_deploy.build_detector(
            model,
            out=place,
            data=calib,
            height=height,
            width=width,
            detector=detector,
            arguments=arch_args,
            precision="int8" if int8 else None,
            sparse=sparse,
            targets=() if "none" in targets else targets or None,
            recipe=recipe,
            reporter=reporter,
        )
    _show(place, parts, as_json=as_json)


def _show(place: Path, parts: dict[str, Bundle], *, as_json: bool) -> None:
    from gpusq_deploy.bundle import bundle_json, print_bundle

    if as_json:
        echo_json({"detector": str(place), "parts": {name: bundle_json(bundle) for name, bundle in parts.items()}})
        return
    for bundle in parts.values():
        print_bundle(bundle)


def main() -> None:
    """Entry point."""
    run_command(command)
