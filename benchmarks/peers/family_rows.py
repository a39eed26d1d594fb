"""Rows of a table, one for each family: each made in a process of its own, and kept as soon as it is there."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpusq_deploy.benchmarks.peers.family_models import FAMILIES, Family
from gpusq_deploy.errors import GpusqError

Row = dict[str, Any]


def options_parser(description: str | None) -> argparse.ArgumentParser:
    """`--json`, `--only`, and `--row` for the processes that make rows."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    names = [family.name for family in FAMILIES]
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help="a family, again if it has a row"
    )
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser


def run_families(
    script: str, options: argparse.Namespace, what: str, measure: Callable[[Family, Row], None]
) -> Mapping[str, Row]:
    """Rows by family, in order: those that the file has, and those that it lacks or that were asked for.

    In a process that makes one row, it is printed, and there are none.

    Args:
        script: The caller's file.
        options: Of `options_parser`.
        what: What the file says that it holds.
        measure: Fills in a family's row.
    """
    if options.row:
        print(json.dumps(_row(next(family for family in FAMILIES if family.name == options.row), measure)))
        return {}
    rows = _kept(options.json)
    wanted = options.only or [family.name for family in FAMILIES if family.name not in rows]
    for family in FAMILIES:
        if family.name in wanted:
            rows[family.name] = _in_own_process(script, family)
            print(json.dumps(rows[family.name]), flush=True)
            rows = {known.name: rows[known.name] for known in FAMILIES if known.name in rows}
            options.json.write_text(json.dumps({"what": what, "rows": [*rows.values()]}, indent=2) + "\n", "utf-8")
    return rows


def _kept(path: Path) -> dict[str, Row]:
    if not path.exists():
        return {}
    return {row["family"]: row for row in json.loads(path.read_text("utf-8"))["rows"]}


def _in_own_process(script: str, family: Family) -> Row:
    command = [sys.executable, script, "--json", "-", "--row", family.name]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode == 0:
        found: Row = json.loads(ended.stdout.splitlines()[-1])
        return found
    last = ended.stderr.strip().splitlines()[-1:] or [f"exit {ended.returncode}"]
    return {"family": family.name, "model": str(family.spec), "failed": last[0]}


def _row(family: Family, measure: Callable[[Family, Row], None]) -> Row:
    row: Row = {"family": family.name, "model": str(family.spec), "batch": family.batch}
    try:
        measure(family, row)
    except GpusqError as error:
        row["failed"] = str(error)
    row["peak_rss_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    return row
