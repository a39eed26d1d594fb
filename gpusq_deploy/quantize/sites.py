"""Where Q/DQ pairs go beyond the inputs of layers: into attentions and residual adds, as the recipe says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from gpusq_deploy.artifacts import RESIDUAL_ROLES, ROLES_OF, PlacedRole, Recipe, ResidualRole
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import Attention, Residual, find_attentions, find_residuals, tensors_of
from gpusq_deploy.text import by_reason, some

# TensorRT-RTX 1.7's ahead-of-time build, by its layer list; docs/recipes.md.
_FUSED_HEADS = frozenset({16, 32, 64})
_FUSED_TOKENS = 512
_FUSED_ROLES = frozenset({"query", "key", "softmax", "value"})


@dataclass(frozen=True, kw_only=True, slots=True)
class QdqSite:
    """One activation to quantise where one node reads it.

    Attributes:
        module: The torch module that it belongs to.
        node: The node that reads it.
        role: What it is there.
        tensor: Its name.
        reason: Why, for the plan.
    """

    module: str
    node: str
    role: PlacedRole
    tensor: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8OutputRequest:
    """INT8 outputs for layers that are to run sparse, where `least_db` of their signal are predicted to stay."""

    least_db: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8OutputDecision:
    """Whether a layer's product, without its bias, is to be written in INT8, and why; `tensor` is the product."""

    layer: str
    node: str
    tensor: str
    chosen: bool
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationSites:
    """What is quantised beyond the inputs of layers, the attentions that some of it lies in, what was said of outputs.

    `floats`, by node, says why a layer that a rule wants in INT8 stays float all the same.
    """

    sites: tuple[QdqSite, ...] = ()
    attentions: tuple[Attention, ...] = ()
    outputs: tuple[Int8OutputDecision, ...] = ()
    floats: Mapping[str, str] = field(default_factory=dict[str, str])


def attentions_to_quantize(model: ir.Model, recipe: Recipe) -> tuple[Attention, ...]:
    """The attentions that the recipe wants something of in INT8.

    Raises:
        GpusqError: It names attentions and decides none.
    """
    asked = recipe.attention
    if asked is None or not ROLES_OF[asked.placement]:
        return ()
    found = find_attentions(model)
    chosen = tuple(attention for attention in found if asked.decides(attention.module))
    if not chosen:
        names = ", ".join(attention.module for attention in found[:3])
        raise GpusqError(
            f"placement {asked.placement} decides no attention: match = {asked.match!r}",
            place=f"recipe {recipe.name}",
            hint=f"the model has {names}" if names else "the model has no attention of two GEMMs and a softmax",
        )
    return chosen


def residuals_to_quantize(model: ir.Model, recipe: Recipe) -> tuple[Residual, ...]:
    """The residual adds that the recipe wants in INT8.

    Raises:
        GpusqError: It names residual adds and decides none.
    """
    asked = recipe.residual
    if asked is None:
        return ()
    found = find_residuals(model)
    chosen = tuple(residual for residual in found if asked.decides(residual.module))
    if not chosen:
        names = ", ".join(dict.fromkeys(residual.module for residual in found))
        raise GpusqError(
            f"[residual] decides no residual add: match = {asked.match!r}",
            place=f"recipe {recipe.name}",
            hint=f"the model has some in {names}" if names else "the model has no residual add",
        )
    return chosen


def residual_sites(residuals: Sequence[Residual], recipe: Recipe) -> tuple[QdqSite, ...]:
    """The inputs of the given residual adds that the recipe quantises, in graph order."""
    asked = recipe.residual
    if asked is None:
        return ()
    roles: tuple[tuple[ResidualRole, str], ...]
    sites: list[QdqSite] = []
    for residual in residuals:
        roles = (("residual", residual.skip), ("branch", residual.branch))
        sites += [
            QdqSite(
                module=residual.module,
                node=residual.node,
                role=role,
                tensor=tensor,
                reason=f"recipe {recipe.name}, residual, {asked.inputs}: {asked.reason}",
            )
            for role, tensor in roles
            if role in RESIDUAL_ROLES[asked.inputs]
        ]
    return tuple(sites)


def sites_of(attentions: Sequence[Attention], recipe: Recipe) -> tuple[QdqSite, ...]:
    """The activations of the given attentions that the recipe quantises, in the order of the computation."""
    asked = recipe.attention
    if asked is None:
        return ()
    return tuple(
        QdqSite(
            module=attention.module,
            node=attention.scores if role in {"query", "key"} else attention.context,
            role=role,
            tensor=tensor,
            reason=f"recipe {recipe.name}, placement {asked.placement}: {asked.reason}",
        )
        for attention in attentions
        for role, tensor in tensors_of(attention)
        if role in ROLES_OF[asked.placement]
    )


def fusion_notes(attentions: Sequence[Attention], recipe: Recipe, *, int8_nodes: Collection[str]) -> tuple[str, ...]:
    """Which attentions TensorRT will not fuse any more, and why: one note for each reason.

    Args:
        attentions: Those with something in INT8.
        recipe: Its placement.
        int8_nodes: Nodes of the layers that are planned in INT8.
    """
    judged = ((attention.module, _unfused(attention, recipe, int8_nodes)) for attention in attentions)
    unfused = by_reason((module, reason) for module, reason in judged if reason)
    return tuple(
        f"TensorRT won't fuse the attention of {some(modules, 1)}: {reason}" for reason, modules in unfused.items()
    )


def _unfused(attention: Attention, recipe: Recipe, int8_nodes: Collection[str]) -> str:
    assert recipe.attention is not None, "only attentions that a recipe chose come here"
    missing = _FUSED_ROLES - ROLES_OF[recipe.attention.placement]
    if missing:
        lacking = ", ".join(sorted(missing))
        return f"INT8 attention is fused only with query, key, softmax and value in INT8; not so here: {lacking}"
    if attention.output not in int8_nodes:
        return "INT8 attention is fused only where the layer that reads its result is INT8"
    if attention.head not in _FUSED_HEADS:
        return f"INT8 attention is fused for heads of 16, 32 or 64; these have {attention.head or 'an unknown size'}"
    if not 0 < attention.tokens <= _FUSED_TOKENS:
        tokens = attention.tokens or "an unknown number"
        return f"INT8 attention is fused up to {_FUSED_TOKENS} tokens; this one has {tokens}"
    return ""
