"""The eligibility question as an experiment: one product at a time, for which kernel does a builder pick?

TensorRT issue 4694: with explicit Q/DQ no sparse kernel is picked. Every sparse INT8 kernel that TensorRT-RTX 1.7 names
for SM80 and SM86 writes INT8, so what follows the product may decide. The grid: the four Linears of ViT-S, B and L,
four batch sizes, dense or 2:4 weights, and four ways to go on:

    fp16        scales per output channel, bias, FP16 out: what gpusq-build makes
    int8        the same, then a quantiser
    int8-gelu   the same with GELU between, then a quantiser
    int8-plain  one scale for the weight, no bias, then a quantiser: the one form in which TensorRT-RTX 1.7 is known to
                fuse the quantiser into the product
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gpusq_deploy.artifacts.base import Value
from gpusq_deploy.numerics.two_four import magnitude_mask

ModelName = Literal["ViT-S", "ViT-B", "ViT-L"]
LayerName = Literal["qkv", "proj", "fc1", "fc2"]
Weights = Literal["dense", "2:4"]
Output = Literal["fp16", "int8", "int8-gelu", "int8-plain"]

TOKENS = 197
_WIDTHS: Mapping[ModelName, int] = {"ViT-S": 384, "ViT-B": 768, "ViT-L": 1024}
# K and N as multiples of the model's width.
_SHAPES: Mapping[LayerName, tuple[int, int]] = {"qkv": (1, 3), "proj": (1, 1), "fc1": (1, 4), "fc2": (4, 1)}
BATCHES = (8, 32, 1, 128)
WEIGHTS: tuple[Weights, ...] = ("2:4", "dense")
OUTPUTS: tuple[Output, ...] = ("fp16", "int8", "int8-gelu", "int8-plain")

_MOST_SAMPLES = 8
_INPUT_SCALE, _OUTPUT_SCALE = 0.02, 0.05
_LEAST, _LARGEST = -128, 127


class GemmCase(Value):
    """One product: x [batch, tokens, K] in INT8 by w [K, N] in INT8, and what follows it."""

    model: ModelName
    layer: LayerName
    batch: int
    weights: Weights
    output: Output

    @property
    def k(self) -> int:
        """Length of the contracted axis."""
        return _WIDTHS[self.model] * _SHAPES[self.layer][0]

    @property
    def n(self) -> int:
        """Output channels."""
        return _WIDTHS[self.model] * _SHAPES[self.layer][1]

    @property
    def flops(self) -> int:
        """Of the product as if it were dense, two per multiply-accumulate."""
        return 2 * self.batch * TOKENS * self.n * self.k

    @property
    def name(self) -> str:
        """Such as `ViT-S qkv b8 2:4 int8-gelu`."""
        return f"{self.model} {self.layer} b{self.batch} {self.weights} {self.output}"

    @property
    def file(self) -> str:
        """The name as a file's."""
        return self.name.replace(" ", "-").replace(":", "")


def all_cases(
    models: Sequence[ModelName] = ("ViT-S", "ViT-B", "ViT-L"), batches: Sequence[int] = BATCHES
) -> tuple[GemmCase, ...]:
    """The whole grid, what tells most first: a suite that runs out of time has then answered the most it could."""
    grid = itertools.product(batches, models, _SHAPES, OUTPUTS, WEIGHTS)
    return tuple(
        GemmCase(model=model, layer=layer, batch=batch, weights=weights, output=output)
        for batch, model, layer, output, weights in grid
    )


def case_arrays(case: GemmCase) -> dict[str, NDArray[Any]]:
    """The case's constants: `w` INT8 [K, N], 2:4 along K where asked, `ws` its scale, `b` FP16 [N], and the others.

    Equal for equal shapes, so dense and sparse differ in zeros alone.
    """
    random = np.random.default_rng([case.k, case.n])
    codes = random.integers(_LEAST + 1, _LARGEST + 1, size=(case.n, case.k)).astype(np.int8)
    if case.weights == "2:4":
        codes = np.where(magnitude_mask(codes.astype(np.float32)), codes, np.int8(0))
    per_channel = random.uniform(0.0005, 0.002, size=case.n).astype(np.float16)
    return {
        "w": np.ascontiguousarray(codes.T),
        "ws": np.asarray(0.001, np.float16) if case.output == "int8-plain" else per_channel,
        "b": random.normal(size=case.n).astype(np.float16),
        "s": np.asarray(_INPUT_SCALE, np.float16),
        "ys": np.asarray(_OUTPUT_SCALE, np.float16),
        "z": np.asarray(0, np.int8),
    }


def case_feeds(case: GemmCase) -> dict[str, NDArray[Any]]:
    """INT8 codes of an input, seeded; of a large batch, the same few samples over and over."""
    return {"x": _codes(case.batch, case.k)}


# Cases of one shape follow one another.
@functools.lru_cache(maxsize=1)
def _codes(batch: int, k: int) -> NDArray[np.int8]:
    random = np.random.default_rng([batch, k])
    drawn = random.normal(scale=40, size=(min(batch, _MOST_SAMPLES), TOKENS, k))
    codes = np.clip(np.rint(drawn), _LEAST, _LARGEST).astype(np.int8)
    return np.resize(codes, (batch, TOKENS, k))


def case_model(case: GemmCase) -> ir.Model:
    """The case as a strongly typed Q/DQ graph with a static batch; INT8 in, so that the product alone is timed."""
    kind = "float16" if case.output == "fp16" else "int8"
    axis = "" if case.output == "int8-plain" else "<axis = 1>"
    lines = ["[x_dq] xd = DequantizeLinear(x, s, z)", f"[w_dq] wd = DequantizeLinear{axis}(w, ws)"]
    lines.append("[mm] h = MatMul(xd, wd)")
    last = "h"
    if case.output != "int8-plain":
        lines.append("[bias] hb = Add(h, b)")
        last = "hb"
    if case.output == "int8-gelu":
        lines.append("[gelu] hg = Gelu(hb)")
        last = "hg"
    if case.output == "fp16":
        lines[-1] = "[bias] y = Add(h, b)"
    else:
        lines.append(f"[y_q] y = QuantizeLinear({last}, ys, z)")
    shapes = f"int8[{case.batch},{TOKENS},{case.k}] x", f"{kind}[{case.batch},{TOKENS},{case.n}] y"
    text = '<ir_version: 10, opset_import: ["" : 20]>\n'
    text += f"g ({shapes[0]}) => ({shapes[1]}) {{\n" + "\n".join(lines) + "\n}"
    used = {name: array for name, array in case_arrays(case).items() if name in _words(lines)}
    initializers: list[ir.TensorProtocol] = [ir.Tensor(array, name=name) for name, array in used.items()]
    return ir.from_onnx_text(text, initializers=initializers)


def expected_rows(case: GemmCase, codes: NDArray[np.int8]) -> NDArray[np.float64]:
    """What the case computes for some rows of its input, in float64: y as floats, or as codes before rounding.

    Args:
        case: The case; its constants are `case_arrays`.
        codes: Rows of INT8 codes, [..., K].

    Returns:
        [..., N]. For INT8 outputs, y / scale clipped to -128...127, not yet rounded.
    """
    arrays = case_arrays(case)
    product = codes.astype(np.float64) @ arrays["w"].astype(np.float64)
    values = product * float(arrays["s"]) * arrays["ws"].astype(np.float64)
    if case.output != "int8-plain":
        values = values + arrays["b"].astype(np.float64)
    if case.output == "int8-gelu":
        values = 0.5 * values * (1 + np.vectorize(math.erf)(values / math.sqrt(2)))
    if case.output == "fp16":
        return np.asarray(values)
    return np.clip(values / float(arrays["ys"]), _LEAST, _LARGEST)


def _words(lines: Sequence[str]) -> set[str]:
    text = " ".join(lines)
    for mark in "(),":
        text = text.replace(mark, " ")
    return set(text.split())
