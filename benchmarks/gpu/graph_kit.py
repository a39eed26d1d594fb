"""The models of a kit: built here by gpusq-build, their weights left out, their times predicted; and the small model.

A dense graph and a 2:4 one are the same but for the weights' zeros, so one build serves both.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpusq_deploy.artifacts.base import json_from_value, read_value, write_whole
from gpusq_deploy.artifacts.bundle_layout import MODEL
from gpusq_deploy.benchmarks.gpu.graphs import Variant, Variants, leave_out
from gpusq_deploy.benchmarks.gpu.possible import BATCH, CAPABILITIES
from gpusq_deploy.benchmarks.gpu.references import save_reference
from gpusq_deploy.benchmarks.gpu.runs import why
from gpusq_deploy.engines.builder import EngineBuildOptions, build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.cost import bytes_of, flops_of, layers_at
from gpusq_deploy.engines.layer_classes import classify
from gpusq_deploy.engines.targets import Peaks, find_target
from gpusq_deploy.errors import GpusqError

MODELS = {
    "ViT-B": "vit_base_patch16_224",
    "ViT-S": "vit_small_patch16_224",
    "Swin-T": "swin_tiny_patch4_window7_224",
}
_INT8 = ("--int8", "--calib", "random")
_SPARSE = ("--sparse", "--prune", "magnitude")


class Precision(NamedTuple):
    """What a variant is called, whose graph it has, and whether its weights lose their zeros."""

    name: str
    graph: str
    dense: bool = False


GRAPHS = {
    "24-FP16": _SPARSE,
    "24-INT8": (*_INT8, *_SPARSE),
    "24-INT8-to-INT8": (*_INT8, *_SPARSE, "--sparse-outputs", "int8:0"),
    "fused-INT8": (*_INT8, "--recipe", "fused_wi8_ai8"),
    "FP32": ("--fp32",),
}
# What tells most first.
PRECISIONS = (
    Precision("FP16", "24-FP16", dense=True),
    Precision("INT8", "24-INT8", dense=True),
    Precision("2:4 INT8 to INT8", "24-INT8-to-INT8"),
    Precision("2:4 INT8", "24-INT8"),
    Precision("2:4 FP16", "24-FP16"),
    Precision("fused INT8", "fused-INT8"),
    Precision("FP32", "FP32"),
)
_BATCHES = (1, 8, 32, 128)
# One block, so that its plans are small: they travel.
_SMALL = ("img_size=32", "patch_size=8", "embed_dim=64", "depth=1", "num_heads=1", "num_classes=64")


def make_graphs(models: Sequence[str], out: Path) -> Variants:
    """Every graph that isn't there yet, and the index of all; one that can't be built is left out, with its reason."""
    out.mkdir(parents=True, exist_ok=True)
    problems = {
        f"{model}-{graph}": _make_graph(model, graph, words, out)
        for model in models
        for graph, words in GRAPHS.items()
        if not (out / f"{model}-{graph}.predicted.json").exists()
    }
    index = index_of(models, out, problems)
    write_whole(out / "index.json", json_from_value(index))
    return index


def index_of(models: Sequence[str], out: Path, problems: Mapping[str, str]) -> Variants:
    """What lies in a folder of graphs, and what doesn't: `problems` are by graph."""
    found: list[Variant] = []
    left_out: dict[str, str] = {}
    for model in models:
        for precision in PRECISIONS:
            graph = f"{model}-{precision.graph}"
            predicted = out / f"{graph}.predicted.json"
            name = f"{model} {precision.name}"
            if not predicted.exists():
                left_out[name] = f"the kit lacks its graph: {problems.get(graph) or 'it was not built'}"
                continue
            base = read_value(predicted, Variant)
            found.append(
                Variant(
                    name=name,
                    graph=graph,
                    dense=precision.dense,
                    predicted_us={} if "2:4" in name else base.predicted_us,
                    kernels=base.kernels,
                )
            )
    return Variants(variants=tuple(found), left_out=left_out)


def make_small(out: Path) -> None:
    """One block of a vision transformer in 2:4 INT8, its reference, and a plan for every capability."""
    out.mkdir(parents=True, exist_ok=True)
    model = out / "model.onnx"
    if not model.exists():
        with tempfile.TemporaryDirectory() as folder:
            words = [word for argument in _SMALL for word in ("--arch-arg", argument)]
            made = _built("vit_tiny_patch16_224", (*words, *_INT8, *_SPARSE), Path(folder))
            write_whole(model, (made / MODEL).read_bytes())
    save_reference(model, out / "reference.npz")
    for capability in CAPABILITIES:
        options = EngineBuildOptions(backend="tensorrt-rtx", capability=capability)
        built = build_engine(model, find_target("a100"), BuildSettings(batch=BATCH, sparse=True), options)
        write_whole(out / f"{capability or 'none'}.plan", built.engine_bytes)


def predicted_us(model: Path, batch: int, peaks: Peaks) -> tuple[float, int]:
    """Microseconds that a GPU can't do a model in less, kernel by kernel, and the number of kernels.

    Each takes max(bytes / bandwidth, FLOPs / peak rate); see engines/layer_cost.py. As compiled for SM80.
    """
    layers = [layer for layer in layers_at(model, find_target("a100"), batch) if classify(layer).role != "sync"]
    total = 0.0
    for layer in layers:
        moved = sum(bytes_of(tensor, layer) for tensor in (*layer.inputs, *layer.constants, *layer.outputs))
        total += max(peaks.microseconds_to_move(moved), peaks.microseconds_for(flops_of(layer)))
    return total, len(layers)


def _make_graph(model: str, graph: str, words: Sequence[str], out: Path) -> str:
    """Why it couldn't be made; empty where it was."""
    print(f"{model} {graph}", file=sys.stderr, flush=True)
    peaks = find_target("h100").peaks
    assert peaks is not None, "h100.toml has them"
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = _built(MODELS[model], words, Path(folder)) / MODEL
            figures = {str(batch): predicted_us(made, batch, peaks) for batch in _BATCHES}
        except GpusqError as error:
            print(f"  left out: {why(error)}", file=sys.stderr)
            return why(error)
        leave_out(made, out / f"{model}-{graph}.onnx")
    base = Variant(
        name=f"{model} {graph}",
        graph=graph,
        predicted_us={batch: figure[0] for batch, figure in figures.items()},
        kernels={batch: figure[1] for batch, figure in figures.items()},
    )
    write_whole(out / f"{model}-{graph}.predicted.json", json_from_value(base))
    return ""


def _built(architecture: str, words: Sequence[str], folder: Path) -> Path:
    """A bundle of a model with seeded random weights, without engines.

    Raises:
        GpusqError: gpusq-build refused.
    """
    import timm
    import torch

    torch.manual_seed(0)
    arguments: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            arguments[name] = int(value)
    torch.save(timm.create_model(architecture, **arguments).state_dict(), folder / "model.pt")
    command = [
        sys.executable,
        "-m",
        "gpusq_deploy",
        "build",
        str(folder / "model.pt"),
        "--arch",
        f"timm:{architecture}",
    ]
    command += [*words, "--target", "h100", "--batch", f"{BATCH.minimum}:{BATCH.optimum}:{BATCH.maximum}"]
    bundle = folder / "model.gpusq"
    done = subprocess.run([*command, "--out", str(bundle)], check=False, capture_output=True, text=True)
    if done.returncode:
        raise GpusqError(f"{architecture} couldn't be built: {done.stderr[-500:]}", place=" ".join(words))
    return bundle
