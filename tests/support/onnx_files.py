"""ONNX files as others write them: by torch's two exporters, and by hand, as converters from other frameworks do."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import torch

Array = npt.NDArray[Any]
WIDTH, TOKENS = 32, 6

# One attention block as TensorFlow's converters write it: weights are second operands, biases rows, nothing is named
# after a module, and LayerNormalization and GELU are in parts. Its head is a Gemm of a transposed weight.
BY_HAND = f"""
<ir_version: 8, opset_import: ["" : 17], producer_name: "tf2onnx", producer_version: "1.16.1">
model (float[N, {TOKENS}, {WIDTH}] tokens) => (float[N, 8] scores) {{
  mean = ReduceMean<axes = [-1], keepdims = 1>(tokens)
  apart = Sub(tokens, mean)
  squared = Pow(apart, two)
  variance = ReduceMean<axes = [-1], keepdims = 1>(squared)
  shifted = Add(variance, epsilon)
  deviation = Sqrt(shifted)
  normal = Div(apart, deviation)
  scaled = Mul(normal, const_1)
  normed = Add(scaled, const_2)
  qq = MatMul(normed, const_fold_opt__10)
  kk = MatMul(normed, const_fold_opt__11)
  vv = MatMul(normed, const_fold_opt__12)
  turned = Transpose<perm = [0, 2, 1]>(kk)
  products = MatMul(qq, turned)
  softer = Mul(products, scale)
  shares = Softmax<axis = -1>(softer)
  mixed = MatMul(shares, vv)
  added = Add(tokens, mixed)
  wide = MatMul(added, const_fold_opt__13)
  biased = Add(wide, row)
  divided = Div(biased, root)
  curved = Erf(divided)
  above = Add(curved, one)
  half_done = Mul(biased, above)
  active = Mul(half_done, half)
  narrow = MatMul(active, const_fold_opt__14)
  tokens_out = Add(added, narrow)
  pooled = ReduceMean<axes = [1], keepdims = 0>(tokens_out)
  scores = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(pooled, const_fold_opt__15, const_3)
}}"""


def write_by_hand(path: Path, *, half: bool = False) -> Path:
    """The graph above with seeded weights; with `half`, all of it is FP16."""
    draws = np.random.default_rng(0)

    def weight(*shape: int) -> Array:
        return (draws.standard_normal(shape) * 0.2).astype(np.float32)

    constants = {
        "two": 2.0,
        "epsilon": 1e-6,
        "root": np.sqrt(2),
        "one": 1.0,
        "half": 0.5,
        "scale": WIDTH**-0.5,
        "const_1": 1 + weight(WIDTH),
        "const_2": weight(WIDTH),
        **{f"const_fold_opt__{number}": weight(WIDTH, WIDTH) for number in (10, 11, 12)},
        "const_fold_opt__13": weight(WIDTH, 2 * WIDTH),
        "row": weight(1, 1, 2 * WIDTH),
        "const_fold_opt__14": weight(2 * WIDTH, WIDTH),
        "const_fold_opt__15": weight(8, WIDTH),
        "const_3": weight(1, 8),
    }
    if not half:
        return write_text(path, BY_HAND, **constants)
    narrow = {name: np.array(value, dtype=np.float16) for name, value in constants.items()}
    return write_text(path, BY_HAND.replace("float[", "float16["), **narrow)


def write_text(path: Path, text: str, **constants: Array | float) -> Path:
    """A file from onnx's textual form; numbers are float32, and arrays are what they are."""
    proto = onnx.parser.parse_model(text)
    for name, value in constants.items():
        array = value if isinstance(value, np.ndarray) else np.array(value, dtype=np.float32)
        proto.graph.initializer.append(ir.to_proto(ir.tensor(array, name=name)))
    onnx.save(proto, path)
    return path


def write_by_torchscript(
    path: Path, module: torch.nn.Module, sample: torch.Tensor, *, free: bool = True, open_sizes: bool = False
) -> Path:
    """By torch's older exporter, opset 17; with `free` for any batch, with `open_sizes` any height and width."""
    sizes = {2: "h", 3: "w"} if open_sizes else {}
    axes = {"images": {0: "n", **sizes}, "logits": {0: "n"}} if free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own end
        torch.onnx.export(
            module,
            (sample,),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes=axes,
        )
    return path


def write_by_dynamo(path: Path, module: torch.nn.Module, sample: torch.Tensor) -> Path:
    """By torch's exporter as it is today, for any batch; weights lie in a file beside it."""
    shapes = ({0: torch.export.Dim("n")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on its own internals
        torch.onnx.export(
            module, (sample,), str(path), dynamo=True, dynamic_shapes=shapes, external_data=True, verbose=False
        )
    return path


def run_file(path: Path, batch: Array) -> list[Array]:
    """What ONNX Runtime answers, on a file as it is."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [np.asarray(answer) for answer in session.run(None, {session.get_inputs()[0].name: batch})]
