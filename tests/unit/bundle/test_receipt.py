from __future__ import annotations

from pathlib import Path

import pytest

from gpusq_deploy.artifacts.plan import LayerDecision, Precision, QuantPlan
from gpusq_deploy.artifacts.receipt import BuiltEngine, BuiltLayer, EngineLayer, EngineTensor
from gpusq_deploy.artifacts.sparsity import LayerSparsity, SparsityReport
from gpusq_deploy.bundle.receipt import built_layers, picked_sparse, with_profile
from gpusq_deploy.engines.kernel_names import KernelTrace
from gpusq_deploy.engines.layer_classes import totals
from gpusq_deploy.engines.layer_list_parser import layers_from_log

DATA = Path(__file__).resolve().parents[1] / "engines" / "data"
SPARSE = "sm80_xmma_sparse_gemm_i8i8_i8i32_f32_tn_n_sptensor16x8x64"
DENSE = "sm80_xmma_gemm_i8f16_i8i32_f32_tn_n"


def decision(node: str = "mm", precision: Precision = "int8", *, sparse: bool = True) -> LayerDecision:
    return LayerDecision(
        layer=f"layer.{node}",
        node=node,
        kind="linear",
        n=64,
        k=64,
        macs=4096,
        precision=precision,
        precision_reason="the recipe",
        sparse=sparse,
        sparse_reason="the checkpoint's record names it" if sparse else "not pruned",
    )


def plan(*layers: LayerDecision, sparse: bool = True) -> QuantPlan:
    return QuantPlan(recipe="r", float_type="fp16", sparse_asked=sparse, layers=layers)


def gemm(
    name: str = "mm_myl0_1",
    dtype: str = "Int8",
    *,
    kind: str = "gemm",
    nodes: tuple[str, ...] = ("mm",),
    tactic: str = "",
) -> EngineLayer:
    return EngineLayer(
        name=name,
        kind=kind,
        inputs=(EngineTensor(name="x", shape=(-1, 64), dtype=dtype),),
        constants=(EngineTensor(name="w", shape=(64, 64), dtype=dtype),),
        outputs=(EngineTensor(name="y", shape=(-1, 64), dtype="Half"),),
        tactic=tactic,
        onnx_nodes=nodes,
    )


def sparsity(*, violations: int) -> LayerSparsity:
    return LayerSparsity(
        layer="layer.mm",
        tensor="w",
        n=64,
        k=64,
        groups=1024,
        violations=violations,
        zero_fraction=0.5,
        expected=True,
        reason="r",
    )


def only(layers: tuple[BuiltLayer, ...]) -> BuiltLayer:
    assert len(layers) == 1
    return layers[0]


def test_a_stored_engine_is_joined_by_its_onnx_nodes() -> None:
    engine = layers_from_log([(DATA / "rtx-1.7-int8-vit.log").read_text(encoding="utf-8")])
    asked = plan(decision("node_conv2d", "fp16", sparse=False), decision("node_MatMul_12"))
    conv, linear = built_layers(asked, engine)
    assert (conv.precision, conv.engine_layers) == ("fp16", ("node_conv2d_myl0_2",))
    assert (linear.precision, linear.engine_layers) == ("int8", ("node_MatMul_12_myl0_4",))
    assert linear.sparse_executed == "unknown"
    assert "chosen on the GPU when the engine is loaded" in linear.reason


def test_the_kernel_that_adds_the_bias_doesnt_answer_for_the_node() -> None:
    after = gemm("__myl_MulAdd_2", "Half", kind="kgen", nodes=("mm", "bias"))
    built = only(built_layers(plan(decision()), [gemm(), after]))
    assert built.engine_layers == ("mm_myl0_1",)
    assert built.precision == "int8"


@pytest.mark.parametrize(
    ("tactic", "verdict", "words"),
    [(SPARSE, "yes", "the kernel is sm80"), (DENSE, "no", "picked the dense kernel"), ("", "unknown", "nsys")],
)
def test_whether_it_ran_sparse(tactic: str, verdict: str, words: str) -> None:
    built = only(built_layers(plan(decision()), [gemm(tactic=tactic)]))
    assert built.sparse_asked
    assert built.sparse_weights_valid
    assert built.sparse_executed == verdict
    assert words in built.reason


def test_sparse_that_wasnt_asked_for_is_a_no() -> None:
    built = only(built_layers(plan(decision(sparse=False)), [gemm()]))
    assert (built.sparse_asked, built.sparse_executed) == (False, "no")
    assert built.reason.endswith("sparse not asked: not pruned")


@pytest.mark.parametrize(("tactic", "verdict"), [(SPARSE, "yes"), (DENSE, "no"), ("", "unknown")])
def test_a_sparse_kernel_is_told_though_the_plan_doesnt_count_on_it(tactic: str, verdict: str) -> None:
    """The builder's flag is the engine's: it may take a sparse kernel wherever weights are 2:4."""
    report = SparsityReport(source="s", layers=(sparsity(violations=0),))
    built = only(built_layers(plan(decision(sparse=False)), [gemm(tactic=tactic)], report))
    assert (built.sparse_asked, built.sparse_weights_valid, built.sparse_executed) == (False, True, verdict)
    assert f"sparse not asked: not pruned; sparse {verdict}: " in built.reason
    dense = only(built_layers(plan(decision(sparse=False), sparse=False), [gemm()], report))
    assert dense.sparse_executed == "no"


def test_weights_that_arent_sparse_cant_run_sparse() -> None:
    built = only(built_layers(plan(decision()), [gemm()], SparsityReport(source="s", layers=(sparsity(violations=3),))))
    assert (built.sparse_weights_valid, built.sparse_executed) == (False, "no")
    assert "gpusq-compress" in built.reason


def test_a_dequantised_product_is_told_with_its_remedy() -> None:
    trap = gemm("__myl_CastMulCastFc_1", kind="runtime_fusion")
    built = only(built_layers(plan(decision()), [trap]))
    assert (built.asked, built.precision) == ("int8", "fp16")
    assert "and multiplies in fp16; place Q/DQ directly" in built.reason


def test_a_float_product_is_told() -> None:
    built = only(built_layers(plan(decision()), [gemm(dtype="Half")]))
    assert "asked for int8, built fp16: mm_myl0_1 reads Half" in built.reason
    wide = only(built_layers(plan(decision(precision="fp16", sparse=False)), [gemm(dtype="Float")]))
    assert "look at the casts around mm" in wide.reason


def test_a_split_layer_counts_by_its_widest_piece() -> None:
    pieces = [gemm("q"), gemm("k"), gemm("v", "Half")]
    built = only(built_layers(plan(decision()), pieces))
    assert built.precision == "fp16"
    assert built.engine_layers == ("q", "k", "v")
    assert "split into 3 GEMMs (q, k, v), of which the widest type counts" in built.reason
    same = only(built_layers(plan(decision()), pieces[:2]))
    assert same.reason.startswith("split into 2 GEMMs (q, k); ")


def test_a_split_layer_ran_sparse_only_where_all_pieces_did() -> None:
    built = only(built_layers(plan(decision()), [gemm("q", tactic=SPARSE), gemm("k", tactic=DENSE)]))
    assert built.sparse_executed == "no"


def test_merged_products_are_told() -> None:
    both = gemm("m2+m1_myl0_1", nodes=("m2", "m1"))
    built = built_layers(plan(decision("m1"), decision("m2")), [both])
    assert [layer.precision for layer in built] == ["int8", "int8"]
    assert built[0].reason.startswith("built in m2+m1_myl0_1, merged with other GEMMs of the same input; ")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "no layer of the engine names mm: it was removed"),
        ([gemm("__myl_Add_1", kind="kgen")], "no GEMM of the engine names mm, only __myl_Add_1"),
        ([gemm("_gemm_mha_v2_1", kind="kgen")], "folded into the fused attention _gemm_mha_v2_1"),
    ],
)
def test_a_layer_that_isnt_found_says_so(layers: list[EngineLayer], words: str) -> None:
    built = only(built_layers(plan(decision()), layers))
    assert (built.precision, built.engine_layers, built.sparse_executed) == (None, (), "unknown")
    assert words in built.reason


def test_a_type_that_we_dont_ask_for_is_named() -> None:
    built = only(built_layers(plan(decision()), [gemm(dtype="FP4")]))
    assert built.precision is None
    assert "built in fp4" in built.reason


def built_engine(asked: QuantPlan, layers: list[EngineLayer]) -> BuiltEngine:
    return BuiltEngine(
        target="a100",
        backend="tensorrt-rtx",
        backend_version="1.7",
        source="verbose build log of tensorrt-rtx 1.7",
        gpus="A100",
        compute_capability="8.0",
        engine_file="engines/a100.plan",
        engine_bytes=2_500_000,
        engine_digest="sha256:0",
        build_seconds=2.25,
        executed=False,
        totals=totals(layers),
        layers=built_layers(asked, layers),
        engine_layers=tuple(layers),
    )


PICKED = "(Sparsity) TRT inference plan picked sparse implementation for layers: mm_myl0_1, other"


def test_the_builders_log_is_taken_where_the_tactic_doesnt_tell() -> None:
    assert picked_sparse(["(Sparsity) Layers eligible for sparse math: mm_myl0_1", PICKED]) == {"mm_myl0_1", "other"}
    hidden = only(built_layers(plan(decision()), [gemm(tactic="0x00000000000003e8")], notes=[PICKED]))
    assert (hidden.sparse_executed, "log names it" in hidden.reason) == ("yes", True)
    # A kernel's name is stronger.
    named = only(built_layers(plan(decision()), [gemm(tactic=DENSE)], notes=[PICKED]))
    assert named.sparse_executed == "no"
    # Of a split product, every piece must be named.
    split = only(built_layers(plan(decision()), [gemm(), gemm("mm_myl0_2")], notes=[PICKED]))
    assert split.sparse_executed == "unknown"


def profiled(
    asked: QuantPlan, layers: list[EngineLayer], launches: dict[str, int], inferences: int = 100
) -> BuiltEngine:
    trace = KernelTrace(launches=launches, inferences=inferences)
    return with_profile(built_engine(asked, layers), trace, profiler="a profiler")


@pytest.mark.parametrize(
    ("launches", "verdict", "words"),
    [
        ({DENSE: 200}, "no", "0 launches of sparse kernels among 200 in 100 inferences, for 2 engine layers"),
        ({SPARSE: 100, DENSE: 100}, "unknown", "100 launches of sparse kernels among 200"),
        ({SPARSE: 200, "softmax": 100}, "yes", "200 launches of sparse kernels among 300"),
        # A name that changes on the way is no loss, nor is a trace that counts one inference too many.
        ({SPARSE: 150, f"{SPARSE}_2": 50}, "yes", f"the launches of {SPARSE}, {SPARSE}_2 don't divide by 100"),
        ({SPARSE: 99, DENSE: 99}, "unknown", f"the launches of {SPARSE}, {DENSE} don't divide by 100 inferences"),
        ({SPARSE: 1, DENSE: 199}, "unknown", "1 launches of sparse kernels"),
        ({"__myl_FcAdd_0xabc": 100, DENSE: 100}, "unknown", "names of generated kernels, such as __myl_FcAdd_0xabc"),
        ({"__myl_MulAdd_0xabc": 100, DENSE: 200}, "no", "0 launches"),
    ],
)
def test_a_profile_settles_what_is_the_same_for_all(launches: dict[str, int], verdict: str, words: str) -> None:
    layers = [gemm(), gemm("n_myl0_2", nodes=("n",)), gemm("d_myl0_3", nodes=("d",))]
    asked = plan(decision(), decision("n"), decision("d", sparse=False))
    engine = profiled(asked, layers, launches)
    assert [layer.sparse_executed for layer in engine.layers] == [verdict, verdict, "no"]
    assert engine.executed
    assert engine.source.endswith("; kernel names seen by a profiler")
    assert words in engine.layers[0].reason


def test_a_profile_counts_engine_layers_not_the_models() -> None:
    split = [gemm("q"), gemm("k"), gemm("v"), gemm("n_myl0_2", nodes=("n",))]
    two = profiled(plan(decision(), decision("n")), split, {SPARSE: 2, DENSE: 2}, 1)
    assert [layer.sparse_executed for layer in two.layers] == ["unknown", "unknown"]
    four = profiled(plan(decision(), decision("n")), split, {SPARSE: 4}, 1)
    assert [layer.sparse_executed for layer in four.layers] == ["yes", "yes"]
    merged = profiled(plan(decision(), decision("n")), [gemm("mm+n", nodes=("mm", "n"))], {SPARSE: 1}, 1)
    assert [layer.sparse_executed for layer in merged.layers] == ["yes", "yes"]


@pytest.mark.parametrize("launches", [{SPARSE: 9}, {DENSE: 9}])
def test_a_profile_settles_nothing_about_layers_that_no_engine_layer_answers_for(launches: dict[str, int]) -> None:
    engine = profiled(plan(decision(), decision("n")), [gemm()], launches, 1)
    assert [layer.sparse_executed for layer in engine.layers] == ["unknown", "unknown"]
    assert "no engine layer is known for layer.n" in engine.layers[0].reason


def test_a_profile_says_no_of_no_generated_product_and_leaves_what_was_known() -> None:
    generated = gemm("__myl_CastMulFc_myl0_1", kind="runtime_fusion")
    hidden = profiled(plan(decision()), [generated], {"anything": 1}, 1)
    assert only(hidden.layers).sparse_executed == "unknown"
    known = profiled(plan(decision()), [gemm(tactic=SPARSE), generated], {"__myl_CastMulFc_0xabc": 1}, 1)
    assert only(known.layers).sparse_executed == "unknown"
    kept = profiled(plan(decision(), decision("n")), [gemm(tactic=SPARSE), gemm("n", nodes=("n",))], {SPARSE: 1}, 1)
    assert [layer.sparse_executed for layer in kept.layers] == ["yes", "unknown"]
