"""gpusq-bench: measure a model's latency and keep every raw sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import gpusq_deploy
from gpusq_deploy.cli.command import LOUDNESS, Command, on_command_line
from gpusq_deploy.cli.common import reporting, run_command, runtime_option, say
from gpusq_deploy.cli.interleave import STDOUT, Outputs, require_one_way, run_calibration, run_gate
from gpusq_deploy.cli.load import LOAD, load_options, run_load, wants_load
from gpusq_deploy.cli.result_files import check_target, junit_option, save, summary_option
from gpusq_deploy.cli.shares import Positive, max_regression_option

# With a model beside it: enough for a pair's ratio, and a pair stays short.
_ITERATIONS_OF_A_PAIR = 90


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
    ("How often", ("--repeats", "--rebuilds", "--iterations", "--warmup", "--energy", "--in-process")),
    ("Under load", ("--offline", "--rate", "--latency-limit", "--streams", "--duration")),
    ("Two models in turns", ("--interleave", "--max-regression", "--max-seconds", "--noise", "--calibrate-noise")),
    ("Output", ("--history", "--summary", "--junit", *LOUDNESS)),
)


@click.command(name="gpusq-bench", cls=Command, groups=_GROUPS)
@click.pass_context
@click.argument("model", metavar="[BUNDLE|PLAN|ONNX]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--interleave",
    nargs=2,
    multiple=True,
    metavar="BASE HEAD",
    type=click.Path(path_type=Path),
    help="Is HEAD slower than BASE? Run both in turns until it is decided or the time is up; repeatable: more models.",
)
@max_regression_option
@click.option(
    "--max-seconds",
    type=Positive(most=86400),
    metavar="SECONDS",
    default=300,
    show_default=True,
    help="Stop undecided after this time.",
)
@click.option(
    "--noise",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="With the verdict, say what this machine can see by this calibration.",
)
@click.option(
    "--calibrate-noise",
    "calibrate",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Run the model against itself, and write what effects this machine can see.",
)
@summary_option
@junit_option
@load_options
@runtime_option("Run the model with this runtime.")
@click.option(
    "--batch",
    "batches",
    metavar="1,8,32",
    callback=_parse_batches,
    help="Measure these batch sizes (default: the bundle's minimum and optimum, or 1).",
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Start this many fresh processes."
)
@click.option(
    "--rebuilds",
    type=click.IntRange(min=2),
    metavar="N",
    help="Build the bundle's engine N times anew, and measure each build by all repeats.",
)
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Time this many inferences per process; with --interleave 90 at most.",
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
@click.option(
    "--energy",
    type=Positive(most=3600),
    metavar="SECONDS",
    help="After what is timed, run each batch size for so long again, and tell its energy.",
)
@click.option("--in-process", is_flag=True, help="Open fresh sessions in this process instead, as for a profiler.")
@click.option(
    "--history",
    metavar="FILE|FOLDER",
    type=click.Path(path_type=Path),
    help="Append a line per batch size to this history, or to the model's in this folder.",
)
@click.option("--cuda-graph", is_flag=True, help="Launch each inference of an engine as one captured CUDA graph.")
@click.option(
    "--json",
    "json_to",
    is_flag=False,
    flag_value=STDOUT,
    metavar="[FILE]",
    help="Write all samples as JSON to FILE, or without FILE to stdout instead of the table.",
)
def command(  # noqa: PLR0913 - click hands one argument to each option
    context: click.Context,
    /,
    *,
    model: Path | None,
    interleave: tuple[tuple[Path, Path], ...],
    calibrate: Path | None,
    json_to: str | None,
    reference: Path | None,
    repeats: int,
    in_process: bool,
    rebuilds: int | None,
    energy: float | None,
    history: Path | None,
    max_regression: float,
    max_seconds: float,
    noise: Path | None,
    summary: Path | None,
    junit: Path | None,
    **asked: Any,
) -> None:
    """Measure the latency of a bundle, an engine (PLAN) or an ONNX model.

    gpusq-compare takes two files made with the same options and at least five repeats. With --interleave, both are
    measured at once and the exit code is the answer: 0 holds, 1 regressed, 3 inconclusive.
    """
    loads = wants_load(context)
    require_one_way(context, models=(model is not None) + bool(interleave), calibrate=calibrate)
    load = {name: asked.pop(name) for name in LOAD}
    if (interleave or calibrate is not None) and not on_command_line(context, ["iterations"]):
        asked["iterations"] = _ITERATIONS_OF_A_PAIR
    if interleave:
        budget = {"max_regression": max_regression, "max_seconds": max_seconds}
        code = run_gate(interleave, noise, Outputs(json_to, summary, junit), **budget, **asked)
        context.exit(code)
    assert model is not None, "one was required"
    if loads:
        run_load(model, json_to, load, **asked)
    elif calibrate is not None:
        run_calibration(model, calibrate, json_to, **asked)
    else:
        counts = {"repeats": repeats, "rebuilds": rebuilds, "energy": energy}
        _bench(model, json_to, history, reference=reference, in_process=in_process, **counts, **asked)


def _bench(model: Path, json_to: str | None, history: Path | None, **asked: Any) -> None:
    from gpusq_deploy.artifacts import Runs, json_from_value, require_folder, require_input
    from gpusq_deploy.benchmarks import text_from_runs
    from gpusq_deploy.compile import RequestError

    for path in (model, *([] if asked["reference"] is None else [asked["reference"]])):
        require_input(path)
    target = None if json_to in (None, STDOUT) else Path(str(json_to))
    if target is not None:
        check_target(target, Runs, "earlier runs")
    if history is not None:
        require_folder(history)
    try:
        with reporting() as reporter:
            runs = gpusq_deploy.bench(model, reporter=reporter, **asked)
    except RequestError as error:
        raise click.UsageError(error.what) from error
    data = json_from_value(runs)
    click.echo(data.decode().rstrip() if json_to == STDOUT else text_from_runs(runs))
    if target is not None:
        save(data, target)
    if history is not None:
        say(f"added to {gpusq_deploy.add_to_history(runs, history)}")


def main() -> None:
    """Entry point of gpusq-bench."""
    run_command(command)


if __name__ == "__main__":
    main()
