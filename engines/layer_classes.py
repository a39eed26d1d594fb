"""What an engine layer is: a GEMM and of which precision, fused attention, or neither; and whether it ran sparse.

Rules:
1. A layer is fused attention where its name holds `_gemm_mha`.
2. A layer is a GEMM where its kind says so (`gemm`, `correlation`, a matrix product or a convolution of TensorRT's
   own), or where it is a fusion whose name lists one (`__myl_FcAdd`).
3. A GEMM is INT8 where every input is Int8 and every weight is Int8 (two activations: both), and no cast stands
   before the product in its name. `__myl_CastMulFc` and `__myl_CastMulCastFc` read Int8, dequantise it and multiply
   halves. Or where the kernel's own name says `i8i32`.
4. A GEMM with a weight of Int4 is INT4, by the weight alone: it unpacks it, and multiplies in its input's type.
5. Any other GEMM has the type that it multiplies in: its weight's, else its inputs', else its output's. FP8 is one.
6. A weight is a constant of rank 2 or more whose first dimension isn't 1: [1, N] and [1, N, 1, 1] are biases and
   scales, [1] are alpha and beta. Where there is none, it is one with two dimensions above 1: at batch 1 TensorRT-RTX
   writes a weight as [1, K, N]. Beside a weight of Int4, others are the scales of its blocks.
7. `signal` and `wait` order streams, `cjmp` is a loop's jump: they are no kernels. A `shape_call` (host-side shapes of
   a dynamic batch) counts as one, as it does in trtexec's and our own earlier counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from gpusq_deploy.artifacts import EngineLayer, EngineTensor, EngineTotals, YesNoUnknown

Role = Literal["gemm", "attention", "sync", "other"]

# The builder's names of element types, and ours.
PRECISIONS = {
    "Int8": "int8",
    "Half": "fp16",
    "BFloat16": "bf16",
    "Float": "fp32",
    "FP8": "fp8",
    "Int4": "int4",
    "FP4": "fp4",
}
_WIDTH = {"fp32": 3, "bf16": 2, "fp16": 1}
_FLOATS = ("Half", "BFloat16", "Float")
_INT4 = "Int4"

_GEMM_KIND = re.compile(r"gemm|correlation|matrix ?multiply|convolution|caskconv|fully ?connected", re.IGNORECASE)
# Myelin names a fusion after its operations, each shortened to a capital and a few letters.
_GEMM_IN_NAME = re.compile(r"(?:Fc|Gemm|Conv)(?![a-z])")
_GENERATED = "__myl_"
_CONTROL_KINDS = ("signal", "wait", "cjmp")
_ATTENTION = "_gemm_mha"
_INT8_KERNEL = re.compile(r"(?<![a-z0-9])i8i32(?![a-z0-9])")

_SPARSE_KERNEL = re.compile(r"_sparse_(?:gemm|conv)|sparse_fprop|sptensor\d+x\d+x\d+")
STUB = "__myelin_CASK_STUB"
_KERNEL_NAME = re.compile(r"gemm|conv|fprop|xmma|cutlass|cublas", re.IGNORECASE)


class LayerClass(NamedTuple):
    """A layer's role, and the precision that a GEMM or fused attention multiplies in."""

    role: Role
    precision: str | None


def classify(layer: EngineLayer) -> LayerClass:
    """What a layer is, by the rules of this module."""
    if layer.kind in _CONTROL_KINDS:
        return LayerClass("sync", None)
    if _ATTENTION in layer.name:
        return LayerClass("attention", _attention_precision(layer))
    if _is_gemm(layer):
        return LayerClass("gemm", _gemm_precision(layer))
    return LayerClass("other", None)


def totals(layers: Iterable[EngineLayer]) -> EngineTotals:
    """Kernels, GEMMs outside fused attention by precision (in alphabetical order), and fused attentions."""
    classes = [classify(layer) for layer in layers]
    gemms = Counter(found.precision or "unknown" for found in classes if found.role == "gemm")
    return EngineTotals(
        kernels=sum(found.role != "sync" for found in classes),
        gemms=dict(sorted(gemms.items())),
        attention_fused=sum(found.role == "attention" for found in classes),
    )


def sparse_tactic(tactic: str) -> tuple[YesNoUnknown, str]:
    """Whether a kernel, by its name, multiplies 2:4 sparse weights; and why we say so.

    The builder's flags and its "eligible" lists prove nothing: only the kernel's name does.
    """
    if _SPARSE_KERNEL.search(tactic):
        return "yes", f"the kernel is {tactic}"
    if not tactic or tactic == STUB:
        return (
            "unknown",
            "the kernel is chosen on the GPU when the engine is loaded; look for 'sptensor' in an nsys trace",
        )
    if tactic.startswith(_GENERATED) or not _KERNEL_NAME.search(tactic):
        return (
            "unknown",
            f"the name of the generated kernel {tactic} doesn't tell; look for 'sptensor' in an nsys trace",
        )
    return "no", f"the builder picked the dense kernel {tactic}"


def generated_product(name: str) -> bool:
    """True for the name of a generated layer or kernel that holds a product: whether it is sparse, its name hides."""
    return name.startswith(_GENERATED) and _GEMM_IN_NAME.search(name) is not None


def weights_of(layer: EngineLayer) -> tuple[EngineTensor, ...]:
    """The constants that a GEMM multiplies with, as opposed to biases and scales."""
    packed = tuple(tensor for tensor in layer.constants if tensor.dtype == _INT4)
    if packed:
        return packed
    plain = tuple(tensor for tensor in layer.constants if len(tensor.shape) >= 2 and tensor.shape[0] != 1)
    return plain or tuple(tensor for tensor in layer.constants if sum(size != 1 for size in tensor.shape) >= 2)


def _is_gemm(layer: EngineLayer) -> bool:
    if "fusion" in layer.kind:
        return _GEMM_IN_NAME.search(layer.name) is not None
    return _GEMM_KIND.search(layer.kind) is not None


def _attention_precision(layer: EngineLayer) -> str | None:
    # Its constants are masks and position biases, which may stay halves in an INT8 attention.
    if layer.inputs and all(tensor.dtype == "Int8" for tensor in layer.inputs):
        return "int8"
    return _widest_float(layer.inputs)


def _gemm_precision(layer: EngineLayer) -> str | None:
    weights = weights_of(layer)
    if _is_int8(layer, weights):
        return "int8"
    if any(tensor.dtype == _INT4 for tensor in weights):
        return "int4"
    operands = {tensor.dtype for tensor in (*layer.inputs, *weights)}
    if len(operands) == 1 and operands != {"Int8"}:
        return PRECISIONS.get(operands.pop())
    return _widest_float(weights) or _widest_float(layer.inputs) or _widest_float(layer.outputs)


def _widest_float(tensors: tuple[EngineTensor, ...]) -> str | None:
    names = [PRECISIONS[tensor.dtype] for tensor in tensors if tensor.dtype in _FLOATS]
    return max(names, key=lambda name: _WIDTH[name], default=None)


def _is_int8(layer: EngineLayer, weights: tuple[EngineTensor, ...]) -> bool:
    if _INT8_KERNEL.search(layer.tactic):
        return True
    if _casts_first(layer):
        return False
    operands = (*layer.inputs, *weights)
    return len(operands) >= 2 and all(tensor.dtype == "Int8" for tensor in operands)


def _casts_first(layer: EngineLayer) -> bool:
    product = _GEMM_IN_NAME.search(layer.name) if "fusion" in layer.kind else None
    return product is not None and "Cast" in layer.name[: product.start()]
