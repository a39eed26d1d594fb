"""`python -m gpusq_deploy build …`: the commands by their short names, where scripts aren't on the PATH."""

from __future__ import annotations

import importlib
from typing import Any

import click

from gpusq_deploy.cli import Grouped, run_command

COMMANDS = (
    "build",
    "calibrate",
    "validate",
    "inspect",
    "bench",
    "compare",
    "compress",
    "rewrite",
    "eval",
    "run",
    "export",
    "doctor",
    "detector",
)


class _Commands(Grouped):
    """Imports a command's module when it is asked for, and no sooner."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module: Any = importlib.import_module(f"gpusq_deploy.cli.{cmd_name}")
        found: click.Command = module.command
        return found


@click.command(cls=_Commands)
def group() -> None:
    """Deployment compiler for compressed vision transformers."""


if __name__ == "__main__":
    run_command(group)
