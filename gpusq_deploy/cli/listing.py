"""`gpusq-build --list`: what can be named to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gpusq_deploy.cli.common import echo_json, say
from gpusq_deploy.cli.session import session

if TYPE_CHECKING:
    from gpusq_deploy.engines import Target

LISTS = ("targets", "recipes", "architectures")


def print_list(context: click.Context, _option: click.Parameter, asked: str | None) -> None:
    """Print one list and end the command; `architectures:PATTERN` prints some.

    Raises:
        click.BadParameter: There is no such list.
        GpusqError: No architecture matches.
    """
    if asked is None or context.resilient_parsing:
        return
    name, _, pattern = asked.partition(":")
    if name not in LISTS or (pattern and name != "architectures"):
        raise click.BadParameter(f"{asked!r} is none of {', '.join(LISTS)} and architectures:PATTERN")
    entries = _targets() if name == "targets" else _recipes() if name == "recipes" else _architectures(pattern)
    if session.json:
        echo_json({name: entries})
    else:
        _print(entries)
    context.exit()


def _targets() -> list[dict[str, Any]]:
    from gpusq_deploy.engines import load_targets

    return [
        {
            "name": target.name,
            "gpus": target.gpus,
            "compute_capability": target.compute_capability,
            "engine": _where(target),
            "types": ", ".join(target.dtypes),
            "sparse": ", ".join(target.sparse_dtypes) or "none",
        }
        for target in load_targets()
    ]


def _where(target: Target) -> str:
    if target.ahead_of_time:
        return f"anywhere, by {' or '.join(target.ahead_of_time)}"
    return f"on the device, by {' or '.join(target.on_device)}"


def _recipes() -> list[dict[str, Any]]:
    from pathlib import Path

    from gpusq_deploy.artifacts import DEFAULT_RECIPE, SHIPPED, load_recipe

    recipes = {name: load_recipe(Path(name)) for name in SHIPPED}
    return [
        {
            "name": name,
            "makes": ", ".join(sorted(recipe.precisions)),
            "default": "default" if name == DEFAULT_RECIPE else "",
            "description": recipe.description,
        }
        for name, recipe in recipes.items()
    ]


def _architectures(pattern: str) -> list[dict[str, Any]]:
    from gpusq_deploy.frontend import known_architectures

    names, absent = known_architectures(pattern)
    for sentence in absent:
        say(sentence)
    return [{"name": name} for name in names]


def _print(entries: list[dict[str, Any]]) -> None:
    """Plain columns, two spaces apart: easy to read, and to cut."""
    if not entries:
        return
    rows = [list(entries[0]), *([str(cell) for cell in entry.values()] for entry in entries)]
    if len(rows[0]) == 1:
        rows = rows[1:]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
