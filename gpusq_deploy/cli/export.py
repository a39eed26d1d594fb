"""gpusq-export: a bundle in the form that others deploy."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

import gpusq_deploy
from gpusq_deploy.cli.command import LOUDNESS, Command
from gpusq_deploy.cli.common import echo_json, run_command, say

_GROUPS = (
    ("Most used", ("--to", "--out")),
    ("Model", ("--name", "--labels", "--cpu")),
    ("Output", ("--force", *LOUDNESS)),
)
_FILE = click.Path(path_type=Path)
_KINDS = ("triton", "trtexec", "onnx", "docker")


@click.command(name="gpusq-export", cls=Command, groups=_GROUPS)
@click.argument("bundle", metavar="BUNDLE", type=_FILE)
@click.option(
    "--to",
    type=click.Choice(_KINDS),
    required=True,
    help="Write a Triton repository, build commands, the model with programs, or Dockerfiles.",
)
@click.option("--out", type=_FILE, metavar="DIR", help="Write this folder (default: BUNDLE-KIND beside the bundle).")
@click.option("--name", metavar="NAME", help="Call the model so (default: as the bundle).")
@click.option("--labels", type=_FILE, metavar="FILE", help="Name the classes as this file does, one in each line.")
@click.option("--cpu", is_flag=True, help="Let Triton serve the model on the CPU.")
@click.option("--force", is_flag=True, help="Replace a folder that gpusq-export wrote.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def command(  # noqa: PLR0913 - click hands one argument to each option
    *,
    bundle: Path,
    to: str,
    out: Path | None,
    name: str | None,
    labels: Path | None,
    cpu: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write a folder that runs a bundle's model without this package."""
    if cpu and to != "triton":
        raise click.UsageError("--cpu goes with --to triton alone")
    from gpusq_deploy.artifacts import ExportKind, builtins_from_value

    kind = cast("ExportKind", to)
    done = gpusq_deploy.export(bundle, kind, out=out, name=name, labels=labels, cpu=cpu, force=force)
    if as_json:
        echo_json({"folder": str(done.folder), **builtins_from_value(done.record)})
        return
    say(f"wrote {done.folder}")
    for file in done.record.files:
        click.echo(f"{file.size:>12,}  {file.path}")
    for remark in done.record.remarks:
        say(remark)


def main() -> None:
    """Entry point of gpusq-export."""
    run_command(command)


if __name__ == "__main__":
    main()
