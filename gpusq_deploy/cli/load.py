"""gpusq-bench under load: throughput, or latency while queries arrive at random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

import gpusq_deploy
from gpusq_deploy.cli.command import on_command_line
from gpusq_deploy.cli.common import reporting
from gpusq_deploy.cli.interleave import STDOUT
from gpusq_deploy.cli.result_files import check_target, save
from gpusq_deploy.cli.shares import Positive

_Function = TypeVar("_Function", bound=Callable[..., Any])

_MODES = ("offline", "rate", "latency_limit")
_WITH_LOAD = ("streams", "duration")
LOAD = (*_MODES, *_WITH_LOAD)
_ONE_AT_A_TIME = (
    "interleave",
    "calibrate",
    "reference",
    "repeats",
    "rebuilds",
    "iterations",
    "energy",
    "in_process",
    "history",
)


def load_options(command: _Function) -> _Function:
    """The options of gpusq-bench that are about load."""
    for option in (
        click.option(
            "--duration",
            type=Positive(most=86400),
            metavar="SECONDS",
            default=10,
            show_default=True,
            help="Under load: measure for this many seconds; a rate that is searched, at least so long each time.",
        ),
        click.option(
            "--streams",
            type=click.IntRange(min=1, max=1024),
            default=1,
            show_default=True,
            help="Under load: run this many queries at the same time.",
        ),
        click.option(
            "--latency-limit",
            type=Positive(),
            metavar="MS",
            help="Search the highest rate at which the p99 latency, with waiting, keeps to this many milliseconds.",
        ),
        click.option(
            "--rate",
            type=Positive(),
            metavar="QPS",
            help="Let queries arrive at random, so many per second, and measure latency from when each arrived.",
        ),
        click.option("--offline", is_flag=True, help="Measure throughput: as many queries as the streams can do."),
    ):
        command = option(command)
    return command


def wants_load(context: click.Context) -> bool:
    """Whether gpusq-bench was asked to measure under load.

    Raises:
        click.UsageError: In two ways at once, or with an option of another way to measure.
    """
    modes = on_command_line(context, _MODES)
    if len(modes) > 1:
        raise click.UsageError(f"{modes[0]} and {modes[1]} are two ways to measure: give one")
    for option in on_command_line(context, _ONE_AT_A_TIME if modes else _WITH_LOAD):
        raise click.UsageError(
            f"{option} doesn't go with {modes[0]}"
            if modes
            else f"{option} goes with --offline, --rate or --latency-limit"
        )
    return bool(modes)


def run_load(
    model: Path, json_to: str | None, load: dict[str, Any], *, batches: tuple[int, ...] | None, **asked: Any
) -> None:
    """Measure, print the table, write what was asked for.

    Args:
        model: The bundle, the engine or the ONNX model.
        json_to: A file, or `STDOUT`.
        load: The options that are `LOAD`.
        batches: At most one.
        asked: The other options of how to run.

    Raises:
        click.UsageError: More than one batch size, or more queries than are kept.
        GpusqError: It can't be run, or a file can't be written.
    """
    from gpusq_deploy.artifacts import json_from_value
    from gpusq_deploy.benchmarks import Load, text_from_load
    from gpusq_deploy.compile import RequestError

    if batches is not None and len(batches) > 1:
        raise click.UsageError("a query has one batch size: give --batch one")
    target = None if json_to in (None, STDOUT) else Path(str(json_to))
    if target is not None:
        check_target(target, Load, "an earlier measurement under load")
    # Offline is what is left without a rate or a limit; iterations are of the other ways to measure.
    wanted = {name: value for name, value in {**load, **asked}.items() if name not in ("offline", "iterations")}
    batch = batches[0] if batches else None
    try:
        with reporting() as reporter:
            found = gpusq_deploy.measure_load(model, batch=batch, reporter=reporter, **wanted)
    except RequestError as error:
        raise click.UsageError(error.what) from error
    data = json_from_value(found)
    click.echo(data.decode().rstrip() if json_to == STDOUT else text_from_load(found))
    if target is not None:
        save(data, target)
