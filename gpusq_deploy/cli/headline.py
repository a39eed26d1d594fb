"""The three lines that a bundle begins with: how large it is, how accurate, and what engine it has."""

from __future__ import annotations

from collections import Counter

from gpusq_deploy.artifacts.receipt import BuiltEngine
from gpusq_deploy.bundle import ENGINES, MODEL, Bundle
from gpusq_deploy.doubts import figures_text
from gpusq_deploy.receipt import CODED, cost_verdict
from gpusq_deploy.wording import counted

_FLOAT32 = 4
# What stands in a bundle beside its model and engines: descriptions, each some kilobytes.
_DESCRIPTIONS = ".json"


def headline(bundle: Bundle) -> list[tuple[str, str]]:
    """Size, accuracy and engine, one sentence each."""
    return [("size", size_text(bundle)), ("accuracy", accuracy_text(bundle)), ("engine", engines_text(bundle))]


def size_text(bundle: Bundle) -> str:
    """The model with its weights, beside those weights in FP32; and each plan."""
    files = [entry for entry in bundle.manifest.files if not entry.path.endswith(_DESCRIPTIONS)]
    model = sum(entry.size for entry in files if not entry.path.startswith(f"{ENGINES}/"))
    dense = sum(layer.n * layer.k for layer in bundle.plan.layers) * _FLOAT32
    plans = [f"{engine.plan_file} {_megabytes(engine.plan_bytes)}" for engine in bundle.receipt.engines]
    weights = f" (its {counted(len(bundle.plan.layers), 'weighted layer')} in FP32: {_megabytes(dense)})"
    return ", ".join([f"{MODEL} {_megabytes(model)}{weights if dense else ''}", *plans])


def accuracy_text(bundle: Bundle) -> str:
    """How near the built graph is to the float graph, and on how many samples."""
    found = bundle.receipt.verification
    if found is None:
        return "unknown: not compared with the float graph (see the notes)"
    if found.synthetic or found.constant:
        return f"unknown: {figures_text(found)}"
    apart = "kept apart from calibration" if found.held_out else "which calibration saw too"
    seen = apart if bundle.calibration is not None else ""
    on = f"on {counted(found.images, 'sample')}{f', {seen}' if seen else ''}"
    return f"{figures_text(found)} to the {found.reference} graph, {on}"


def engines_text(bundle: Bundle) -> str:
    """Each engine with what its layers became; then the one verdict on speed."""
    receipt = bundle.receipt
    built = [f"{engine.target}: {_layers_text(engine)}" for engine in receipt.engines]
    if not built:
        return no_engine_text(bundle)
    verdict = [] if receipt.cost is None else [cost_verdict(receipt.cost, bundle.plan.recipe)]
    return "; ".join([*built, *verdict])


def no_engine_text(bundle: Bundle) -> str:
    """Why there is none: none was asked for, or none could be built where the bundle was made."""
    skipped = bundle.receipt.skipped
    if bundle.receipt.shortfalls:
        return "none: the build was refused"
    if not skipped:
        return "none was asked for (--target none): gpusq-build BUNDLE --target NAME builds one"
    names = ", ".join(entry.target for entry in skipped)
    return f"no engine was built: {names} can't be built here; run on the device: {skipped[0].command}"


def _layers_text(engine: BuiltEngine) -> str:
    counts = Counter(layer.precision or "of unknown type" for layer in engine.layers)
    types = ", ".join(
        f"{count} {name.upper() if name in CODED else name}" for name, count in sorted(counts.items(), key=_coded_first)
    )
    asked = sum(layer.sparse_asked for layer in engine.layers)
    sparse = f", {asked} with 2:4 weights" if asked else ""
    return f"of {counted(len(engine.layers), 'layer')} {types}{sparse}"


def _coded_first(entry: tuple[str, int]) -> tuple[bool, str]:
    return entry[0] not in CODED, entry[0]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
