"""gpusq-compare: is HEAD slower than BASE by more than the budget? The exit code is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

import gpusq_deploy
from gpusq_deploy.cli.command import LOUDNESS, Command, on_command_line
from gpusq_deploy.cli.common import run_command, say
from gpusq_deploy.cli.compare_bundles import Outputs, compare_two_bundles
from gpusq_deploy.cli.result_files import append, check_junit, junit_option, save, summary_option
from gpusq_deploy.cli.session import session
from gpusq_deploy.cli.shares import max_regression_option

if TYPE_CHECKING:
    from gpusq_deploy.benchmarks import Comparison, Comparisons

# Whether there is such a file is told by who reads it: that is no mistake in the command, and exits with another code.
_FILE = click.Path(path_type=Path)
_GROUPS = (
    ("What to ask", ("--max-regression", "--steady", "--expect", "--history")),
    ("Output", ("--summary", "--junit", "--html", *LOUDNESS)),
)


@click.command(name="gpusq-compare", cls=Command, groups=_GROUPS)
@click.argument("paths", metavar="BASE HEAD [BASE HEAD]...", nargs=-1, type=_FILE)
@max_regression_option
@click.option(
    "--steady",
    is_flag=True,
    help="Check that the machine was steady, with one model measured twice: exit 3 if the two differ by more.",
)
@click.option(
    "--history",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Instead of files, tell where the level of this history, as gpusq-bench --history writes it, changed.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write the comparison as one self-contained page for a browser.",
)
@click.option(
    "--expect",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Hold two bundles against a TOML file of budgets (docs/benchmarking.md); exit 1 where one is exceeded.",
)
@summary_option
@junit_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.pass_context
def command(  # noqa: PLR0913 - click hands one argument to each option
    context: click.Context,
    *,
    paths: tuple[Path, ...],
    max_regression: float,
    steady: bool,
    history: Path | None,
    html: Path | None,
    expect: Path | None,
    summary: Path | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Compare two files that gpusq-bench --json wrote on one machine; or two bundles, without timing.

    Several pairs, or two folders with files of the same names, are several models, and decided together. With
    --history, the newest change of each series is compared with the budget.

    Exit codes: 0 holds, 1 regressed or worse, 3 inconclusive or not steady, 4 not comparable, 5 a file can't be read.
    """
    from gpusq_deploy.frontend import is_bundle

    outputs = Outputs(html=html, summary=summary, junit=junit, as_json=as_json)
    if history is not None:
        if paths:
            raise click.UsageError("give BASE and HEAD, or --history, not both")
        context.exit(_compare_history(context, history, outputs, max_regression))
    if len(paths) % 2 or not paths:
        raise click.UsageError(f"give BASE and HEAD, or several such pairs: {len(paths)} paths are no pairs")
    if len(paths) == 2 and all(is_bundle(path) for path in paths):
        for option in on_command_line(context, ("max_regression", "steady")):
            raise click.UsageError(f"{option} is for files of runs: bundles are compared without timing")
        context.exit(compare_two_bundles(paths[0], paths[1], expect, outputs))
    for option in on_command_line(context, ("expect",)):
        raise click.UsageError(f"{option} is for two bundles")
    context.exit(_compare_runs(paths, outputs, max_regression=max_regression, steady=steady))


def _compare_runs(paths: Sequence[Path], outputs: Outputs, *, max_regression: float, steady: bool) -> int:
    from gpusq_deploy.api import files_of_runs
    from gpusq_deploy.artifacts import json_from_value, require_folder
    from gpusq_deploy.benchmarks import junit_from_comparison, markdown_from_comparison

    given = zip(paths[::2], paths[1::2], strict=True)
    models = [pair for base, head in given for pair in files_of_runs(base, head)]
    if outputs.html is not None and len(models) > 1:
        raise click.UsageError(f"--html takes one pair, not {len(models)}")
    if outputs.junit is not None:
        check_junit(outputs.junit)
    if outputs.summary is not None:
        require_folder(outputs.summary)
    comparisons = gpusq_deploy.compare_models(models, max_regression=max_regression, steady=steady)
    one = comparisons.models[0].comparison if len(models) == 1 else comparisons
    if outputs.html is not None:
        gpusq_deploy.compare(*models[0], max_regression=max_regression, steady=steady, html=outputs.html)
    click.echo(json_from_value(one).decode().rstrip() if outputs.as_json else _text(one))
    _say_written(outputs.html)
    if outputs.junit is not None:
        save(junit_from_comparison(comparisons), outputs.junit)
    if outputs.summary is not None:
        append(markdown_from_comparison(comparisons), outputs.summary)
    return comparisons.exit_code


def _compare_history(context: click.Context, history: Path, outputs: Outputs, max_regression: float) -> int:
    from gpusq_deploy.artifacts import json_from_value
    from gpusq_deploy.benchmarks import history_line, text_from_history

    for option in on_command_line(context, ("steady", "expect", "summary", "junit")):
        raise click.UsageError(f"{option} is for files of runs")
    report = gpusq_deploy.compare_history(history, max_regression=max_regression, html=outputs.html)
    if outputs.as_json:
        click.echo(json_from_value(report).decode().rstrip())
    else:
        fine = session.quiet and report.exit_code == 0 and not report.damaged
        click.echo(history_line(report) if fine else text_from_history(report))
    _say_written(outputs.html)
    return report.exit_code


def _text(comparison: Comparison | Comparisons) -> str:
    """The table; of a comparison that ran and is fine, with --quiet, one line."""
    from gpusq_deploy.benchmarks import comparison_line, text_from_comparison

    fine = session.quiet and comparison.exit_code == 0
    return comparison_line(comparison) if fine else text_from_comparison(comparison)


def _say_written(html: Path | None) -> None:
    if html is not None:
        say(f"wrote {html}")


def main() -> None:
    """Entry point of gpusq-compare."""
    run_command(command)


if __name__ == "__main__":
    main()
