"""gpusq-rewrite: passes by name on an ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

from gpusq_deploy.cli.command import Command
from gpusq_deploy.cli.common import echo_json, run_command
from gpusq_deploy.errors import GpusqError


def _print_passes(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if not asked or context.resilient_parsing:
        return
    from gpusq_deploy.graph import PASSES, PIPELINES

    width = max(map(len, PASSES))
    for name, entry in PASSES.items():
        needs = f" (in a build only: it needs {entry.decided_by})" if entry.decided_by else ""
        click.echo(f"{name:{width}}  {entry.summary}{needs}")
    for name, names in PIPELINES.items():
        click.echo(f"{name:{width}}  {', '.join(names)}")
    context.exit()


@click.command(cls=Command)
@click.argument("passes")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace OUT.")
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_passes,
    help="List the passes and pipelines, and exit.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
def command(*, passes: str, model: Path, out: Path, force: bool, as_json: bool) -> None:
    """Run PASSES (names of passes or pipelines, with commas) on MODEL, an ONNX file; write the graph to OUT.

    What each pass changed is printed.
    """
    from gpusq_deploy.artifacts import builtins_from_value, require_input
    from gpusq_deploy.graph import PassLog, make_pass, map_model, pass_names, run_passes, save_model

    steps = [make_pass(name) for asked in passes.split(",") for name in pass_names(asked)]
    require_input(model)
    _require_place(model, out, force=force)
    log, graph = PassLog(), map_model(model)
    save_model(run_passes(graph, steps, after=log.after(graph)), out)
    if as_json:
        echo_json({"model": str(model), "out": str(out), "passes": builtins_from_value(log.records)})
        return
    for record in log.records:
        click.echo(str(record))


def _require_place(model: Path, out: Path, *, force: bool) -> None:
    from gpusq_deploy.artifacts import require_folder

    require_folder(out)
    if out.is_dir() or (out.exists() and (not force or out.samefile(model))):
        hint = "name another file" if force or out.is_dir() else "--force replaces it; or name another file"
        raise GpusqError("the output exists already", place=str(out), hint=hint)


def main() -> None:
    """Entry point."""
    run_command(command)
