"""gpusq-compare: is HEAD slower than BASE by more than the budget? The exit code is the answer."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from gpusq_deploy.cli.command import Command, on_command_line
from gpusq_deploy.cli.common import run_command, say
from gpusq_deploy.cli.shares import Percent
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import Runs

# Whether there is such a file is told by who reads it: that is no mistake in the command, and exits with another code.
_FILE = click.Path(path_type=Path)
_NO_BUNDLE = "a folder without manifest.json"
_ENGINE_SUFFIXES = (".plan", ".engine")
_CHECKPOINTS = (".pt", ".pth", ".pt2", ".bin", ".ckpt", ".safetensors", ".tar")


@click.command(name="gpusq-compare", cls=Command)
@click.argument("base", metavar="BASE", type=_FILE)
@click.argument("head", metavar="HEAD", type=_FILE)
@click.option(
    "--max-regression",
    metavar="PERCENT",
    default="3%",
    show_default=True,
    type=Percent(),
    help="Allow HEAD to be this much slower: 3%, or 3, which is the same.",
)
@click.option(
    "--steady",
    is_flag=True,
    help="Check that the machine was steady, with one model measured twice: exit 3 if the two differ by more.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.pass_context
def command(
    context: click.Context, *, base: Path, head: Path, max_regression: float, steady: bool, as_json: bool
) -> None:
    """Compare two files that gpusq-bench --json wrote on one machine; or two bundles, without timing.

    Exit codes: 0 holds, 1 regressed or worse, 3 inconclusive or not steady, 4 not comparable, 5 a file can't be read.
    """
    if all(_kind(path) == "a bundle" for path in (base, head)):
        _compare_bundles(context, base, head, as_json=as_json)
    from gpusq_deploy.artifacts import json_from_value
    from gpusq_deploy.benchmarks import compare, text_from_comparison

    comparison = compare(*_runs_of(base, head), max_regression, steady=steady)
    click.echo(json_from_value(comparison).decode().rstrip() if as_json else text_from_comparison(comparison))
    context.exit(comparison.exit_code)


def _compare_bundles(context: click.Context, base: Path, head: Path, *, as_json: bool) -> NoReturn:
    from gpusq_deploy.artifacts import json_from_value
    from gpusq_deploy.benchmarks import compare_bundles
    from gpusq_deploy.bundle import read_bundle

    for option in on_command_line(context, ("max_regression", "steady")):
        raise click.UsageError(f"{option} is for files of runs: bundles are compared without timing")
    comparison = compare_bundles(read_bundle(base), read_bundle(head))
    click.echo(json_from_value(comparison).decode().rstrip() if as_json else comparison.text())
    if not as_json:
        kinds = [(path, "a bundle") for path in (base, head)]
        say(f"nothing was timed; to compare latency: {_commands(kinds)}")
    context.exit(comparison.exit_code)


def _runs_of(base: Path, head: Path) -> tuple[Runs, Runs]:
    from gpusq_deploy.artifacts import Runs, read_value, require_input

    for path in (base, head):
        require_input(path)
    kinds = [(path, _kind(path)) for path in (base, head)]
    for path, kind in kinds:
        if kind:
            raise GpusqError(
                f"{kind} isn't what gpusq-compare takes: files of runs, which gpusq-bench --json writes",
                place=str(path),
                hint=_commands(kinds),
            )
    return read_value(base, Runs), read_value(head, Runs)


def _kind(path: Path) -> str:
    """What was given in place of a file of runs; empty for a file that may be one."""
    from gpusq_deploy.frontend import is_bundle, is_saved_folder

    if path.is_dir():
        saved = "a checkpoint" if is_saved_folder(path) else _NO_BUNDLE
        return "a bundle" if is_bundle(path) else saved
    if path.suffix in _ENGINE_SUFFIXES:
        return "an engine"
    if path.suffix == ".onnx":
        return "an ONNX model"
    return "a checkpoint" if path.suffix in _CHECKPOINTS else ""


def _commands(kinds: list[tuple[Path, str]]) -> str:
    """What makes files of runs of these, and compares them."""
    if any(kind == _NO_BUNDLE for _, kind in kinds):
        return "give two bundles that gpusq-build made, or two files that gpusq-bench --json wrote"
    lines: list[str] = []
    files: list[str] = []
    for (path, kind), name in zip(kinds, ("base", "head"), strict=True):
        model = str(path)
        if kind == "a checkpoint":
            model = f"{name}.gpusq"
            lines.append(shlex.join(["gpusq-build", str(path), "--int8", "--calib", "IMAGES", "--out", model]))
        reference = ["--reference", "MODEL.onnx"] if kind == "an engine" and not _in_bundle(path) else []
        if kind:
            lines.append(shlex.join(["gpusq-bench", model, *reference, "--json", f"{name}.json"]))
        files.append(f"{name}.json" if kind else str(path))
    return " && ".join([*lines, shlex.join(["gpusq-compare", *files])])


def _in_bundle(path: Path) -> bool:
    from gpusq_deploy.bundle import is_ours

    return is_ours(path.resolve().parent.parent)


def main() -> None:
    """Entry point of gpusq-compare."""
    run_command(command)


if __name__ == "__main__":
    main()
