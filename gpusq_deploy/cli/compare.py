"""gpusq-compare: is HEAD slower than BASE by more than the budget? The exit code is the answer."""

from __future__ import annotations

import math
from pathlib import Path

import click

from gpusq_deploy.cli.command import Command
from gpusq_deploy.cli.common import run_command

# Whether there is such a file is told by who reads it: that is no mistake in the command, and exits with another code.
_FILE = click.Path(path_type=Path)


def _parse_percent(_context: click.Context, _option: click.Parameter, text: str) -> float:
    """A share from "3%", "3" or "0.5%": the number is always a percentage."""
    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        percent = math.nan
    if not (math.isfinite(percent) and percent >= 0):
        raise click.BadParameter(f"{text!r} is not a percentage such as 3%, 3 or 0.5%")
    return percent / 100


@click.command(cls=Command)
@click.argument("base", metavar="BASE", type=_FILE)
@click.argument("head", metavar="HEAD", type=_FILE)
@click.option(
    "--max-regression",
    metavar="PERCENT",
    default="3%",
    show_default=True,
    callback=_parse_percent,
    help="How much slower HEAD may be, in percent.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the table.")
@click.pass_context
def command(context: click.Context, *, base: Path, head: Path, max_regression: float, as_json: bool) -> None:
    """Compare two files that gpusq-bench --json wrote on one machine.

    Exit codes: 0 holds, 1 regressed, 3 inconclusive, 4 not comparable, 5 a file can't be read.
    """
    from gpusq_deploy.artifacts.base import json_from_value, read_value
    from gpusq_deploy.artifacts.runs import Runs
    from gpusq_deploy.benchmarks.compare import compare
    from gpusq_deploy.benchmarks.report import text_from_comparison

    comparison = compare(read_value(base, Runs), read_value(head, Runs), max_regression)
    click.echo(json_from_value(comparison).decode().rstrip() if as_json else text_from_comparison(comparison))
    context.exit(comparison.exit_code)


def main() -> None:
    """Entry point of gpusq-compare."""
    run_command(command)


if __name__ == "__main__":
    main()
