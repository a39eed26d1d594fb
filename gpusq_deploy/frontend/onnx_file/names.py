"""Module names for the nodes of an ONNX file, as checkpoints, recipes and ranges name layers."""

from __future__ import annotations

import re

import onnx_ir as ir

from gpusq_deploy.graph import NAME_SCOPES, is_constant, module_of, origin

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
# `blocks.0.attn.qkv.weight`, and not `onnx::MatMul_233` or `const_fold_opt__12`.
_PARAMETER = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)\.(?:weight|kernel)")


def name_modules(model: ir.Model) -> int:
    """Record the module of each node; how many were named.

    1. What the file records stays, but for rule 3: torch's exporter writes it since 2.5.
    2. torch's TorchScript exporter names nodes by scopes, `/blocks/blocks.0/attn/qkv/MatMul`, which are those of
       `blocks.0.attn.qkv`: a Sequential's child repeats its parent's name.
    3. A weight that has kept its parameter's name says more where its module lies below the node's, or the node tells
       none: `blocks.0.attn.qkv.weight`. It may be another layer's that is equal, so it never says otherwise.
    """
    named = 0
    for node in model.graph:
        recorded = module_of(node)
        module = recorded or scope_of(node.name or "")
        found = _of_weight(node) if node.op_type in _PRODUCTS else ""
        if found and (not module or found.startswith(f"{module}.")):
            module = found
        if module != recorded:
            node.metadata_props[NAME_SCOPES] = repr(["", module, node.name or node.op_type])
            named += 1
    return named


def scope_of(name: str) -> str:
    """The module that a TorchScript exporter's name of a node stands for; empty where it is no such name."""
    if not name.startswith("/"):
        return ""
    kept: list[str] = []
    for part in name.split("/")[1:-1]:
        if kept and part.startswith(f"{kept[-1]}."):
            kept.pop()
        kept.append(part)
    return ".".join(kept)


def _of_weight(node: ir.Node) -> str:
    weight = origin(node.inputs[1])[0] if len(node.inputs) > 1 else None
    found = None if weight is None or not is_constant(weight) else _PARAMETER.fullmatch(weight.name or "")
    return found[1] if found else ""
