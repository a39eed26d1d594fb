"""gpusq-inspect: per layer, what was asked, what was built, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import gpusq_deploy
from gpusq_deploy.cli.command import LOUDNESS, Command
from gpusq_deploy.cli.common import echo_json, reporting, run_command, say
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    from gpusq_deploy.api import OpenBundle
    from gpusq_deploy.bundle import Bundle


_GROUPS = (
    ("The receipt", ("--layer", "--expect")),
    ("What a profiler saw", ("--kernels", "--inferences", "--target")),
    ("Times on other GPUs", ("--predict", "--device", "--batch", "--calibrate")),
    ("For other viewers", ("--html", "--runs", "--model-explorer")),
    ("Output", LOUDNESS),
)


@click.command(cls=Command, groups=_GROUPS)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--layer", metavar="X", help="Show only this layer, or the layers below this module, with every reason.")
@click.option(
    "--expect",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Check the receipt against a TOML file of expectations (docs/receipts.md); exit 1 where one fails.",
)
@click.option(
    "--kernels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read a profiler's file from the GPU: which kernels ran sparse, and how long each took (docs/receipts.md).",
)
@click.option("--inferences", type=click.IntRange(min=1), default=1, help="Say how many inferences --kernels traced.")
@click.option(
    "--target", metavar="NAME", help="Say which target's engine --kernels traced, where the bundle has several."
)
@click.option(
    "--predict",
    is_flag=True,
    help="Predict milliseconds in FP16, INT8 and with 2:4 on GPUs that aren't here (docs/predict.md).",
)
@click.option(
    "--device", "devices", metavar="NAME", multiple=True, help="Predict for this GPU, such as l4; repeatable."
)
@click.option(
    "--batch", type=click.IntRange(min=1), help="Predict for this batch size (default: the bundle's optimum)."
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Scale the prediction by what gpusq-bench --json wrote of this bundle on the one --device.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write the receipt as one self-contained page for a browser, as report.html in the bundle.",
)
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Show in the page what gpusq-bench --json measured; once for each file, as of several builds.",
)
@click.option(
    "--model-explorer",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Also write each node's figures as node data for google-ai-edge's Model Explorer, a file for each figure.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of the text: the receipt and the plan."
)
def command(  # noqa: PLR0913 - click hands one argument to each option
    *,
    bundle: Path,
    layer: str | None,
    expect: Path | None,
    kernels: Path | None,
    inferences: int,
    target: str | None,
    predict: bool,
    devices: tuple[str, ...],
    batch: int | None,
    calibrate: Path | None,
    html: Path | None,
    runs: tuple[Path, ...],
    model_explorer: Path | None,
    as_json: bool,
) -> None:
    """Print the receipt of BUNDLE: what was asked of each layer, what the engine builder made of it, and why."""
    from gpusq_deploy.bundle import print_receipt

    _refuse_contradictions(click.get_current_context().params)
    if predict:
        _predict(bundle, devices, batch, calibrate, as_json=as_json)
        return
    opened = gpusq_deploy.open_bundle(bundle)
    if kernels is not None:
        opened = opened.with_kernels(kernels, inferences=inferences, target=target)
        for text in opened.kernel_times() if opened.measured else ():
            say(text)
    _write_for_viewers(opened, html, runs, model_explorer)
    if expect is not None:
        _check(opened, expect, as_json=as_json)
    found = opened.bundle
    if layer is not None:
        _require_layer(found, layer)
    if as_json:
        echo_json(_json(found, layer))
    else:
        print_receipt(found, layer=layer)


def _write_for_viewers(
    bundle: OpenBundle, html: Path | None, runs: Sequence[Path], model_explorer: Path | None
) -> None:
    if html is not None:
        bundle.write_html(html, runs=runs)
        say(f"wrote {html}")
    if model_explorer is not None:
        written = bundle.write_node_data(model_explorer)
        say(f"wrote {', '.join(map(str, written)) or 'nothing: no figure of a node is known'}")


def _refuse_contradictions(given: dict[str, Any]) -> None:
    named = {name for name, value in given.items() if value not in {None, False, ()}}
    if {"expect", "layer"} <= named:
        raise click.UsageError("--expect checks the whole receipt: leave out --layer")
    if "kernels" not in named and (given["inferences"] > 1 or "target" in named):
        raise click.UsageError("--inferences and --target say what --kernels traced")
    if "runs" in named and "html" not in named:
        raise click.UsageError("--runs is shown in the page of --html FILE")
    other = named & {"layer", "expect", "kernels", "html", "model_explorer"}
    if "predict" in named and other:
        raise click.UsageError(f"--predict is about times alone: leave out --{min(other).replace('_', '-')}")
    if "predict" not in named and named & {"devices", "batch", "calibrate"}:
        raise click.UsageError("--device, --batch and --calibrate say what --predict predicts")


def _predict(
    bundle: Path, devices: tuple[str, ...], batch: int | None, calibrate: Path | None, *, as_json: bool
) -> None:
    from gpusq_deploy.artifacts import builtins_from_value
    from gpusq_deploy.bundle import print_prediction

    with reporting() as reporter:
        found = gpusq_deploy.predict_times(bundle, devices=devices, batch=batch, calibrate=calibrate, reporter=reporter)
    if as_json:
        echo_json(builtins_from_value(found))
    else:
        print_prediction(found)


def _check(bundle: OpenBundle, expect: Path, *, as_json: bool) -> NoReturn:
    from gpusq_deploy.bundle import failed

    checks = bundle.check(expect)
    broken = failed(checks)
    if as_json:
        from gpusq_deploy.artifacts import builtins_from_value

        echo_json({"bundle": str(bundle.path), "held": not broken, "checks": builtins_from_value(checks)})
    else:
        for check in checks:
            click.echo(
                f"{'ok    ' if check.held else 'FAILED'} {check.engine}: {check.what} {check.expected}: {check.got}"
            )
        click.echo(f"{len(checks) - len(broken)} of {len(checks)} expectations hold")
    click.get_current_context().exit(1 if broken else 0)


def _require_layer(bundle: Bundle, name: str) -> None:
    import difflib

    from gpusq_deploy.artifacts import parts_of

    names = [decision.layer for decision in bundle.plan.layers]
    if any(known == name or known.startswith(f"{name}.") for known in names):
        return
    holding = [known for known in names if name in parts_of(known)]
    near = holding or difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    raise GpusqError(
        f"the model has no layer {name!r}",
        place=str(bundle.path),
        hint=f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(names[:3])}, ...",
    )


def _json(bundle: Bundle, layer: str | None) -> dict[str, Any]:
    from gpusq_deploy.artifacts import builtins_from_value
    from gpusq_deploy.bundle import explained_engine

    receipt: dict[str, Any] = builtins_from_value(bundle.receipt)
    plan: dict[str, Any] = builtins_from_value(bundle.plan)
    for entry, engine in zip(receipt["engines"], bundle.receipt.engines, strict=True):
        entry["explained"] = builtins_from_value(explained_engine(bundle, engine))
    if layer is not None:
        for holder in (plan, *receipt["engines"]):
            for key in {"layers", "explained"} & holder.keys():
                holder[key] = [entry for entry in holder[key] if f"{entry['layer']}.".startswith(f"{layer}.")]
        for engine in receipt["engines"]:
            del engine["engine_layers"]
    return {"bundle": str(bundle.path), "plan": plan, "receipt": receipt}


def main() -> None:
    """Entry point."""
    run_command(command)
