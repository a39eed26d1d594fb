"""How every command starts, reports and ends."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from gpusq_deploy.errors import GpusqError

INTERRUPTED = 130


def run_command(command: click.Command) -> NoReturn:
    """Run a command and exit: 0 or the command's own code, 2 usage, 5 `GpusqError`, 130 interrupted.

    Any other exception is our bug: it keeps its traceback.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = command.main(standalone_mode=False)
    except GpusqError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted: nothing was changed", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def say(text: str) -> None:
    """Progress and remarks: to stderr, never to stdout."""
    click.echo(text, err=True)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
