"""Why a layer does or doesn't run on sparse tensor cores: valid -> eligible -> asked -> built as, each with evidence.

Where there is no evidence, the answer is `unknown`, and it says what would settle it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from gpusq_deploy.artifacts.base import Value
from gpusq_deploy.artifacts.plan import LayerDecision, Precision
from gpusq_deploy.artifacts.receipt import BuiltLayer, Verdict
from gpusq_deploy.artifacts.sparsity import Diagnosis, LayerSparsity
from gpusq_deploy.targets import GemmNeed, Target, check_request, padding_notes

Question = Literal["valid", "eligible", "asked", "built as"]

_PRECISIONS: dict[str, Precision] = {"int8": "int8", "float16": "fp16", "bfloat16": "bf16"}

_MEANINGS: dict[Diagnosis, tuple[str, str]] = {
    "valid": ("2:4 along the contracted axis", ""),
    "unaligned": (
        "its contracted axis is no multiple of 4, so it has no groups of four",
        "leave the layer dense in the recipe",
    ),
    "near misses": (
        "mask lost by a hair: values under a thousandth of their row's largest stand where zeros should be",
        "gpusq-validate MODEL --repair OUT, or apply the mask once more after the last optimiser step",
    ),
    "damaged": (
        "2:4 but for a few groups: something wrote to the weight after it was masked",
        "apply the mask again, and look for what changed these rows",
    ),
    "wrong axis": (
        "half of it is zero, but along another axis than the one that tensor cores contract: wrong axis",
        "prune along input channels (of a Conv: for each kernel position), not along output channels",
    ),
    "mask lost": (
        "it should be 2:4 and has hardly a zero: its mask was lost on the way",
        "export the masked weight (weight * mask), or prune it with gpusq-compress",
    ),
    "unstructured": (
        "it has zeros, but not in groups: unstructured pruning",
        "gpusq-compress makes it 2:4",
    ),
    "dense": ("dense", "gpusq-compress makes it 2:4"),
    "unknown": ("not diagnosed: an older version recorded it", "run gpusq-validate on the model"),
}


class Step(Value):
    """One link of the chain: the question, the answer, and what the answer rests on."""

    question: Question
    answer: Verdict
    evidence: str


class LayerExplanation(Value):
    """Everything about one layer that decides whether it runs sparse. `flops_share` is None where it is unknown."""

    layer: str
    target: str
    diagnosis: Diagnosis
    meaning: str
    hint: str
    flops_share: float | None
    chain: tuple[Step, ...]


def meaning_of(diagnosis: Diagnosis) -> tuple[str, str]:
    """A diagnosis in words, and what to do about it."""
    return _MEANINGS[diagnosis]


def flops_shares(layers: Sequence[LayerSparsity]) -> dict[str, float]:
    """Each layer's share of the weighted layers' FLOPs, 0...1; empty where one layer's are unknown."""
    total = sum(layer.macs for layer in layers)
    if not total or not all(layer.macs for layer in layers):
        return {}
    return {layer.layer: layer.macs / total for layer in layers}


def explain_layers(
    layers: Sequence[LayerSparsity],
    target: Target,
    *,
    decisions: Sequence[LayerDecision] = (),
    built: Sequence[BuiltLayer] = (),
) -> tuple[LayerExplanation, ...]:
    """The chain of every layer.

    Args:
        layers: Their 2:4 state.
        target: The GPU in question.
        decisions: What the plan asked, where there is a plan.
        built: What the engine's builder made of it, where there is an engine for this target.
    """
    shares = flops_shares(layers)
    asked = {decision.layer: decision for decision in decisions}
    made = {layer.layer: layer for layer in built}
    return tuple(
        LayerExplanation(
            layer=state.layer,
            target=target.name,
            diagnosis=state.diagnosis,
            meaning=_MEANINGS[state.diagnosis][0],
            hint=_MEANINGS[state.diagnosis][1],
            flops_share=shares.get(state.layer),
            chain=_chain(state, target, asked.get(state.layer), made.get(state.layer)),
        )
        for state in layers
    )


def _chain(
    state: LayerSparsity, target: Target, decision: LayerDecision | None, built: BuiltLayer | None
) -> tuple[Step, ...]:
    return (_valid(state), _eligible(state, target, decision), _asked(decision), _built(built))


def _valid(state: LayerSparsity) -> Step:
    if state.valid:
        evidence = f"all {state.groups} groups of four along K = {state.k} have at most two non-zeros"
    elif state.violations:
        evidence = f"{state.violations} of {state.groups} groups have more; {_MEANINGS[state.diagnosis][0]}"
    else:
        evidence = f"K = {state.k} is not a multiple of 4"
    return Step(question="valid", answer="yes" if state.valid else "no", evidence=evidence)


def _eligible(state: LayerSparsity, target: Target, decision: LayerDecision | None) -> Step:
    """A Conv's K is its channels: a sparse kernel skips zeros within one kernel position."""
    if not state.valid:
        return Step(question="eligible", answer="no", evidence="sparse kernels take 2:4 weights only")
    precision = decision.precision if decision is not None else _PRECISIONS.get(state.dtype, "int8")
    need = GemmNeed(layer=state.layer, n=state.n // state.positions, k=state.k, precision=precision, sparse=True)
    problems = [text.removeprefix(f"{state.layer}: ") for text in check_request(target, [need])]
    if problems:
        return Step(question="eligible", answer="no", evidence="; ".join(problems))
    supposed = "" if decision is not None or state.dtype in _PRECISIONS else f", once it is {precision}"
    padded = [text.removeprefix(f"{state.layer}: ") for text in padding_notes(target, [need])]
    if padded:
        evidence = f"{padded[0]}; whether a sparse kernel is worth it then, only the builder can tell"
        return Step(question="eligible", answer="unknown", evidence=evidence)
    sizes = f"N = {need.n} and K = {need.k} need no padding"
    evidence = f"{target.name} has 2:4 sparse {precision} kernels, and {sizes}{supposed}"
    return Step(question="eligible", answer="yes", evidence=evidence)


def _asked(decision: LayerDecision | None) -> Step:
    if decision is None:
        return Step(question="asked", answer="unknown", evidence="there is no plan: build a bundle with gpusq-build")
    return Step(question="asked", answer="yes" if decision.sparse else "no", evidence=decision.sparse_reason)


def _built(built: BuiltLayer | None) -> Step:
    if built is None:
        return Step(question="built as", answer="unknown", evidence="there is no engine for this target")
    return Step(question="built as", answer=built.sparse_executed, evidence=built.reason)
