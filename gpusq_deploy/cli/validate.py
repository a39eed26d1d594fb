"""gpusq-validate: is it 2:4, are its Q/DQ sound, is the bundle whole?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpusq_deploy.cli.common import echo_json, run_command

if TYPE_CHECKING:
    from gpusq_deploy.validate import Validation


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", metavar="MODEL|BUNDLE", type=click.Path(path_type=Path))
@click.option("--arch", metavar="SPEC", help="Architecture of a checkpoint that doesn't describe itself.")
@click.option("--arch-arg", "arch_args", multiple=True, metavar="K=V", help="Argument of the architecture; repeatable.")
@click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE", help="Which layers should be 2:4.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the table.")
@click.pass_context
def command(
    context: click.Context,
    path: Path,
    *,
    arch: str | None,
    arch_args: tuple[str, ...],
    recipe: Path | None,
    as_json: bool,
) -> None:
    """Check a checkpoint, an .onnx file or a bundle. Exit 0: nothing found, 1: something found."""
    from gpusq_deploy.validate import validate

    spec = None
    if arch is not None:
        from gpusq_deploy.checkpoint.architecture import arch_from_text

        spec = arch_from_text(arch, arch_args)
    elif arch_args:
        raise click.UsageError("--arch-arg needs --arch")
    result = validate(path, arch=spec, recipe=recipe)
    if as_json:
        _echo_json(path, result)
    else:
        _print(path, result)
    context.exit(1 if result.findings else 0)


def _echo_json(path: Path, result: Validation) -> None:
    import msgspec

    echo_json(
        {
            "path": str(path),
            "kind": result.kind,
            "ok": not result.findings,
            "findings": msgspec.to_builtins(result.findings),
            "sparsity": msgspec.to_builtins(result.sparsity),
        }
    )


def _print(path: Path, result: Validation) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"{path} ({result.kind})", title_justify="left")
    for heading in ("layer", "N x K", "zeros", "2:4", "expected"):
        table.add_column(heading, no_wrap=heading != "layer")
    for layer in result.sparsity.layers:
        state = "valid" if layer.valid else f"{layer.violations} of {layer.groups} groups broken"
        expected = ("yes" if layer.expected else "no") if result.sparsity_asked else "not asked"
        table.add_row(layer.layer, f"{layer.n} x {layer.k}", f"{layer.zero_fraction:.1%}", state, expected)
    console.print(table)
    for finding in result.findings:
        console.print(f"{finding.rule}: {finding.place}: {finding.what}; {finding.hint}", soft_wrap=True, markup=False)
    console.print(f"{len(result.findings)} finding(s)")


def main() -> None:
    """Entry point."""
    run_command(command)
