"""gpusq-validate: is it 2:4, are its Q/DQ sound, is the bundle whole?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import gpusq_deploy
from gpusq_deploy.cli.command import LOUDNESS, Command, on_command_line
from gpusq_deploy.cli.common import arch_options, echo_json, reporting, require_arch, run_command, say
from gpusq_deploy.cli.repair import print_repair
from gpusq_deploy.cli.shares import Share
from gpusq_deploy.text import by_reason, counted, some

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gpusq_deploy.artifacts import FileAccount, Finding, Repair
    from gpusq_deploy.bundle import Validation

# Of one rule and hint, so many findings are told one by one.
_FEW = 3


_GROUPS = (
    ("What to check", ("--arch", "--arch-arg", "--state-dict", "--recipe", "--target")),
    ("Repair", ("--repair", "--near-miss", "--permute", "--force")),
    ("Output", LOUDNESS),
)


@click.command(cls=Command, groups=_GROUPS)
@click.pass_context
@click.argument("path", metavar="MODEL|BUNDLE", type=click.Path(path_type=Path))
@arch_options
@click.option(
    "--recipe", type=click.Path(path_type=Path), metavar="FILE|NAME", help="Expect 2:4 where this recipe says."
)
@click.option("--target", "targets", multiple=True, metavar="NAME", help="Explain each layer for this GPU; repeatable.")
@click.option("--repair", "out", type=click.Path(path_type=Path), metavar="OUT", help="Write a repaired checkpoint.")
@click.option(
    "--near-miss",
    type=Share(),
    default=1e-3,
    show_default=True,
    help="With --repair: zero values up to this share of their row's largest where 2:4 needs it; 0: none.",
)
@click.option("--permute", is_flag=True, help="With --repair: permute channels; the model computes the same.")
@click.option("--force", is_flag=True, help="With --repair: replace a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def command(  # noqa: PLR0913 - click hands one argument to each option
    context: click.Context,
    path: Path,
    *,
    arch: str | None,
    arch_args: tuple[str, ...],
    state_dict: str | None,
    recipe: Path | None,
    targets: tuple[str, ...],
    out: Path | None,
    near_miss: float,
    permute: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Check a checkpoint, an .onnx file or a bundle. Exit 0: no findings, 1: findings.

    With --repair, the repaired checkpoint is written to OUT and checked; MODEL is kept.
    """
    from gpusq_deploy.artifacts import require_input

    require_input(path)
    from gpusq_deploy.api import targets_of
    from gpusq_deploy.frontend import kind_of

    _refuse_unread_options(context, kind_of(path))
    gpus = targets_of(targets)
    require_arch(path, arch, arch_args)
    repair = None
    if out is not None:
        if state_dict is not None:
            raise click.UsageError("--repair takes no --state-dict: save that state dict to a file of its own")
        with reporting() as reporter:
            repair = gpusq_deploy.repair(
                path,
                out=out,
                arch=arch,
                arch_args=arch_args,
                recipe=recipe,
                near_miss=near_miss,
                permute=permute,
                force=force,
                reporter=reporter,
            )
        path = out if repair.file else path
    else:
        _refuse_repair_options(context)
    result = gpusq_deploy.check(
        path, arch=arch, arch_args=arch_args, state_dict=state_dict, recipe=recipe, targets=gpus
    )
    told = result.account.unused if result.account is not None and not as_json else ()
    for remark in result.remarks:
        if remark not in told:
            say(f"{path.name}: {remark}")
    if as_json:
        _echo_json(path, result, repair)
    else:
        if repair is not None:
            print_repair(repair)
        _print(path, result)
        _print_explained(result, [gpu.name for gpu in gpus])
    click.get_current_context().exit(1 if result.findings else 0)


def _refuse_unread_options(context: click.Context, kind: str) -> None:
    """A bundle says all of it itself, a model's layers are its own: options for checkpoints would change nothing."""
    unread = {"checkpoint": (), "ONNX model": ("arch", "arch_args", "state_dict")}
    for option in on_command_line(context, unread.get(kind, ("arch", "arch_args", "state_dict", "recipe"))):
        raise click.UsageError(f"{option} changes nothing here: {kind}")


def _refuse_repair_options(context: click.Context) -> None:
    for option in on_command_line(context, ("near_miss", "permute", "force")):
        raise click.UsageError(f"{option} needs --repair")


def _echo_json(path: Path, result: Validation, repair: Repair | None) -> None:
    from gpusq_deploy.artifacts import builtins_from_value

    echo_json(
        {
            "path": str(path),
            "kind": result.kind,
            "file": None if result.account is None else builtins_from_value(result.account),
            "ok": not result.findings,
            "findings": builtins_from_value(result.findings),
            "remarks": list(result.remarks),
            "sparsity": builtins_from_value(result.sparsity),
            "explained": builtins_from_value(result.explained),
            **({} if repair is None else {"repair": builtins_from_value(repair)}),
        }
    )


def _print(path: Path, result: Validation) -> None:
    from gpusq_deploy.bundle import flops_shares, print_rows, result_console

    console = result_console()
    for line in _account_lines(result.account):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    rows: list[tuple[str, ...]] = []
    shares = flops_shares(result.sparsity.layers)
    for layer in result.sparsity.layers:
        broken = f", {layer.violations}/{layer.groups}" if layer.violations else ""
        state = f"{layer.diagnosis}{broken}"
        expected = ("yes" if layer.expected else "no") if result.sparsity_asked else "not asked"
        share = f"{shares[layer.layer]:.1%}" if layer.layer in shares else "unknown"
        rows.append((layer.layer, f"{layer.n} x {layer.k}", f"{layer.zero_fraction:.1%}", share, state, expected))
    print_rows(console, f"{path} ({result.kind})", ("layer", "N x K", "zeros", "FLOPs", "2:4", "expected"), rows)
    for line in (*_dense_lines(result), *_finding_lines(result.findings), counted(len(result.findings), "finding")):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _account_lines(account: FileAccount | None) -> Iterator[str]:
    """What the file is, who wrote it, and what of it is read, one line each."""
    if account is None:
        return
    yield f"file: {account.form}"
    yield f"written by: {', '.join(account.producers) or 'nothing in the file says it'}"
    yield from (f"used: {line}" for line in account.used)
    yield from (f"not used: {line.removeprefix('not used, ')}" for line in account.unused)


def _dense_lines(result: Validation) -> Iterator[str]:
    """The layers that nobody expects to be 2:4, one line for each reason."""
    dense = [(layer.layer, layer.reason) for layer in result.sparsity.layers if not layer.expected]
    for reason, layers in by_reason(dense if result.sparsity_asked else ()).items():
        yield f"dense by intent: {_named(layers, 'layer')}: {reason}"


def _finding_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """One line for findings that say the same of several places; of many of one rule, a count and the first."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        apart = (finding.what,) if finding.rule == "not-read" else ()
        groups.setdefault((finding.rule, finding.hint, *apart), []).append(finding)
    for alike in groups.values():
        first, one = alike[0], len({finding.what for finding in alike}) == 1
        if not one and len(alike) <= _FEW:
            yield from (_finding_line(finding, finding.place, finding.what) for finding in alike)
        else:
            places = _named([finding.place for finding in alike], "layer" if first.rule == "not-2:4" else "place")
            yield _finding_line(first, places, first.what if one else f"the first (--json lists all): {first.what}")


def _finding_line(finding: Finding, place: str, what: str) -> str:
    return f"{finding.rule}: {place}: {what}; try: {finding.hint}"


def _named(names: Sequence[str], noun: str) -> str:
    return names[0] if len(names) == 1 else f"{counted(len(names), noun)} ({some(names)})"


def _print_explained(result: Validation, targets: Sequence[str]) -> None:
    from gpusq_deploy.bundle import print_chains

    for target in targets:
        print_chains([layer for layer in result.explained if layer.target == target])


def main() -> None:
    """Entry point."""
    run_command(command)
