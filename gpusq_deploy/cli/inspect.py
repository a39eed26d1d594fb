"""gpusq-inspect: per layer, what was asked, what was built, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpusq_deploy.cli.common import echo_json, run_command
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    from gpusq_deploy.bundle import Bundle


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--layer", metavar="X", help="Only this layer, or the layers below this module, with every reason.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout: the receipt and the plan.")
def command(*, bundle: Path, layer: str | None, as_json: bool) -> None:
    """Print the receipt of BUNDLE: what was asked of each layer, what the engine builder made of it, and why."""
    from gpusq_deploy.bundle import read_bundle
    from gpusq_deploy.cli.render import print_receipt

    found = read_bundle(bundle)
    if layer is not None:
        _require_layer(found, layer)
    if as_json:
        echo_json(_json(found, layer))
    else:
        print_receipt(found, layer=layer)


def _require_layer(bundle: Bundle, name: str) -> None:
    import difflib

    names = [decision.layer for decision in bundle.plan.layers]
    if any(known == name or known.startswith(f"{name}.") for known in names):
        return
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    raise GpusqError(
        f"the model has no layer {name!r}",
        place=str(bundle.path),
        hint=f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(names[:3])}, ...",
    )


def _json(bundle: Bundle, layer: str | None) -> dict[str, Any]:
    import msgspec

    from gpusq_deploy.cli.explain import explained_engine

    receipt: dict[str, Any] = msgspec.to_builtins(bundle.receipt)
    plan: dict[str, Any] = msgspec.to_builtins(bundle.plan)
    for entry, engine in zip(receipt["engines"], bundle.receipt.engines, strict=True):
        entry["explained"] = msgspec.to_builtins(explained_engine(bundle, engine))
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
