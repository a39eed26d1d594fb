"""gpusq-bench with two models, or with one against itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

import gpusq_deploy
from gpusq_deploy.cli.command import on_command_line
from gpusq_deploy.cli.common import reporting, say
from gpusq_deploy.cli.result_files import append, check_junit, check_target, save
from gpusq_deploy.cli.session import session

if TYPE_CHECKING:
    from gpusq_deploy.benchmarks import GateResult, Gates, MachineNoise

STDOUT = "-"
_ONE_MODEL = ("reference", "repeats", "rebuilds", "energy", "in_process", "history")
_TWO_MODELS = ("max_regression", "max_seconds", "noise", "summary", "junit")


class Outputs(NamedTuple):
    """Where a gate's result goes beside the terminal."""

    json_to: str | None
    summary: Path | None
    junit: Path | None

    @property
    def json_file(self) -> Path | None:
        """The file that was named to `--json`, if any."""
        return None if self.json_to in (None, STDOUT) else Path(str(self.json_to))


def require_one_way(context: click.Context, *, models: int, calibrate: Path | None) -> None:
    """Refuse options of another way to measure.

    Raises:
        click.UsageError: Neither a model nor two, or an option that goes with the other.
    """
    if models != 1:
        what = "a model, or two after --interleave"
        raise click.UsageError(f"give {what}" if models == 0 else f"give {what}, not both")
    two = bool(context.params["interleave"])
    if two and calibrate is not None:
        raise click.UsageError("--calibrate-noise takes one model, not --interleave")
    names = _ONE_MODEL if two or calibrate is not None else ()
    for option in on_command_line(context, names):
        raise click.UsageError(f"{option} is for one model, measured by itself")
    for option in on_command_line(context, () if two else _TWO_MODELS):
        raise click.UsageError(f"{option} goes with --interleave")


def run_gate(models: Sequence[tuple[Path, Path]], noise_file: Path | None, outputs: Outputs, **asked: Any) -> int:
    """Measure both of each model in turns, print the verdict, write what was asked for.

    Returns:
        The exit code: 0 holds, 1 regressed, 3 inconclusive.

    Raises:
        GpusqError: One can't be run, or a file can't be read or written.
    """
    from gpusq_deploy.artifacts import json_from_value, read_value
    from gpusq_deploy.benchmarks import GateResult, Gates, MachineNoise

    noise = None if noise_file is None else read_value(noise_file, MachineNoise)
    if outputs.json_file is not None:
        check_target(outputs.json_file, GateResult if len(models) == 1 else Gates, "an earlier gate's result")
    if outputs.junit is not None:
        check_junit(outputs.junit)
    with reporting() as reporter:
        gates = gpusq_deploy.interleave_models(models, reporter=reporter, **asked)
    result = gates.gates[0] if len(models) == 1 else gates
    data = json_from_value(result)
    click.echo(data.decode().rstrip() if outputs.json_to == STDOUT else _gate_text(result, noise))
    _write(result, noise, data, outputs)
    return result.exit_code


def _gate_text(result: GateResult | Gates, noise: MachineNoise | None) -> str:
    """The table; of a gate that ran and is fine, with --quiet, one line."""
    from gpusq_deploy.benchmarks import gate_line, text_from_gate

    return gate_line(result) if session.quiet and result.exit_code == 0 else text_from_gate(result, noise)


def _write(result: GateResult | Gates, noise: MachineNoise | None, data: bytes, outputs: Outputs) -> None:
    from gpusq_deploy.benchmarks import junit_from_gate, markdown_from_gate

    if outputs.json_file is not None:
        save(data, outputs.json_file)
    if outputs.junit is not None:
        save(junit_from_gate(result), outputs.junit)
    if outputs.summary is not None:
        append(markdown_from_gate(result, noise), outputs.summary)


def run_calibration(model: Path, target: Path, json_to: str | None, **asked: Any) -> None:
    """Measure a model against itself and keep what was found.

    Raises:
        click.UsageError: `--json` names a file: the file is that of `--calibrate-noise`.
        GpusqError: It can't be run, or the file can't be written.
    """
    from gpusq_deploy.artifacts import json_from_value
    from gpusq_deploy.benchmarks import MachineNoise

    if json_to not in (None, STDOUT):
        raise click.UsageError("--calibrate-noise FILE is where the result goes; --json takes no file beside it")
    check_target(target, MachineNoise, "an earlier calibration")
    with reporting() as reporter:
        noise = gpusq_deploy.calibrate_noise(model, reporter=reporter, **asked)
    data = json_from_value(noise)
    click.echo(data.decode().rstrip() if json_to == STDOUT else _text(noise))
    save(data, target)
    say(f"later: gpusq-bench --interleave BASE HEAD --noise {target}")


def _text(noise: MachineNoise) -> str:
    lines = [f"{noise.pairs} pairs of {noise.model} with itself, {noise.pair_seconds:.1f} s each"]
    for entry in noise.batches:
        effects = [(seconds, noise.smallest_effect(entry.batch, seconds)) for seconds in (60, 300, 1200)]
        seen = ", ".join(f"{found:+.1%} in {seconds} s" for seconds, found in effects if found is not None)
        lines.append(
            f"batch {entry.batch}: a pair's ratio spreads by {entry.spread:.2%}, its centre {entry.centre:+.2%}"
        )
        lines.append(
            f"batch {entry.batch}: seen beyond the budget in 99 of 100 gates: {seen or 'nothing in 20 minutes'}"
        )
    return "\n".join(lines)
