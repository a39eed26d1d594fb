"""gpusq-run: what does a model say of these images?"""

from __future__ import annotations

from pathlib import Path

import click

import gpusq_deploy
from gpusq_deploy.cli.command import LOUDNESS, Command
from gpusq_deploy.cli.common import arch_options, echo_json, reporting, require_arch, run_command, runtime_option

_GROUPS = (
    ("Most used", ("--out", "--threshold", "--runtime")),
    ("Models", ("--arch", "--arch-arg", "--state-dict")),
    ("Output", ("--force", *LOUDNESS)),
)
_FILE = click.Path(path_type=Path)


@click.command(name="gpusq-run", cls=Command, groups=_GROUPS)
@click.argument("model", metavar="BUNDLE|DETECTOR|CHECKPOINT|ONNX", type=_FILE)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=_FILE)
@arch_options
@click.option(
    "--out", type=_FILE, metavar="DIR", help="Draw boxes, masks, label maps or classes on copies in this folder."
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Tell boxes and masks that are likelier than this.",
)
@runtime_option("Run a bundle or an ONNX file with this runtime; a checkpoint runs in torch.")
@click.option("--force", is_flag=True, help="Replace copies that are there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def command(  # noqa: PLR0913 - click hands one argument to each option
    *,
    model: Path,
    images: tuple[Path, ...],
    arch: str | None,
    arch_args: tuple[str, ...],
    state_dict: str | None,
    out: Path | None,
    threshold: float,
    runtime: str,
    force: bool,
    as_json: bool,
) -> None:
    """Run a model on images: print the likeliest classes, boxes, or the classes of label maps; and draw them.

    A DETECTOR is what gpusq-detector made. Masks are drawn, and lie in the JSON in COCO's run-length encoding.
    """
    from gpusq_deploy.artifacts import builtins_from_value, require_input

    require_input(model)
    require_arch(model, arch, arch_args)
    with reporting() as reporter:
        answers = gpusq_deploy.run(
            model,
            images,
            out=out,
            threshold=threshold,
            masks=as_json,
            arch=arch,
            arch_args=arch_args,
            state_dict=state_dict,
            runtime=runtime,
            force=force,
            reporter=reporter,
        )
    if as_json:
        echo_json(builtins_from_value(answers))
        return
    from gpusq_deploy.benchmarks import texts_of

    for shown in answers.images:
        click.echo(f"{shown.image}:" + ("" if shown.drawn is None else f" drawn in {shown.drawn}"))
        for line in texts_of(shown) or ("nothing likelier than the threshold",):
            click.echo(f"  {line}")


def main() -> None:
    """Entry point of gpusq-run."""
    run_command(command)


if __name__ == "__main__":
    main()
