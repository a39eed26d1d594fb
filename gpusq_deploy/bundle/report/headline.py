"""The three lines that a bundle begins with: how large it is, how accurate, and what engine it has."""

from __future__ import annotations

from collections import Counter
from typing import get_args

from gpusq_deploy.artifacts import ENGINES, MODEL, BuiltEngine, Precision
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.bundle.receipt import CODED
from gpusq_deploy.bundle.report.warnings import compared_text
from gpusq_deploy.text import counted

_FLOAT32 = 4
# What stands in a bundle beside its model and engines: descriptions, each some kilobytes.
_DESCRIPTIONS = (".json", ".html")


def headline(bundle: Bundle) -> list[tuple[str, str]]:
    """Size, accuracy and engine, one sentence each."""
    return [("size", size_text(bundle)), ("accuracy", accuracy_text(bundle)), ("engine", engines_text(bundle))]


def size_text(bundle: Bundle) -> str:
    """The model with its weights, beside those weights in FP32; and each plan."""
    files = [entry for entry in bundle.manifest.files if not entry.path.endswith(_DESCRIPTIONS)]
    model = sum(entry.size for entry in files if not entry.path.startswith(f"{ENGINES}/"))
    dense = sum(layer.n * layer.k for layer in bundle.plan.layers) * _FLOAT32
    engines = [f"{engine.engine_file} {_megabytes(engine.engine_bytes)}" for engine in bundle.receipt.engines]
    weights = f" ({counted(len(bundle.plan.layers), 'weighted layer')}; in FP32 {_megabytes(dense)})"
    return ", ".join([f"{MODEL} {_megabytes(model)}{weights if dense else ''}", *engines])


def accuracy_text(bundle: Bundle) -> str:
    """How near the built model is to the float model, and on how many samples."""
    found = bundle.receipt.verification
    if found is None:
        return "unknown: not compared with the float model, for ONNX Runtime's CPU provider has no BF16 kernels"
    return compared_text(found, calibrated=bundle.calibration is not None)


def engines_text(bundle: Bundle) -> str:
    """Each engine with what its layers became."""
    built = [f"{engine.target}: {_layers_text(engine)}" for engine in bundle.receipt.engines]
    return "\n".join(built) or no_engine_text(bundle)


def no_engine_text(bundle: Bundle) -> str:
    """Why there is none: none was asked for, or none could be built where the bundle was made."""
    skipped = bundle.receipt.skipped
    if bundle.receipt.shortfalls:
        return "none: the build was refused"
    if not skipped:
        return "none was asked for (--target none); to build one: gpusq-build BUNDLE --target NAME"
    names = ", ".join(entry.target for entry in skipped)
    return f"none: {names} can't be built here; on the device: {skipped[0].command}"


def _layers_text(engine: BuiltEngine) -> str:
    counts = Counter(layer.precision or "of unknown type" for layer in engine.layers)
    total = len(engine.layers)
    types = ", ".join(
        f"{count} of {total} layers {name.upper() if name in get_args(Precision) else name}"
        for name, count in sorted(counts.items(), key=_coded_first)
    )
    asked = sum(layer.sparse_asked for layer in engine.layers)
    sparse = f", {asked} with 2:4 weights" if asked else ""
    return f"{types}{sparse}"


def _coded_first(entry: tuple[str, int]) -> tuple[bool, str]:
    return entry[0] not in CODED, entry[0]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
