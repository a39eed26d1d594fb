"""Every pass by name. A new pass is registered here; listing imports none of them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, cast

from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpusq_deploy.graph.passes.base import Pass


class PassEntry(NamedTuple):
    """How a pass is made, and what it does in one line.

    Attributes:
        maker: `module:name` in this folder of what returns the pass.
        summary: For the list.
        arguments: What `maker` is called with.
        decided_by: What makes the decisions that it carries out; empty where it needs none and runs alone.
    """

    maker: str
    summary: str
    arguments: tuple[object, ...] = ()
    decided_by: str = ""


_PLAN = "a quantisation plan"
PASSES: Mapping[str, PassEntry] = MappingProxyType(
    {
        "clean": PassEntry("clean:Clean", "constants become initializers; identities, unused nodes and metadata go"),
        "fold-constants": PassEntry("fold_constants:FoldConstants", "compute what depends on constants only"),
        "fold-shapes": PassEntry("fold_shapes:FoldShapes", "make targets of Reshape constant where only N is dynamic"),
        "drop-no-ops": PassEntry("drop_no_ops:DropNoOps", "remove nodes whose output is their input"),
        "attention-scale": PassEntry("attention_scale:AttentionScale", "scale Q and K before the product of attention"),
        "window-norm": PassEntry("window_norm:WindowNorm", "move a LayerNormalization behind the cut into windows"),
        "flatten-tokens": PassEntry(
            "flatten_tokens:FlattenTokens", "run an MLP on [B, H*W, C] instead of [B, H, W, C]"
        ),
        "merge-qkv": PassEntry("merge_qkv:MergeQkv", "merge Q, K and V projections that read one tensor into a GEMM"),
        "smooth": PassEntry("smooth:Smooth", "scale channels of activations", decided_by="a calibration"),
        "quantize": PassEntry("quantize:Quantize", "insert QuantizeLinear/DequantizeLinear pairs", decided_by=_PLAN),
        "keep-fp32": PassEntry("keep_fp32:KeepFp32", "keep what FP16 can't hold in float32", decided_by=_PLAN),
        "cast": PassEntry("cast_to_float_type:CastToFloatType", "make what is float32 FP16", arguments=("fp16",)),
    }
)
# Passes that a build runs together, in order.
PIPELINES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "simple": ("clean", "fold-constants", "fold-shapes", "drop-no-ops"),
        "faster": ("attention-scale", "window-norm", "flatten-tokens"),
    }
)


def pass_names(name: str) -> tuple[str, ...]:
    """The passes of a pipeline of this name; or the name itself, of a pass.

    Raises:
        GpusqError: There is neither; the hint names what looks alike.
    """
    if name in PASSES:
        return (name,)
    if name in PIPELINES:
        return PIPELINES[name]
    known = [*PASSES, *PIPELINES]
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    raise GpusqError(f"unknown pass {name!r}", hint=f"{guess}known passes: {', '.join(known)}")


def make_pass(name: str) -> Pass:
    """The pass of this name, ready to run.

    Raises:
        GpusqError: There is none, or it carries out decisions that nothing has made.
    """
    (name,) = pass_names(name)
    entry = PASSES[name]
    if entry.decided_by:
        raise GpusqError(
            f"pass {name} carries out decisions: it needs {entry.decided_by}",
            hint="gpusq-build --dump-passes DIR writes the graph after it",
        )
    module, _, maker = entry.maker.partition(":")
    made = getattr(importlib.import_module(f"gpusq_deploy.graph.passes.{module}"), maker)
    return cast("Callable[..., Pass]", made)(*entry.arguments)
