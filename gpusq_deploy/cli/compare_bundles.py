"""gpusq-compare of two bundles: what changed, without timing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

import gpusq_deploy
from gpusq_deploy.cli.common import say
from gpusq_deploy.cli.result_files import append, check_junit, save
from gpusq_deploy.cli.session import session

if TYPE_CHECKING:
    from gpusq_deploy.benchmarks import BundleComparison


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """Where the comparison goes besides the text: a page, Markdown that is added to a file, JUnit's XML; or as JSON."""

    html: Path | None
    summary: Path | None
    junit: Path | None
    as_json: bool


def compare_two_bundles(base: Path, head: Path, expect: Path | None, outputs: Outputs) -> int:
    """Compare, print and write.

    Args:
        base: A bundle.
        head: What would replace it.
        expect: A file of budgets.
        outputs: Where to.

    Returns:
        The exit code.

    Raises:
        GpusqError: Not a bundle, not a file of budgets, or a file can't be written.
    """
    from gpusq_deploy.artifacts import json_from_value
    from gpusq_deploy.benchmarks import junit_from_bundles, markdown_from_bundles

    if outputs.junit is not None:
        check_junit(outputs.junit)
    comparison = gpusq_deploy.compare_bundles(base, head, expect=expect, html=outputs.html)
    click.echo(json_from_value(comparison).decode().rstrip() if outputs.as_json else _text(comparison))
    if not outputs.as_json:
        _advise(base, head)
    if outputs.html is not None:
        say(f"wrote {outputs.html}")
    if outputs.summary is not None:
        append(markdown_from_bundles(comparison, base=base.name, head=head.name), outputs.summary)
    if outputs.junit is not None:
        save(junit_from_bundles(comparison, head=head.name), outputs.junit)
    return comparison.exit_code


def _text(comparison: BundleComparison) -> str:
    """With --quiet one line where nothing is wrong, with --verbose every kernel."""
    if session.quiet and not comparison.exit_code:
        return comparison.line()
    return comparison.text(whole=session.verbose)


def _advise(base: Path, head: Path) -> None:
    from gpusq_deploy.api import timing_commands

    commands = timing_commands([(path, "a bundle") for path in (base, head)])
    say(f"nothing was timed; to compare latency: {commands}")
