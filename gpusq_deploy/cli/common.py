"""How every command starts, reports and ends."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from gpusq_deploy.cli.command import PipeClosedError
from gpusq_deploy.cli.ending import PIPE_CLOSED, abandon_streams, end
from gpusq_deploy.cli.plain_progress import PlainProgress
from gpusq_deploy.cli.session import filter_advice, session
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import BatchRange
    from gpusq_deploy.progress import Reporter

_Function = TypeVar("_Function", bound=Callable[..., Any])


def run_command(command: click.Command) -> NoReturn:
    """Run a command and exit: 0 or the command's own code, or one of those in `ending`.

    Where whoever reads the output is gone, as in `gpusq-inspect B | head`, it ends in silence.
    """
    signal.signal(signal.SIGTERM, _terminate)
    # torch's modules are half a million objects: to look through them for garbage takes a tenth of a build's time.
    gc.set_threshold(50_000, 20, 50)
    session.begin()
    try:
        code = _attempt(command)
        sys.stdout.flush()
    except (BrokenPipeError, PipeClosedError):
        abandon_streams()
        code = PIPE_CLOSED
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # torchrun's: a thread of gloo may still hold tensors, and aborts the process where Python has ended before it.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _attempt(command: click.Command) -> int:
    try:
        with warnings.catch_warnings():
            filter_advice("ignore")
            code = command.main(standalone_mode=False)
    except (BrokenPipeError, PipeClosedError):
        raise
    except (Exception, KeyboardInterrupt) as error:
        return end(error)
    return code if isinstance(code, int) else 0


def say(text: str) -> None:
    """Progress and remarks: to stderr, never to stdout; nothing with --quiet."""
    if not session.quiet:
        click.echo(text, err=True)


@contextmanager
def reporting(*, silent: bool = False) -> Generator[Reporter, None, None]:
    """Who hears how the work goes: stderr, or nobody with --quiet and where another process speaks for all."""
    from gpusq_deploy.progress import SILENT, Reporter

    if session.quiet or silent:
        yield SILENT
        return
    with _shown() as (progress, detail):
        yield Reporter(say=say, progress=progress, detail=detail)


def echo_json(content: dict[str, Any]) -> None:
    """The result as one JSON object on stdout."""
    click.echo(json.dumps(content, indent=2))


def arch_options(command: _Function) -> _Function:
    """`--arch` and `--arch-arg`, for commands that load a checkpoint, see `require_arch`; and `--state-dict`."""
    for option in (
        click.option(
            "--state-dict", metavar="NAME", help="Take this state dict, such as model_ema, where MODEL holds several."
        ),
        click.option(
            "--arch-arg", "arch_args", multiple=True, metavar="K=V", help="Pass this to the architecture; repeatable."
        ),
        click.option(
            "--arch",
            metavar="SPEC",
            help="Build this architecture: timm:NAME, torchvision:NAME, transformers:CLASS or package.module:factory.",
        ),
    ):
        command = option(command)
    return command


_RUNTIMES = ("auto", "tensorrt", "tensorrt-rtx", "onnxruntime")


def runtime_option(said: str) -> Callable[[_Function], _Function]:
    """`--runtime`, with what the help says of it."""
    return click.option("--runtime", type=click.Choice(_RUNTIMES), default="auto", show_default=True, help=said)


def label_options(does: str, *, data: str = "--data") -> Callable[[_Function], _Function]:
    """`--annotations` and `--reduce-labels`, for commands that read labels.

    Args:
        does: What is done to a detector.
        data: Where its images lie.
    """

    def add(command: _Function) -> _Function:
        maps = click.option(
            "--reduce-labels", is_flag=True, help="Take 0 in label maps for no class and 1 for the first."
        )
        boxes = click.option(
            "--annotations",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help=f"{does} on the boxes of this COCO file, whose images lie in {data}.",
        )
        return boxes(maps(command))

    return add


calib_samples_option = click.option(
    "--calib-samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="Use at most N samples of --calib, spread evenly over them.",
)


def require_arch(model: Path, arch: str | None, arch_args: tuple[str, ...]) -> None:
    """Refuse arguments of no architecture: alone they go with the class that the config.json of a saved model names.

    Raises:
        click.UsageError: That is so.
    """
    if arch is None and arch_args:
        from gpusq_deploy.frontend import saved_folder

        if saved_folder(model) is None:
            raise click.UsageError("--arch-arg needs --arch")


def parse_batches(texts: Sequence[str]) -> tuple[BatchRange, ...]:
    """Of each `MIN:OPT:MAX`, or one number for a fixed batch.

    Raises:
        click.BadParameter: Neither, out of order, or twice the same.
    """
    from gpusq_deploy.api import batch_ranges

    try:
        return batch_ranges(texts)
    except GpusqError as error:
        raise click.BadParameter(error.what, param_hint="--batch") from error


@contextmanager
def _shown() -> Generator[tuple[Callable[[str, int, int], None], Callable[[str, str], None]], None, None]:
    """Functions for label, done, total, and for label, detail: a bar on a terminal, else lines; see `PlainProgress`."""
    from rich.console import Console
    from rich.progress import Progress, TaskID, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        plain = PlainProgress(say)
        yield plain.update, plain.detail
        return
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def task(label: str) -> TaskID:
            if label not in tasks:
                tasks[label] = bar.add_task(label, total=None, detail="")
            return tasks[label]

        def update(label: str, done: int, total: int) -> None:
            bar.update(task(label), completed=done, total=total)

        yield update, lambda label, text: bar.update(task(label), detail=text)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
