"""Tiny seeded models for tests: a ViT of some fifty thousand weights, its exports, and graphs written as text."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import torch

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.frontend.checkpoint.architecture import module_from_arch
from gpusq_deploy.frontend.checkpoint.load import Checkpoint, load_checkpoint
from gpusq_deploy.frontend.export.onnx_export import export_float_model
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.clean import Clean

NAME = "vit_tiny_patch16_224"
ARGUMENTS: dict[str, bool | int | float | str | list[int | float] | None] = {
    "img_size": 32,
    "patch_size": 8,
    "in_chans": 3,
    "embed_dim": 64,
    "depth": 1,
    "num_heads": 1,
    "num_classes": 64,
}
DYNAMIC = BatchRange(minimum=1, optimum=4, maximum=8)
STATIC = BatchRange(minimum=4, optimum=4, maximum=4)

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A checkpoint, the graph as torch exported it, and the same after Clean. Treat the models as read-only."""

    checkpoint: Checkpoint
    raw: ir.Model
    model: ir.Model


# Query, key and value from one input, by three products; the query has a bias.
ATTENTION = """
attention (float[batch, 5, 8] x) => (float[batch, 2, 5, 4] y) {
  [vv] v = MatMul(x, wv)
  vr = Reshape(v, heads)
  vt = Transpose<perm = [0, 2, 1, 3]>(vr)
  [kk] k = MatMul(x, wk)
  kr = Reshape(k, heads)
  kt = Transpose<perm = [0, 2, 1, 3]>(kr)
  [qq] q = MatMul(x, wq)
  qb = Add(q, bq)
  qr = Reshape(qb, heads)
  qt = Transpose<perm = [0, 2, 1, 3]>(qr)
  turned = Transpose<perm = [0, 1, 3, 2]>(kt)
  scores = MatMul(qt, turned)
  shares = Softmax(scores)
  y = MatMul(shares, vt)
}"""


def vit_spec(**changes: int) -> ArchSpec:
    """The tiny ViT's architecture, with some arguments changed."""
    return ArchSpec(source="timm", name=NAME, arguments={**ARGUMENTS, **changes})


def vit(*, biases: bool = True, **changes: int) -> torch.nn.Module:
    """The tiny ViT with seeded weights. Without `biases` they are timm's zeros, which the exporter shares."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        module = module_from_arch(vit_spec(**changes))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if parameter.ndim > 1 or (biases and name.endswith("bias")):
                    parameter.normal_(std=0.1)
    finally:
        torch.random.set_rng_state(state)
    return module


def write_vit(path: Path, *, biases: bool = True, **changes: int) -> Path:
    """Save the tiny ViT's state dict."""
    torch.save(vit(biases=biases, **changes).state_dict(), path)
    return path


@functools.cache
def exported_vit(*, static: bool = False, biases: bool = True, channels: int = 3) -> Exported:
    """The tiny ViT exported once per process and kind."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_vit(Path(folder) / "tiny.pt", biases=biases, in_chans=channels)
        checkpoint = load_checkpoint(path, arch=vit_spec(in_chans=channels))
    raw = export_float_model(checkpoint, batch=STATIC if static else DYNAMIC)
    return Exported(checkpoint=checkpoint, raw=raw, model=run_passes(raw, [Clean()]))


SWIN_ARGUMENTS: dict[str, bool | int | float | str | list[int | float] | None] = {
    "patch_size": 4,
    "window_size": 4,
    "embed_dim": 64,
    "depths": [2, 1],
    "num_heads": [2, 4],
    "num_classes": 8,
}


def exported_swin(*, static: bool = False, size: int = 32) -> ir.Model:
    """A tiny seeded Swin after Clean: 8 by 8 tokens at size 32, in windows of 4 by 4, shifted in the second block.

    At size 28 the 7 by 7 tokens are padded. Its biases and norms are random: zeros and ones would hide a wrong order.
    Treat it as read-only.
    """
    return _exported_swin(size, STATIC if static else DYNAMIC)


@functools.cache
def _exported_swin(size: int, batch: BatchRange) -> ir.Model:
    spec = ArchSpec(source="timm", name="swin_tiny_patch4_window7_224", arguments={**SWIN_ARGUMENTS, "img_size": size})
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        module = module_from_arch(spec)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(mean=float(parameter.ndim == 1), std=0.2)
    finally:
        torch.random.set_rng_state(state)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "swin.pt"
        torch.save(module.state_dict(), path)
        checkpoint = load_checkpoint(path, arch=spec)
    return run_passes(export_float_model(checkpoint, batch=batch), [Clean()])


def graph(text: str, **constants: Array) -> ir.Model:
    """A model from onnx's textual form, with shapes inferred; every constant becomes an initializer."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')
    for name, value in constants.items():
        proto.graph.initializer.append(ir.to_proto(ir.tensor(value, name=name)))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def tensor(array: Array, name: str) -> ir.TensorProtocol:
    """An initializer's content."""
    return ir.tensor(array, name=name)


def run_model(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The graph as it is written, by ONNX Runtime with its rewrites switched off."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {name: np.asarray(value) for name, value in zip(names, session.run(names, dict(feeds)), strict=True)}


def images(count: int, *, channels: int = 3, seed: int = 0) -> npt.NDArray[np.float32]:
    """Seeded noise in the tiny ViT's input shape."""
    return np.random.default_rng(seed).standard_normal((count, channels, 32, 32), dtype=np.float32)
