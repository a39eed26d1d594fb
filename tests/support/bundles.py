"""A small valid bundle, written through the front door."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import planning
import tiny_models

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.artifacts.base import digest_of_file
from gpusq_deploy.artifacts.build_options import BuildOptionsRecord
from gpusq_deploy.artifacts.bundle_layout import CALIBRATION, ENGINES, MANIFEST, MODEL, PLAN, RECEIPT
from gpusq_deploy.artifacts.manifest import BatchRange, Manifest, ModelSource
from gpusq_deploy.artifacts.receipt import Receipt
from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.bundle.files import files_in, new_bundle, write_value
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.sparsity.check import sparsity_report
from gpusq_deploy.sparsity.graph_check import graph_weights

RANGES = planning.table({"x": 2.0})


def model(*, sparse: bool = True, k: int = 8) -> planning.Quantized:
    """One INT8 layer, 2:4 or not."""
    weights = np.random.default_rng(0).uniform(1, 2, (k, 4)).astype(np.float32)
    if sparse:
        weights[[0, 1, 6, 7]] = 0
    text = f"g (float[B,{k}] x) => (float[B,4] y) {{ [fc1] y = MatMul(x, w) }}"
    return planning.quantized(tiny_models.graph(text, w=weights), RANGES)


def sparsity_of(built: ir.Model) -> SparsityReport:
    """The 2:4 state of the built graph, all of it expected to be 2:4."""
    weights = graph_weights(built, weighted_layers(built))
    return sparsity_report(weights, source=MODEL, recipe=planning.EVERYTHING, record=None)


def fill(folder: Path, *, created: str = "2026-01-01T00:00:00+00:00", sparse: bool = True) -> None:
    """Write every file of a bundle into a folder, the manifest last."""
    made = model(sparse=sparse)
    save_model(made.after, folder / MODEL)
    (folder / ENGINES).mkdir()
    (folder / ENGINES / "orin.plan").write_bytes(b"an engine")
    write_value(folder, PLAN, made.plan)
    write_value(folder, CALIBRATION, RANGES)
    receipt = Receipt(model_digest=digest_of_file(folder / MODEL), verification=None, engines=(), skipped=())
    write_value(folder, RECEIPT, receipt)
    manifest = Manifest(
        created=created,
        versions={},
        source=ModelSource(file="m.pt", digest="sha256:0", format="state dict", arch=tiny_models.vit_spec()),
        preprocessing=Preprocessing(channels=1, height=1, width=8, mean=(0.0,), std=(1.0,), origin="test"),
        recipe="everything",
        options=BuildOptionsRecord(),
        batch=BatchRange(minimum=1, optimum=1, maximum=1),
        opset=20,
        inputs={"x": (-1, 8)},
        outputs={"y": (-1, 4)},
        synthetic_calibration=False,
        sparsity=sparsity_of(made.after),
        files=files_in(folder),
    )
    write_value(folder, MANIFEST, manifest)


def write(out: Path, *, force: bool = False, created: str = "2026-01-01T00:00:00+00:00", sparse: bool = True) -> Path:
    """A whole bundle at `out`."""
    with new_bundle(out, force=force) as folder:
        fill(folder, created=created, sparse=sparse)
    return out


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
