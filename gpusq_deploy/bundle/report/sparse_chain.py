"""Why a layer does or doesn't run on sparse tensor cores: valid -> eligible -> asked -> built as, each with evidence.

Where there is no evidence, the answer is `unknown`, and it says what would settle it. Where the chain breaks, the link
says how to fix it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import msgspec

from gpusq_deploy.artifacts import (
    BuiltEngine,
    BuiltLayer,
    Carrier,
    Diagnosis,
    EngineLayer,
    LayerDecision,
    LayerSparsity,
    Precision,
    SparsityReport,
    Value,
    YesNoUnknown,
)
from gpusq_deploy.engines import GemmNeed, Target, check_request, padding_notes
from gpusq_deploy.sparsity import without_lost_masks

Question = Literal["valid", "eligible", "asked", "built as"]

_PRECISIONS: dict[str, Precision] = {
    "int8": "int8",
    "float8_e4m3fn": "fp8",
    "int4": "int4",
    "float16": "fp16",
    "bfloat16": "bf16",
}

_MEANINGS: dict[Diagnosis, tuple[str, str]] = {
    "valid": ("2:4 along the contracted axis", ""),
    "unaligned": (
        "K is not a multiple of 4, so there are no whole groups of four",
        "leave the layer dense in the recipe",
    ),
    "near misses": (
        "values under 1/1000 of their row's largest stand where 2:4 needs zeros",
        "gpusq-validate MODEL --repair OUT, or apply the mask after the last optimiser step",
    ),
    "damaged": (
        "at most 5 % of the groups break 2:4: some weights were changed after masking",
        "apply the mask again, and find what changed these rows",
    ),
    "wrong axis": (
        "wrong axis: the weight is 2:4 along another axis than the contracted one",
        "prune along input channels (of a Conv: for each kernel position), not along output channels",
    ),
    "mask lost": (
        "under 10 % of the weight is zero, though it should be 2:4: its mask was not applied",
        "export weight * mask, or prune the model with gpusq-compress",
    ),
    "unstructured": ("the zeros are not in groups of four: unstructured pruning", "prune it 2:4 with gpusq-compress"),
    "dense": ("under 10 % of the weight is zero: dense", "prune it 2:4 with gpusq-compress"),
    "unknown": ("an older version recorded no diagnosis", "run gpusq-validate on the model"),
}


_NO_KERNEL = "try another batch size or an INT8 output: the builder had no sparse kernel, or timed a dense one faster"
_IN_A_TRACE = (
    "trace the engine on its GPU and give the kernel names to gpusq-inspect --kernels: sparse ones are named "
    "'sptensor' or '_sparse_gemm'"
)
# Seen with TensorRT-RTX 1.7, benchmarks/gpu/cases.py: scales per channel or a bias keep the quantiser out.
_INT8_OUTPUT = (
    "gpusq-build --sparse-outputs int8 lets the GEMM write INT8 (one weight scale, a quantiser directly behind it); "
    "it costs accuracy"
)

_NO_STRICTER = " in INT8, whose alignment is the strictest"


class Step(Value):
    """One link of the chain: the question, the answer, what the answer rests on, and what would make it a yes."""

    question: Question
    answer: YesNoUnknown
    evidence: str
    mend: str = ""


class LayerExplanation(Value):
    """Everything about one layer that decides whether it runs sparse. `flops_share` is None where it is unknown.

    `carriers` is empty where there is no engine, or where none of its layers answers for this one.
    """

    layer: str
    target: str
    diagnosis: Diagnosis
    meaning: str
    hint: str
    flops_share: float | None
    chain: tuple[Step, ...]
    carriers: tuple[Carrier, ...] = ()

    @property
    def stop(self) -> Step | None:
        """The first link that isn't a yes; None where the layer runs sparse."""
        return next((step for step in self.chain if step.answer != "yes"), None)


class BlockedLayers(Value):
    """Layers whose chain stops at one link for one reason. `flops_share` is theirs together, where it is known."""

    question: Question
    answer: YesNoUnknown
    layers: tuple[str, ...]
    flops_share: float | None
    evidence: str
    mend: str


class AnswerCount(Value):
    """How many layers have one answer to one question, as a column of the table has it."""

    question: Question
    answer: YesNoUnknown
    layers: int
    flops_share: float | None


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
    engine: BuiltEngine | None = None,
) -> tuple[LayerExplanation, ...]:
    """The chain of every layer.

    Args:
        layers: Their 2:4 state.
        target: The GPU in question.
        decisions: What the plan asked, where there is a plan.
        engine: What the builder made for this target, where there is an engine.
    """
    shares = flops_shares(layers)
    asked = {decision.layer: decision for decision in decisions}
    unasked = bool(decisions) and not any(decision.sparse for decision in decisions)
    if unasked:  # an older version recorded lost masks of models that nobody pruned
        layers = without_lost_masks(SparsityReport(source="", layers=tuple(layers))).layers
    made = {} if engine is None else {layer.layer: layer for layer in engine.layers}
    return tuple(
        _explained(state, target, shares, _Known(asked.get(state.layer), made.get(state.layer), engine, unasked))
        for state in layers
    )


def recorded(
    engine: BuiltEngine, target: Target, layers: Sequence[LayerSparsity], decisions: Sequence[LayerDecision]
) -> BuiltEngine:
    """The engine with what decides for each of its layers: size, FLOPs, eligibility, and the engine layers behind it.

    Args:
        engine: As built for the target.
        target: Its GPU.
        layers: The 2:4 state of the model that it was built from.
        decisions: Of the plan.
    """
    states = {state.layer: state for state in layers}
    known = {found.layer: found for found in explain_layers(layers, target, decisions=decisions, engine=engine)}
    return msgspec.structs.replace(
        engine,
        layers=tuple(
            _recorded(built, states[built.layer], known[built.layer]) if built.layer in states else built
            for built in engine.layers
        ),
    )


def tallies(layers: Sequence[LayerExplanation]) -> tuple[AnswerCount, ...]:
    """How many layers, and what share of the FLOPs, have each answer to each question, whatever the other links say."""
    return tuple(
        AnswerCount(question=question, answer=answer, layers=len(those), flops_share=_share(those))
        for index, question in enumerate(get_args(Question))
        for answer in get_args(YesNoUnknown)
        for those in [[layer for layer in layers if layer.chain[index].answer == answer]]
    )


def totals(layers: Sequence[LayerExplanation]) -> list[tuple[Question, str]]:
    """Each question with all its answers: those that a layer has, and yes even where none has it."""
    parts: dict[Question, list[str]] = {}
    for tally in tallies(layers):
        if tally.layers or tally.answer == "yes":
            said = f"{tally.answer} {tally.layers}{of_flops(tally.flops_share if tally.layers else None)}"
            parts.setdefault(tally.question, []).append(said)
    return [(question, ", ".join(said)) for question, said in parts.items()]


def of_flops(share: float | None) -> str:
    """` (12.5% of FLOPs)`; empty where that isn't known."""
    return "" if share is None else f" ({share:.1%} of FLOPs)"


def breaks(layers: Sequence[LayerExplanation]) -> tuple[BlockedLayers, ...]:
    """Where chains stop: layers of one diagnosis that stop at one link and are mended in one way stand together.

    The largest share comes first. The evidence is that of the first such layer.
    """
    groups: dict[tuple[Question, YesNoUnknown, str, Diagnosis], list[tuple[LayerExplanation, Step]]] = {}
    for layer in layers:
        step = layer.stop
        if step is not None:
            groups.setdefault((step.question, step.answer, step.mend, layer.diagnosis), []).append((layer, step))
    found = [
        BlockedLayers(
            question=question,
            answer=answer,
            layers=tuple(layer.layer for layer, _ in members),
            flops_share=_share([layer for layer, _ in members]),
            evidence=members[0][1].evidence,
            mend=mend,
        )
        for (question, answer, mend, _), members in groups.items()
    ]
    return tuple(sorted(found, key=lambda entry: -(entry.flops_share or 0.0)))


def _recorded(built: BuiltLayer, state: LayerSparsity, found: LayerExplanation) -> BuiltLayer:
    eligible = next(step for step in found.chain if step.question == "eligible")
    return msgspec.structs.replace(
        built,
        shape=(state.n // state.positions, state.k * state.positions),
        flops=2 * state.macs or None,
        eligible=eligible.answer,
        eligible_reason=eligible.evidence,
        carriers=found.carriers,
    )


def _share(layers: Sequence[LayerExplanation]) -> float | None:
    known = [layer.flops_share for layer in layers if layer.flops_share is not None]
    return sum(known) if len(known) == len(layers) else None


class _Known(NamedTuple):
    """What is known of a layer beside its weight. `unasked`: the plan asks for no sparse kernel at all."""

    decision: LayerDecision | None
    built: BuiltLayer | None
    engine: BuiltEngine | None
    unasked: bool


def _explained(state: LayerSparsity, target: Target, shares: Mapping[str, float], known: _Known) -> LayerExplanation:
    decision, built, engine, unasked = known
    intent = _intent(state, unasked=unasked)
    carriers = () if built is None or engine is None else _carriers(built, engine.engine_layers)
    if built is not None and built.sparse_executed == "yes":
        eligible = Step(question="eligible", answer="yes", evidence="the builder picked a sparse kernel for it")
    else:
        eligible = _eligible(state, target, decision, ("" if engine is None else engine.backend, carriers))
    return LayerExplanation(
        layer=state.layer,
        target=target.name,
        diagnosis=state.diagnosis,
        meaning=_MEANINGS[state.diagnosis][0],
        hint="" if intent else _MEANINGS[state.diagnosis][1],
        flops_share=shares.get(state.layer),
        chain=(_valid(state, intent), eligible, _asked(state, decision, intent), _built(built)),
        carriers=carriers,
    )


def _carriers(built: BuiltLayer, engine_layers: Sequence[EngineLayer]) -> tuple[Carrier, ...]:
    return tuple(
        Carrier(
            name=layer.name,
            kind=layer.kind,
            inputs=tuple(tensor.dtype for tensor in layer.inputs),
            outputs=tuple(tensor.dtype for tensor in layer.outputs),
            fused=tuple(node for node in layer.onnx_nodes if node != built.node),
            tactic=layer.tactic,
        )
        for layer in engine_layers
        if layer.name in built.engine_layers and built.node in layer.onnx_nodes
    )


def _intent(state: LayerSparsity, *, unasked: bool) -> str:
    """Why a dense layer needs no mending: nobody wants it 2:4, and nobody tried. Empty where somebody does or did."""
    if state.diagnosis not in {"dense", "unaligned"}:
        return ""
    if not state.expected:
        return f"dense by intent: {state.reason}"
    return "dense: 2:4 was not asked for" if unasked else ""


def _valid(state: LayerSparsity, intent: str) -> Step:
    if state.valid:
        evidence = f"all {state.groups} groups of four along K = {state.k} have at most two non-zeros"
        return Step(question="valid", answer="yes", evidence=evidence)
    if intent:
        return Step(question="valid", answer="no", evidence=intent)
    meaning, mend = _MEANINGS[state.diagnosis]
    evidence = f"K = {state.k} is not a multiple of 4"
    if state.violations:
        evidence = f"{state.violations} of {state.groups} groups have more than two non-zeros; {meaning}"
    return Step(question="valid", answer="no", evidence=evidence, mend=mend)


def _eligible(
    state: LayerSparsity, target: Target, decision: LayerDecision | None, made: tuple[str, tuple[Carrier, ...]]
) -> Step:
    """A Conv's K is its channels: a sparse kernel skips zeros within one kernel position."""
    if not state.valid:
        return Step(question="eligible", answer="no", evidence="sparse kernels take 2:4 weights only")
    precision = decision.precision if decision is not None else _PRECISIONS.get(state.dtype, "int8")
    need = GemmNeed(layer=state.layer, n=state.n // state.positions, k=state.k, precision=precision, sparse=True)
    problems = [text.removeprefix(f"{state.layer}: ") for text in check_request(target, [need])]
    if problems:
        types = ", ".join(target.sparse_dtypes) or "none; choose another target"
        mend = f"build the layer in a type with sparse kernels: {types}"
        return Step(question="eligible", answer="no", evidence="; ".join(problems), mend=mend)
    padded = _padded(target, need)
    if padded:
        mend = "give the layer sizes that need no padding, or leave it dense in the recipe"
        return Step(question="eligible", answer="unknown", evidence=padded, mend=mend)
    written = _written(target, precision, made)
    if written:
        return Step(question="eligible", answer="unknown", evidence=written, mend=_INT8_OUTPUT)
    supposed = "" if decision is not None or state.dtype in _PRECISIONS else f", once it is {precision}"
    sizes = f"N = {need.n} and K = {need.k} need no padding" + ("" if precision == "int8" else _NO_STRICTER)
    evidence = f"{target.name} has 2:4 sparse {precision} kernels, and {sizes}{supposed}"
    return Step(question="eligible", answer="yes", evidence=evidence)


def _padded(target: Target, need: GemmNeed) -> str:
    """What speaks against the layer's sizes; empty where they are known to need no padding.

    A target's file has the sizes of INT8 alone. They do for wider types, and for FP8: rows are aligned in bytes, and an
    instruction contracts the same number of bytes in every type (mma.sp: 64 INT8 or FP8 values, 32 of FP16 or BF16).
    Sizes that INT8 would pad may still fit those: that isn't known.
    """
    as_int8 = msgspec.structs.replace(need, precision="int8")
    notes = [text.removeprefix(f"{need.layer}: ") for text in padding_notes(target, [as_int8])]
    if not notes:
        return ""
    if need.precision != "int8":
        known = f"the sizes that a sparse {need.precision} kernel takes unpadded aren't known for {target.name}"
        return f"{known}; in INT8 these would be padded: {notes[0].removesuffix(' will be padded')}"
    return f"{notes[0]}; only the builder can tell whether a sparse kernel still pays"


def _written(target: Target, precision: Precision, made: tuple[str, tuple[Carrier, ...]]) -> str:
    """Why the type that the GEMM writes may rule sparse kernels out; empty where nothing is known against it."""
    backend, carriers = made
    known = next((types for name, types in target.sparse_int8_outputs.items() if name == backend), ())
    got = sorted({dtype for carrier in carriers for dtype in carrier.outputs} - set(known))
    if precision != "int8" or not known or not got:
        return ""
    return (
        f"its GEMM writes {', '.join(got)}; the sparse INT8 kernels that {backend} is known to have for "
        f"{target.name} write {' or '.join(known)}"
    )


def _asked(state: LayerSparsity, decision: LayerDecision | None, intent: str) -> Step:
    if decision is None:
        return Step(
            question="asked",
            answer="unknown",
            evidence="there is no plan: build a bundle with gpusq-build",
            mend="" if intent else "gpusq-build MODEL --sparse",
        )
    if decision.sparse:
        return Step(question="asked", answer="yes", evidence=decision.sparse_reason)
    mend = "gpusq-build --sparse, with a recipe whose rule for the layer has sparse = true"
    if not state.valid:
        mend = "" if intent else f"make the weight 2:4, then {mend}"
    return Step(question="asked", answer="no", evidence=decision.sparse_reason, mend=mend)


def _built(built: BuiltLayer | None) -> Step:
    if built is None:
        return Step(
            question="built as",
            answer="unknown",
            evidence="there is no engine for this target",
            mend="gpusq-build BUNDLE --target NAME, on the device where it can't be built elsewhere",
        )
    # A layer that no sparse kernel was asked for is dense for that reason, which its link before says how to mend.
    able = built.sparse_asked and built.sparse_weights_valid
    mends: dict[YesNoUnknown, str] = {"yes": "", "no": _NO_KERNEL if able else "", "unknown": _IN_A_TRACE}
    return Step(
        question="built as",
        answer=built.sparse_executed,
        evidence=built.reason,
        mend=mends[built.sparse_executed],
    )
