"""What each kind of weight is called, and the chain valid -> eligible -> asked -> built as."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from gpusq_deploy.artifacts.plan import LayerDecision, LayerKind, Precision
from gpusq_deploy.artifacts.receipt import (
    BuiltEngine,
    BuiltLayer,
    EngineLayer,
    EngineTensor,
    EngineTotals,
    YesNoUnknown,
)
from gpusq_deploy.artifacts.recipe import load_recipe
from gpusq_deploy.artifacts.sparsity import LayerSparsity, SparsityRecord
from gpusq_deploy.bundle.report.sparse_chain import (
    Step,
    breaks,
    explain_layers,
    flops_shares,
    meaning_of,
    recorded,
    tallies,
)
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.numerics.layer_weight import LayerWeight
from gpusq_deploy.numerics.two_four import magnitude_mask, rows_from_conv
from gpusq_deploy.sparsity.check import sparsity_report, violation_text

ORIN = find_target("orin")
RECORD = SparsityRecord(method="magnitude", layers=("fc",))


def dense(n: int = 64, k: int = 64) -> Any:
    random = np.random.default_rng(0)
    return (random.uniform(0.5, 2, (n, k)) * random.choice([-1, 1], (n, k))).astype(np.float32)


def pruned(n: int = 64, k: int = 64) -> Any:
    return np.where(magnitude_mask(dense(n, k)), dense(n, k), np.float32(0))


def state_of(
    rows: Any, *, layer: str = "fc", positions: int = 1, macs: int = 0, expected: bool = True
) -> LayerSparsity:
    kind: LayerKind = "linear" if positions == 1 else "conv"
    weight = LayerWeight(layer=layer, tensor="w", kind=kind, rows=rows, positions=positions, macs=macs)
    record = RECORD if expected else SparsityRecord(method="magnitude", layers=())
    return sparsity_report([weight], source="test", recipe=load_recipe(None), record=record).layers[0]


def unstructured() -> Any:
    keep = np.random.default_rng(1).permutation(64 * 64).reshape(64, 64) < 64 * 64 / 2
    return np.where(keep, dense(), np.float32(0))


def nearly() -> Any:
    """Near misses: what an optimiser's last step leaves where zeros were."""
    return np.where(pruned() == 0, np.float32(1e-5), pruned())


def damaged() -> Any:
    rows = pruned()
    rows[3, 8:12] = 1
    return rows


@pytest.mark.parametrize(
    ("rows", "diagnosis"),
    [
        (pruned(), "valid"),
        (np.zeros((8, 8), np.float32), "valid"),
        (dense(64, 6), "unaligned"),
        (nearly(), "near misses"),
        (damaged(), "damaged"),
        (np.ascontiguousarray(pruned().T), "wrong axis"),
        (unstructured(), "unstructured"),
        (dense(), "mask lost"),
    ],
)
def test_every_kind_of_weight_is_told_apart(rows: Any, diagnosis: str) -> None:
    state = state_of(rows)
    assert state.diagnosis == diagnosis
    assert state.valid == (diagnosis == "valid")
    assert (state.worst is None) == (diagnosis in {"valid", "unaligned"})
    assert bool(meaning_of(state.diagnosis)[1]) == (diagnosis != "valid")


def test_a_dense_layer_that_should_be_dense_lost_no_mask() -> None:
    assert state_of(dense(), expected=False).diagnosis == "dense"


@pytest.mark.parametrize("form", ["input channels", "output channels", "kernel as a row"])
def test_a_conv_has_two_wrong_axes(form: str) -> None:
    values: Any = dense(16, 8 * 9).reshape(16, 8, 3, 3)
    sparse: Any
    if form == "input channels":
        grouped = np.moveaxis(values, 1, -1).reshape(-1, 8)
        sparse = np.where(magnitude_mask(grouped), grouped, 0).reshape(16, 3, 3, 8)
        sparse = np.moveaxis(sparse, -1, 1)
    elif form == "output channels":
        grouped = values.reshape(16, -1).T
        sparse = np.where(magnitude_mask(grouped), grouped, 0).T.reshape(values.shape)
    else:
        grouped = values.reshape(16, -1)
        sparse = np.where(magnitude_mask(grouped), grouped, 0).reshape(values.shape)
    state = state_of(rows_from_conv(sparse.astype(np.float32)), positions=9)
    assert state.diagnosis == ("valid" if form == "input channels" else "wrong axis")


def test_the_worst_group_and_the_first_places_are_told() -> None:
    rows = damaged()
    rows[7, 0:4] = [0.25, 1, 0.5, 0]
    state = state_of(rows)
    assert state.places == ((3, 2), (7, 0))
    assert state.worst is not None
    assert (state.worst.row, state.worst.index, state.worst.value) == (3, 2, 1.0)
    assert state.worst.ratio == 1 / float(np.abs(rows[3]).max())
    assert "row 3, columns 8 to 11" in violation_text(state)


def test_shares_of_flops_add_up_and_are_unknown_together() -> None:
    one, two = state_of(pruned(), layer="a", macs=300), state_of(pruned(), layer="b", macs=100)
    assert flops_shares([one, two]) == {"a": 0.75, "b": 0.25}
    assert flops_shares([one, state_of(pruned())]) == {}
    assert flops_shares([]) == {}


def decision(precision: Precision = "int8", *, sparse: bool = True) -> LayerDecision:
    return LayerDecision(
        layer="fc",
        node="fc",
        kind="linear",
        n=64,
        k=64,
        macs=1,
        precision=precision,
        precision_reason="p",
        sparse=sparse,
        sparse_reason="as the recipe says",
    )


def built(verdict: YesNoUnknown, layer: str = "fc") -> BuiltLayer:
    return BuiltLayer(
        layer=layer,
        node="fc",
        asked="int8",
        precision="int8",
        engine_layers=("fc_myl0_1",),
        sparse_asked=True,
        sparse_weights_valid=True,
        sparse_executed=verdict,
        reason="the tactic says so",
    )


def tensors(*dtypes: str) -> tuple[EngineTensor, ...]:
    return tuple(EngineTensor(name="t", shape=(-1, 64), dtype=dtype) for dtype in dtypes)


def engine(*layers: BuiltLayer, output: str = "Int8") -> BuiltEngine:
    carrier = EngineLayer(
        name="fc_myl0_1",
        kind="gemm",
        inputs=tensors("Int8"),
        constants=tensors("Int8"),
        outputs=tensors(output),
        tactic="sm80_xmma_sparse_gemm",
        onnx_nodes=("fc", "fc_weight_dq"),
    )
    return BuiltEngine(
        target="a100",
        backend="tensorrt-rtx",
        backend_version="1.7",
        source="test",
        gpus="A100",
        compute_capability="8.0",
        engine_file="engines/a100.plan",
        engine_bytes=1,
        engine_digest="sha256:0",
        build_seconds=1.0,
        executed=False,
        totals=EngineTotals(kernels=1, gemms={"int8": 1}, attention_fused=0),
        layers=layers,
        engine_layers=(carrier,),
    )


def chain(state: LayerSparsity, **evidence: Any) -> dict[str, Step]:
    (explained,) = explain_layers([state], ORIN, **evidence)
    return {step.question: step for step in explained.chain}


def test_a_whole_chain_with_its_evidence() -> None:
    steps = chain(state_of(pruned()), decisions=[decision()], engine=engine(built("yes")))
    assert [(name, step.answer) for name, step in steps.items()] == [
        ("valid", "yes"),
        ("eligible", "yes"),
        ("asked", "yes"),
        ("built as", "yes"),
    ]
    assert steps["asked"].evidence == "as the recipe says"
    assert steps["built as"].evidence == "the tactic says so"
    assert all(step.evidence for step in steps.values())


def test_what_nobody_knows_is_unknown() -> None:
    steps = chain(state_of(pruned()))
    assert (steps["asked"].answer, steps["built as"].answer) == ("unknown", "unknown")
    assert chain(state_of(pruned()), engine=engine(built("unknown")))["built as"].answer == "unknown"
    assert chain(state_of(pruned()), decisions=[decision(sparse=False)])["asked"].answer == "no"


def test_an_invalid_weight_is_not_eligible() -> None:
    steps = chain(state_of(dense()))
    assert (steps["valid"].answer, steps["eligible"].answer) == ("no", "no")
    assert "of 1024 groups" in steps["valid"].evidence
    assert chain(state_of(dense(64, 6)))["valid"].evidence == "K = 6 is not a multiple of 4"


@pytest.mark.parametrize(
    ("dtype", "precision", "answer", "evidence"),
    [
        ("int8", None, "yes", "sparse int8 kernels"),
        ("float16", None, "yes", "sparse fp16 kernels"),
        ("float32", None, "yes", "once it is int8"),
        ("float32", "fp32", "no", "no 2:4 sparse fp32 kernels"),
    ],
)
def test_eligible_depends_on_the_type(dtype: str, precision: Precision | None, answer: str, evidence: str) -> None:
    state = msgspec.structs.replace(state_of(pruned()), dtype=dtype)
    decisions = [] if precision is None else [decision(precision)]
    step = chain(state, decisions=decisions)["eligible"]
    assert step.answer == answer
    assert evidence in step.evidence


@pytest.mark.parametrize(("n", "k"), [(64, 32), (24, 64)])
def test_sizes_that_are_padded_leave_it_to_the_builder(n: int, k: int) -> None:
    step = chain(state_of(pruned(n, k)), decisions=[decision()])["eligible"]
    assert step.answer == "unknown"
    assert f"K={k} N={n} will be padded" in step.evidence


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8"])
def test_sizes_of_other_types_are_judged_by_int8s_and_else_unknown(precision: Precision) -> None:
    ada = find_target("rtx40")
    (odd,) = explain_layers([state_of(pruned(10, 36))], ada, decisions=[decision(precision)])
    assert odd.chain[1].answer == "unknown"
    assert f"the sizes that a sparse {precision} kernel takes unpadded aren't known for rtx40" in odd.chain[1].evidence
    assert "K=36 N=10" in odd.chain[1].evidence
    assert odd.chain[1].mend
    (even,) = explain_layers([state_of(pruned())], ada, decisions=[decision(precision)])
    assert even.chain[1].answer == "yes"
    assert "N = 64 and K = 64 need no padding in INT8, whose alignment is the strictest" in even.chain[1].evidence


def test_a_convs_sizes_are_its_channels() -> None:
    step = chain(state_of(pruned(16 * 9, 64), positions=9))["eligible"]
    assert step.answer == "yes"
    assert "N = 16 and K = 64" in step.evidence


def test_a_carrier_tells_types_kernel_and_what_it_fuses() -> None:
    (explained,) = explain_layers([state_of(pruned())], ORIN, decisions=[decision()], engine=engine(built("yes")))
    (carrier,) = explained.carriers
    assert (carrier.inputs, carrier.outputs) == (("Int8",), ("Int8",))
    assert (carrier.fused, carrier.tactic) == (("fc_weight_dq",), "sm80_xmma_sparse_gemm")
    assert explained.stop is None


@pytest.mark.parametrize(
    ("target", "output", "answer"),
    [("a100", "Int8", "yes"), ("a100", "Half", "unknown"), ("rtx40", "Half", "yes")],
)
def test_known_sparse_kernels_write_int8_only(target: str, output: str, answer: str) -> None:
    (explained,) = explain_layers(
        [state_of(pruned())],
        find_target(target),
        decisions=[decision()],
        engine=engine(built("unknown"), output=output),
    )
    step = explained.chain[1]
    assert (step.question, step.answer) == ("eligible", answer)
    assert ("writes Half" in step.evidence) == (answer == "unknown")
    assert bool(step.mend) == (answer == "unknown")


def test_a_sparse_kernel_that_was_picked_settles_it() -> None:
    steps = chain(state_of(pruned()), decisions=[decision()], engine=engine(built("yes"), output="Half"))
    assert steps["eligible"].answer == "yes"
    assert "picked" in steps["eligible"].evidence


def test_an_fp16_layer_may_write_what_it_likes() -> None:
    step = chain(state_of(pruned()), decisions=[decision("fp16")], engine=engine(built("no"), output="Half"))
    assert step["eligible"].answer == "yes"


def test_a_receipt_keeps_what_decides() -> None:
    """A convolution of 32 channels and 3 x 3 positions into 16 is a product of [16, 288]."""
    states = [state_of(pruned(16 * 9, 32), layer="conv", positions=9, macs=1000), state_of(pruned(), macs=0)]
    made = engine(built("unknown", "conv"), built("unknown"), built("unknown", "elsewhere"), output="Float")
    conv, linear, lost = recorded(made, find_target("a100"), states, [decision()]).layers
    assert (conv.shape, conv.flops) == ((16, 288), 2000)
    assert (linear.shape, linear.flops, linear.eligible) == ((64, 64), None, "unknown")
    assert "writes Float" in linear.eligible_reason
    assert [carrier.outputs for carrier in linear.carriers] == [("Float",)]
    assert (lost.shape, lost.eligible) == (None, None)


def test_totals_and_breaks_are_by_flops() -> None:
    states = [
        state_of(pruned(), layer="a", macs=500),
        state_of(dense(), layer="b", macs=300, expected=False),
        state_of(dense(), layer="c", macs=200, expected=False),
    ]
    asked = [msgspec.structs.replace(decision(), layer="a")]
    explained = explain_layers(states, ORIN, decisions=asked, engine=engine(built("unknown", "a")))
    assert [(found.question, found.answer, found.layers, found.flops_share) for found in tallies(explained)] == [
        ("valid", "yes", 1, 0.5),
        ("valid", "no", 2, 0.5),
        ("valid", "unknown", 0, 0),
        ("eligible", "yes", 1, 0.5),
        ("eligible", "no", 2, 0.5),
        ("eligible", "unknown", 0, 0),
        ("asked", "yes", 1, 0.5),
        ("asked", "no", 0, 0),
        ("asked", "unknown", 2, 0.5),
        ("built as", "yes", 0, 0),
        ("built as", "no", 0, 0),
        ("built as", "unknown", 3, 1.0),
    ]
    first, second = breaks(explained)
    assert {first.layers, second.layers} == {("a",), ("b", "c")}
    assert [found.flops_share for found in (first, second)] == [0.5, 0.5]
    by_question = {found.question: found for found in (first, second)}
    assert by_question["valid"].mend == ""
    assert "dense by intent: " in by_question["valid"].evidence
    assert "sptensor" in by_question["built as"].mend


def test_an_unknown_link_hides_nothing_of_those_behind_it() -> None:
    """The totals are those of the table's columns: what was asked is asked, whatever is known of its kernels."""
    states = [state_of(pruned(), layer=name, macs=100) for name in ("a", "b")]
    asked = [msgspec.structs.replace(decision(), layer=name) for name in ("a", "b")]
    made = engine(built("unknown", "a"), built("unknown", "b"), output="Half")
    explained = explain_layers(states, find_target("a100"), decisions=asked, engine=made)
    columns = {
        question: [step.answer for found in explained for step in found.chain if step.question == question]
        for question in ("valid", "eligible", "asked", "built as")
    }
    assert columns["eligible"] == ["unknown"] * 2
    for found in tallies(explained):
        assert found.layers == columns[found.question].count(found.answer)


@pytest.mark.parametrize("rows", [dense(), dense(64, 6)], ids=["dense", "unaligned"])
def test_a_layer_that_is_dense_by_intent_needs_no_mending(rows: Any) -> None:
    state = state_of(rows, expected=False)
    never = msgspec.structs.replace(built("no"), sparse_asked=False, sparse_weights_valid=False)
    for decisions, made in (([decision(sparse=False)], engine(never)), ([], None)):
        (explained,) = explain_layers([state], ORIN, decisions=decisions, engine=made)
        steps = {step.question: step for step in explained.chain}
        assert [steps[link].mend for link in ("valid", "eligible", "asked")] == [""] * 3
        assert explained.hint == ""
        assert f"dense by intent: {state.reason}" in steps["valid"].evidence
    (told,) = explain_layers([state], ORIN, decisions=[decision(sparse=False)], engine=engine(never))
    assert told.chain[3].mend == ""


def test_a_layer_that_should_be_sparse_and_isnt_still_hears_what_to_do() -> None:
    steps = chain(state_of(dense()), decisions=[decision(sparse=False)])
    assert "gpusq-compress" in steps["valid"].mend
    assert steps["asked"].mend.startswith("make the weight 2:4, then gpusq-build --sparse")
    damage = chain(state_of(damaged(), expected=False))
    assert "apply the mask again" in damage["valid"].mend


@pytest.mark.parametrize(
    ("asked", "valid", "advised"), [(True, True, True), (False, True, False), (False, False, False)]
)
def test_another_kernel_is_advised_only_where_a_sparse_one_was_asked(asked: bool, valid: bool, advised: bool) -> None:
    layer = msgspec.structs.replace(built("no"), sparse_asked=asked, sparse_weights_valid=valid)
    step = chain(state_of(pruned()), decisions=[decision(sparse=asked)], engine=engine(layer))["built as"]
    assert ("timed a dense one faster" in step.mend) == advised


def test_every_break_says_what_would_mend_it() -> None:
    states = [dense(), pruned(), pruned(64, 32), pruned(), pruned()]
    plans: list[list[LayerDecision]] = [[], [], [decision()], [decision(sparse=False)], [decision("fp32")]]
    for rows, decisions in zip(states, plans, strict=True):
        (explained,) = explain_layers([state_of(rows)], ORIN, decisions=decisions)
        assert explained.stop is not None
        assert explained.stop.mend
