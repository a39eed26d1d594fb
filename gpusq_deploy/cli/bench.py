"""gpusq-bench: measure a model's latency and keep every raw sample."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

import gpusq_deploy
from gpusq_deploy.cli.command import LOUDNESS, Command
from gpusq_deploy.cli.common import reporting, run_command, say
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import Runs

_RUNTIMES = ("auto", "tensorrt", "tensorrt-rtx", "onnxruntime")
_STDOUT = "-"


def _parse_batches(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    from gpusq_deploy.api import BATCH_DIGITS

    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and len(word) <= BATCH_DIGITS and int(word) > 0 for word in words):
        raise click.BadParameter(f"{text!r} is not a list of positive batch sizes such as 1,8,32")
    batches = tuple(int(word) for word in words)
    if len(set(batches)) != len(batches):
        raise click.BadParameter(f"{text!r} names a batch size twice")
    return batches


_GROUPS = (
    ("What to run", ("--runtime", "--batch", "--reference", "--cuda-graph", "--threads")),
    ("How often", ("--repeats", "--iterations", "--warmup")),
    ("Output", LOUDNESS),
)


@click.command(name="gpusq-bench", cls=Command, groups=_GROUPS)
@click.argument("model", metavar="BUNDLE|PLAN|ONNX", type=click.Path(path_type=Path))
@click.option(
    "--runtime",
    type=click.Choice(_RUNTIMES),
    default="auto",
    show_default=True,
    help="Run the model with this runtime.",
)
@click.option(
    "--batch",
    "batches",
    metavar="1,8,32",
    callback=_parse_batches,
    help="Measure these batch sizes (default: the bundle's minimum and optimum, or 1).",
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Open this many fresh sessions."
)
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Time this many inferences per session.",
)
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Run this many inferences before timing.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Use this many onnxruntime threads (default: its own choice)."
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="ONNX",
    help="Before timing, compare the outputs of a PLAN outside a bundle with this model's on the CPU.",
)
@click.option("--cuda-graph", is_flag=True, help="Launch each inference of an engine as one captured CUDA graph.")
@click.option(
    "--json",
    "json_to",
    is_flag=False,
    flag_value=_STDOUT,
    metavar="[FILE]",
    help="Write all samples as JSON to FILE, or without FILE to stdout instead of the table.",
)
def command(  # noqa: PLR0913 - click hands one argument to each option
    *,
    model: Path,
    runtime: str,
    batches: tuple[int, ...] | None,
    json_to: str | None,
    threads: int | None,
    reference: Path | None,
    cuda_graph: bool,
    **counts: int,
) -> None:
    """Measure the latency of a bundle, an engine (PLAN) or an ONNX model.

    gpusq-compare takes two files made with the same options and at least five repeats.
    """
    from gpusq_deploy.artifacts import json_from_value, require_input

    for path in (model, *([] if reference is None else [reference])):
        require_input(path)
    from gpusq_deploy.benchmarks import text_from_runs
    from gpusq_deploy.compile import RequestError

    target = None if json_to in (None, _STDOUT) else Path(str(json_to))
    if target is not None:
        _check_target(target)
    try:
        with reporting() as reporter:
            runs = gpusq_deploy.bench(
                model,
                runtime=runtime,
                batches=batches,
                reference=reference,
                cuda_graph=cuda_graph,
                threads=threads,
                reporter=reporter,
                **counts,
            )
    except RequestError as error:
        raise click.UsageError(error.what) from error
    click.echo(json_from_value(runs).decode().rstrip() if json_to == _STDOUT else text_from_runs(runs))
    if target is not None:
        _save(runs, target)


def main() -> None:
    """Entry point of gpusq-bench."""
    run_command(command)


def _check_target(target: Path) -> None:
    # `--json model.onnx` is one forgotten word away from destroying the model, so only our own files are replaced.
    from gpusq_deploy.artifacts import Runs, read_value, require_folder

    require_folder(target)
    if not target.exists():
        return
    try:
        read_value(target, Runs)
    except GpusqError as error:
        raise GpusqError(
            "the file exists and holds something else than earlier runs; it was left alone",
            place=str(target),
            hint="name another file, or remove it",
        ) from error


def _save(runs: Runs, target: Path) -> None:
    from gpusq_deploy.artifacts import json_from_value

    try:
        _replace(target, json_from_value(runs))
    except OSError as error:
        raise GpusqError(f"cannot write the file: {error.strerror}", place=str(target)) from error
    say(f"wrote {target}")


def _replace(target: Path, data: bytes) -> None:
    # Beside its final name and renamed whole, so that nobody ever reads half a file.
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        # mkstemp makes private files; give this one the mode that any other new file gets.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    main()
