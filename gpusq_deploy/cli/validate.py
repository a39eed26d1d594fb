"""gpusq-validate: is it 2:4, are its Q/DQ sound, is the bundle whole?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpusq_deploy.cli.common import echo_json, run_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpusq_deploy.explain import LayerExplanation
    from gpusq_deploy.validate import Validation


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", metavar="MODEL|BUNDLE", type=click.Path(path_type=Path))
@click.option("--arch", metavar="SPEC", help="Architecture of a checkpoint that doesn't describe itself.")
@click.option("--arch-arg", "arch_args", multiple=True, metavar="K=V", help="Argument of the architecture; repeatable.")
@click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE", help="Which layers should be 2:4.")
@click.option("--target", "targets", multiple=True, metavar="NAME", help="Explain each layer for this GPU; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the table.")
def command(
    path: Path,
    *,
    arch: str | None,
    arch_args: tuple[str, ...],
    recipe: Path | None,
    targets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check a checkpoint, an .onnx file or a bundle. Exit 0: nothing found, 1: something found."""
    from gpusq_deploy.targets import find_target
    from gpusq_deploy.validate import explanations, validate

    gpus = [find_target(name) for name in targets]
    spec = None
    if arch is not None:
        from gpusq_deploy.checkpoint.architecture import arch_from_text

        spec = arch_from_text(arch, arch_args)
    elif arch_args:
        raise click.UsageError("--arch-arg needs --arch")
    result = validate(path, arch=spec, recipe=recipe)
    explained = [explanations(path, result, gpu) for gpu in gpus]
    if as_json:
        _echo_json(path, result, explained)
    else:
        _print(path, result)
        _print_explained(explained)
    click.get_current_context().exit(1 if result.findings else 0)


def _echo_json(path: Path, result: Validation, explained: Sequence[Sequence[LayerExplanation]]) -> None:
    import msgspec

    echo_json(
        {
            "path": str(path),
            "kind": result.kind,
            "ok": not result.findings,
            "findings": msgspec.to_builtins(result.findings),
            "sparsity": msgspec.to_builtins(result.sparsity),
            "explained": msgspec.to_builtins([layer for layers in explained for layer in layers]),
        }
    )


def _print(path: Path, result: Validation) -> None:
    from rich.console import Console
    from rich.table import Table

    from gpusq_deploy.explain import flops_shares

    console = Console()
    table = Table(title=f"{path} ({result.kind})", title_justify="left")
    shares = flops_shares(result.sparsity.layers)
    for heading in ("layer", "N x K", "zeros", "FLOPs", "2:4", "expected"):
        table.add_column(heading, no_wrap=heading != "layer", min_width=16 if heading == "layer" else None)
    for layer in result.sparsity.layers:
        broken = f", {layer.violations}/{layer.groups}" if layer.violations else ""
        state = f"{layer.diagnosis}{broken}"
        expected = ("yes" if layer.expected else "no") if result.sparsity_asked else "not asked"
        share = f"{shares[layer.layer]:.1%}" if layer.layer in shares else "unknown"
        table.add_row(layer.layer, f"{layer.n} x {layer.k}", f"{layer.zero_fraction:.1%}", share, state, expected)
    console.print(table)
    for layer in result.sparsity.layers:
        if result.sparsity_asked and not layer.expected:
            line = f"dense by intent: {layer.layer}: {layer.reason}"
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    for finding in result.findings:
        console.print(f"{finding.rule}: {finding.place}: {finding.what}; {finding.hint}", soft_wrap=True, markup=False)
    console.print(f"{len(result.findings)} finding(s)")


def _print_explained(explained: Sequence[Sequence[LayerExplanation]]) -> None:
    from gpusq_deploy.cli.explain import print_chains

    for layers in explained:
        print_chains(layers)


def main() -> None:
    """Entry point."""
    run_command(command)
