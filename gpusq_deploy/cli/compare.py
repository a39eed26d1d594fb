"""gpusq-compare: is HEAD slower than BASE by more than the budget? The exit code is the answer."""

from __future__ import annotations

from pathlib import Path

import click

import gpusq_deploy
from gpusq_deploy.cli.command import Command, on_command_line
from gpusq_deploy.cli.common import run_command, say
from gpusq_deploy.cli.compare_bundles import Outputs, compare_two_bundles
from gpusq_deploy.cli.shares import max_regression_option

# Whether there is such a file is told by who reads it: that is no mistake in the command, and exits with another code.
_FILE = click.Path(path_type=Path)


@click.command(name="gpusq-compare", cls=Command)
@click.argument("base", metavar="BASE", type=_FILE)
@click.argument("head", metavar="HEAD", type=_FILE)
@max_regression_option
@click.option(
    "--steady",
    is_flag=True,
    help="Check that the machine was steady, with one model measured twice: exit 3 if the two differ by more.",
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
@click.option(
    "--summary",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Append the verdict in Markdown, as to $GITHUB_STEP_SUMMARY.",
)
@click.option(
    "--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write the verdict as JUnit's XML, as for GitLab."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.pass_context
def command(  # noqa: PLR0913 - click hands one argument to each option
    context: click.Context,
    *,
    base: Path,
    head: Path,
    max_regression: float,
    steady: bool,
    html: Path | None,
    expect: Path | None,
    summary: Path | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Compare two files that gpusq-bench --json wrote on one machine; or two bundles, without timing.

    Exit codes: 0 holds, 1 regressed or worse, 3 inconclusive or not steady, 4 not comparable, 5 a file can't be read.
    """
    from gpusq_deploy.artifacts import json_from_value
    from gpusq_deploy.benchmarks import text_from_comparison
    from gpusq_deploy.frontend import is_bundle

    if is_bundle(base) and is_bundle(head):
        for option in on_command_line(context, ("max_regression", "steady")):
            raise click.UsageError(f"{option} is for files of runs: bundles are compared without timing")
        outputs = Outputs(html=html, summary=summary, junit=junit, as_json=as_json)
        context.exit(compare_two_bundles(base, head, expect, outputs))
    for option in on_command_line(context, ("expect", "summary", "junit")):
        raise click.UsageError(f"{option} is for two bundles")
    comparison = gpusq_deploy.compare(base, head, max_regression=max_regression, steady=steady, html=html)
    click.echo(json_from_value(comparison).decode().rstrip() if as_json else text_from_comparison(comparison))
    if html is not None:
        say(f"wrote {html}")
    context.exit(comparison.exit_code)


def main() -> None:
    """Entry point of gpusq-compare."""
    run_command(command)


if __name__ == "__main__":
    main()
