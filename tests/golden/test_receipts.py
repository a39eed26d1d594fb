"""Receipts of whole models for an A100, as text: what a change of a pass does to every kernel shows as a diff.

Random weights with a fixed seed: structure depends on shapes and types, not on values. What differs between machines
(times, digests, sizes, numbers that the builder counts up in names) is left out.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from commands import run_main

from gpusq_deploy.artifacts.receipt import BuiltEngine, BuiltLayer, EngineLayer
from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.cli.build import main as build

DATA = Path(__file__).parent / "data"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2-s": ("vit_small_patch14_dinov2", {"img_size": 224}),
    "deit-s": ("deit_small_patch16_224", {}),
    "swin-t": ("swin_tiny_patch4_window7_224", {}),
}
INT8 = ("--int8", "--calib", "noise.npy")
BUILDS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{model: (model, INT8) for model in MODELS},
    "deit-s-24": ("deit-s", (*INT8, "--sparse", "--prune", "magnitude")),
    "swin-t-24-fp16": ("swin-t", ("--sparse", "--prune", "magnitude", "--calib", "noise.npy")),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
    ),
]


def build_bundle(folder: Path, build_name: str) -> Path:
    """The model by the default recipe, for an A100 at batch 8, calibrated on four samples of noise."""
    model, asked = BUILDS[build_name]
    name, arguments = MODELS[model]
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    torch.save(timm.create_model(name, **arguments).state_dict(), folder / "model.pt")
    torch.random.set_rng_state(state)
    samples = np.random.default_rng(0).standard_normal((4, 3, 224, 224), dtype=np.float32)
    np.save(folder / "noise.npy", samples)
    out = folder / "model.gpusq"
    words = ["--arch", f"timm:{name}", *(f"--arch-arg={key}={value}" for key, value in arguments.items())]
    words += [word.replace("noise.npy", str(folder / "noise.npy")) for word in asked]
    words += ["--target", "a100", "--batch", "8", "--out", str(out)]
    words += ["--rewrites", "all"]  # to compare forms is tested elsewhere, and takes as long as the build
    done = run_main(build, folder / "model.pt", *words)
    assert done.code == 0, done.err
    return out


def receipt_text(engine: BuiltEngine) -> str:
    """Totals, one line per layer of the model, one per kernel."""
    totals = engine.totals
    lines = [
        f"{engine.target}, {engine.backend} {'.'.join(engine.backend_version.split('.')[:2])}",
        f"kernels {totals.kernels}, GEMMs {totals.gemms}, fused attention {totals.attention_fused}",
        "",
        *(layer_line(layer) for layer in engine.layers),
        "",
        *kernel_lines(engine.engine_layers),
    ]
    return "\n".join(lines) + "\n"


def layer_line(layer: BuiltLayer) -> str:
    writes = sorted({dtype for carrier in layer.carriers for dtype in carrier.outputs})
    valid = "2:4" if layer.sparse_weights_valid else "dense"
    asked = "asked" if layer.sparse_asked else "not asked"
    return (
        f"{layer.layer} {list(layer.shape or ())}, {(layer.flops or 0) / 1e6:.1f} MFLOP: asked {layer.asked}, built "
        f"{layer.precision} in {len(layer.engine_layers)} that write {', '.join(writes)}; {valid}, eligible "
        f"{layer.eligible}, sparse {asked}, {layer.sparse_executed}"
    )


def kernel_lines(layers: tuple[EngineLayer, ...]) -> Iterator[str]:
    for layer in layers:
        name = re.sub(r"\d+", "#", re.sub(r"_myl\d+_\d+$", "", layer.name))
        inputs = ", ".join(f"{tensor.dtype}{list(tensor.shape)}" for tensor in layer.inputs)
        outputs = ", ".join(f"{tensor.dtype}{list(tensor.shape)}" for tensor in layer.outputs)
        yield f"{layer.kind} {name}: {inputs} -> {outputs}"


@pytest.mark.parametrize("name", list(BUILDS))
def test_the_receipt(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    (engine,) = read_bundle(build_bundle(tmp_path, name)).receipt.engines
    path, got = DATA / f"receipt-{name}.txt", receipt_text(engine)
    if request.config.getoption("--update-golden"):
        path.write_text(got)
    assert got == path.read_text(), f"{path.name} changed; if that is meant, run pytest tests/golden --update-golden"
