"""INT8 beside the graph without it: built with TensorRT-RTX for real, and said where INT8 doesn't pay."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import planning
import pytest
import tiny_models

from gpusq_deploy.artifacts.bundle_layout import MODEL
from gpusq_deploy.artifacts.manifest import BatchRange, EngineOptions
from gpusq_deploy.artifacts.receipt import CostEstimate, GraphCost, LayerCost, LayerShare, Payoff
from gpusq_deploy.artifacts.recipe import FP8_RECIPE, INT4_RECIPE, load_recipe
from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.bundle.report.cost_text import cost_text, cost_verdict, layer_costs_line
from gpusq_deploy.compile.cost_estimate import estimating, with_estimates
from gpusq_deploy.compile.engine_stage import EngineRequest, build_engines
from gpusq_deploy.compile.target_checks import TargetDemands, require_reachable, require_types
from gpusq_deploy.engines.cost import graph_cost, layers_at
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.cast_to_float_type import CastToFloatType
from gpusq_deploy.progress import Reporter

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
)

LINEAR = "g (float[B,{k}] x) => (float[B,{n}] y) {{ [fc] h = MatMul(x, w) [bias] y = Add(h, b) }}"


def linear(n: int, k: int) -> planning.Quantized:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "w": random.normal(size=(k, n)).astype(np.float32),
        "b": random.normal(size=n).astype(np.float32),
    }
    model = tiny_models.graph(LINEAR.format(n=n, k=k), **arrays)
    return planning.quantized(model, planning.table({"x": 4.0}), float_type="fp16")


def request(folder: Path, made: planning.Quantized, said: list[str], *targets: str, batch: int = 0) -> EngineRequest:
    save_model(run_passes(made.after, [CastToFloatType("fp16")]), folder / MODEL)
    sizes = (batch, batch, batch) if batch else (1, 64, 128)
    return EngineRequest(
        folder=folder,
        name="b.gpusq",
        plan=made.plan,
        sparsity=SparsityReport(source="test", layers=()),
        batch=BatchRange(minimum=sizes[0], optimum=sizes[1], maximum=sizes[2]),
        targets=[find_target(name) for name in targets],
        reporter=Reporter(say=said.append, progress=lambda _label, _done, _total: None),
    )


def estimate(wished: EngineRequest, made: planning.Quantized) -> CostEstimate:
    with estimating(wished, made.before) as estimated:
        found = estimated(build_engines(wished)[0])
    cost = found.cost
    assert cost is not None
    # Where the batch is static, the engine's own layers have their sizes.
    if cost.built is not None:
        moved = sum(work.weight_bytes + work.moved_bytes for work in found.works)
        assert moved == (0 if wished.batch.static else cost.built.bytes_moved)
    return cost


@needs_rtx
@pytest.mark.parametrize("batch", [0, 64])
def test_a_small_layer_loses_by_int8_and_that_is_said(tmp_path: Path, batch: int) -> None:
    said: list[str] = []
    made = linear(64, 16)
    found = estimate(request(tmp_path, made, said, "orin", "rtx40", batch=batch), made)
    assert found.built is not None
    assert found.unquantised is not None
    assert found.target == "rtx40"
    assert (found.built.flops, found.unquantised.flops) == ({"int8": 131072}, {"fp16": 131072})
    assert found.built.batch == found.unquantised.batch == 64
    assert found.worse
    counts = f"faster in 0 of 1 layers, {found.built.kernels} kernels instead of {found.unquantised.kernels}"
    assert found.times is not None
    assert found.times.ratio * found.times.low > 1
    assert cost_verdict(found, "mine").startswith(f"INT8 may not pay: {found.times.ratio:.2f} of the time without it")
    assert counts not in cost_verdict(found, "mine")
    # A receipt that is older than predicted times.
    older = msgspec.structs.replace(found, times=None)
    assert cost_verdict(older, "mine").startswith(f"INT8 may not pay: {counts}")
    # The engine is of a dynamic batch, and its kernels may be others.
    assert cost_text(found).startswith(f"built for batch 64 alone, {found.built.kernels} kernels")
    assert "by kernels and bytes, of 1 layers: no 1: fc" in layer_costs_line(found)


@needs_rtx
def test_a_large_weight_gains_bytes_and_costs_a_launch(tmp_path: Path) -> None:
    said: list[str] = []
    made = linear(1024, 1024)
    found = estimate(request(tmp_path, made, said, "a100"), made)
    assert found.built is not None
    assert found.unquantised is not None
    # The weight saves a megabyte, and wider activations between the kernels cost a little of it.
    assert found.unquantised.bytes_moved - found.built.bytes_moved > 1024 * 1024 * 0.8
    assert not found.worse
    assert "may not pay" not in cost_verdict(msgspec.structs.replace(found, times=None), "mine")
    # One more kernel takes longer than a megabyte on an A100.
    assert found.times is not None
    assert found.built.kernels > found.unquantised.kernels
    assert found.times.ratio > 1


@needs_rtx
def test_options_that_a_target_cant_do_are_refused_together_before_any_work() -> None:
    options = EngineOptions(version_compatible=True, hardware="ampere-plus")
    with pytest.raises(GpusqError, match="a100: version-compatible") as caught:
        require_reachable(TargetDemands(options=options), [find_target("a100"), find_target("orin")])
    assert "a100: hardware=ampere-plus" in caught.value.what
    # On the device some release of TensorRT can do both.
    assert "orin" not in caught.value.what
    require_reachable(TargetDemands(options=options), [find_target("orin")])


@needs_rtx
def test_all_that_is_out_of_reach_is_said_at_once() -> None:
    poor = msgspec.structs.replace(find_target("a100"), name="poor", dtypes=("fp16",), sparse_dtypes=("bf16",))
    asked = TargetDemands(
        options=EngineOptions(version_compatible=True), types=frozenset({"fp16", "int8"}), sparse=True, opset=25
    )
    with pytest.raises(GpusqError) as caught:
        require_reachable(asked, [poor, find_target("orin")])
    assert caught.value.what.split("; ")[:2] == ["poor: it has no int8 tensor cores", "it has fp16"]
    parts = (
        "poor: sparse: it has no 2:4 sparse kernels for fp16 or int8",
        "poor: version-compatible",
        f"poor: opset 25: too new for tensorrt-rtx {metadata.version('tensorrt-rtx')} (to 23)",
        "orin: opset 25: too new for tensorrt 10.3 (to 20) or tensorrt 11.4 (to 24)",
    )
    assert [part for part in parts if part not in caught.value.what] == []
    # JetPack 7 takes what JetPack 6 doesn't.
    require_reachable(TargetDemands(types=frozenset({"fp16"}), opset=23), [find_target("orin")])


def test_what_wasnt_compared_says_why(tmp_path: Path) -> None:
    made = linear(64, 16)
    found = estimate(request(tmp_path, made, [], "orin"), made)
    assert (found.built, found.unquantised, found.worse) == (None, None, False)
    # True for ever: engines that are built later, ahead of time or not, change nothing about it.
    assert cost_text(found) == (
        "not compared with the graph without INT8: when the bundle was made, no engine was built ahead of time"
    )


@needs_rtx
@pytest.mark.parametrize("error", [GpusqError("layer fc has a type of unknown size: NVFP4"), OSError("disk full")])
def test_a_prediction_that_fails_is_a_note_and_no_end_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("gpusq_deploy.compile.cost_estimate.graph_cost", fail)
    said: list[str] = []
    made = linear(64, 16)
    found = estimate(request(tmp_path, made, said, "a100", batch=8), made)
    assert (found.target, found.built, found.unquantised, found.layers) == (None, None, None, ())
    assert cost_text(found) == f"not compared with the graph without INT8: {error}"
    assert f"warning: the comparison failed: {error}" in said


def test_a_float_graph_is_its_own_comparison(tmp_path: Path) -> None:
    made = linear(64, 16)
    plain = planning.plan_for(
        made.before,
        planning.table({}),
        recipe=planning.EVERYTHING.__class__(schema="gpusq.recipe/1", name="none", description="nothing", rules=()),
    )
    wished = request(tmp_path, planning.Quantized(before=made.before, after=made.before, plan=plain), [], "orin")
    with estimating(wished, made.before) as estimated:
        assert estimated(()) == (None, ())


@needs_rtx
def test_kernels_of_a_float_graph_are_sized_where_the_batch_hides_sizes(tmp_path: Path) -> None:
    """Against the sum that `graph_cost` makes of the layer list of the optimal batch."""
    made = linear(64, 16)
    plain = planning.plan_for(
        made.before,
        planning.table({}),
        recipe=planning.EVERYTHING.__class__(schema="gpusq.recipe/1", name="none", description="nothing", rules=()),
    )
    wished = request(tmp_path, planning.Quantized(before=made.before, after=made.before, plan=plain), [], "a100")
    with estimating(wished, made.before) as estimated:
        found = estimated(build_engines(wished)[0])
    assert found.cost is None
    cost = graph_cost(layers_at(tmp_path / MODEL, find_target("a100"), 64), batch=64)
    assert len(found.works) == cost.kernels
    assert sum(work.weight_bytes + work.moved_bytes for work in found.works) == cost.bytes_moved


@pytest.mark.parametrize(
    ("kernels", "moved", "worse"), [(11, 101, True), (11, 100, False), (10, 101, False), (9, 99, False)]
)
def test_worse_means_more_of_both(kernels: int, moved: int, worse: bool) -> None:
    without = GraphCost(batch=1, kernels=10, bytes_moved=100, flops={})
    built = GraphCost(batch=1, kernels=kernels, bytes_moved=moved, flops={})
    assert CostEstimate(target="a100", built=built, unquantised=without, note="").worse == worse


COSTS = CostEstimate(
    target="a100",
    built=GraphCost(batch=8, kernels=11, bytes_moved=101, flops={}),
    unquantised=GraphCost(batch=8, kernels=10, bytes_moved=100, flops={}),
    note="nothing was timed",
)


def test_the_verdict_says_what_to_try_and_advises_no_recipe_that_was_taken_or_isnt_for_it() -> None:
    said = cost_verdict(COSTS, "static_wi8_ai8")
    assert said.startswith("INT8 may not pay: 11 kernels instead of 10")
    assert "--recipe fused_wi8_ai8" in said
    assert "gpusq-bench" in said
    assert len(said) <= 240
    assert load_recipe(Path("fused_wi8_ai8")).name == "fused_wi8_ai8"
    for cost, recipe in ((COSTS, "fused_wi8_ai8"), (msgspec.structs.replace(COSTS, what="FP8"), "static_wf8_af8")):
        assert "--recipe" not in cost_verdict(cost, recipe)


@pytest.mark.parametrize(
    ("kernels", "moved", "pays", "verdict"),
    [
        (9, 99, ("yes", "yes", "no"), "INT8 is predicted to pay: faster in 2 of 3 layers"),
        (9, 99, (), "INT8 is predicted to pay: 9 kernels instead of 10"),
        (9, 99, ("no", "no", "yes"), "unclear whether INT8 pays: faster in 1 of 3 layers"),
        (11, 99, ("yes",), "unclear whether INT8 pays: faster in 1 of 1 layers"),
        (11, 101, ("yes", "yes"), "unclear whether INT8 pays: faster in 2 of 2 layers"),
        (11, 101, ("no", "yes"), "INT8 may not pay: faster in 1 of 2 layers"),
    ],
)
def test_there_is_one_verdict_of_layers_and_graph(
    kernels: int, moved: int, pays: tuple[Payoff, ...], verdict: str
) -> None:
    share = LayerShare(kernels=1, bytes_moved=1, flops={}, microseconds=1.0)
    cost = msgspec.structs.replace(
        COSTS,
        built=GraphCost(batch=8, kernels=kernels, bytes_moved=moved, flops={}),
        layers=tuple(
            LayerCost(layer=str(index), built=share, unquantised=share, pays=each) for index, each in enumerate(pays)
        ),
    )
    assert cost_verdict(cost, "static_wi8_ai8").startswith(verdict)


@pytest.mark.parametrize(
    ("microseconds", "by"),
    [(1.0, "the least time that bytes and FLOPs take, launches not counted"), (None, "kernels and bytes")],
)
def test_the_verdict_by_layer_says_what_it_rests_on(microseconds: float | None, by: str) -> None:
    share = LayerShare(kernels=1, bytes_moved=1, flops={}, microseconds=microseconds)
    layers = tuple(LayerCost(layer=name, built=share, unquantised=share, pays="yes") for name in ("a", "b"))
    said = layer_costs_line(msgspec.structs.replace(COSTS, layers=layers))
    assert said == f"INT8 predicted to pay layer by layer, by {by}, of 2 layers: yes 2"


def test_the_plan_says_for_which_target_a_layer_was_predicted() -> None:
    made = linear(64, 16)
    share = LayerShare(kernels=1, bytes_moved=1, flops={}, microseconds=None)
    cost = msgspec.structs.replace(
        COSTS, layers=(LayerCost(layer="fc", built=share, unquantised=share, pays="no difference"),)
    )
    (layer,) = with_estimates(made.plan, cost).layers
    assert layer.estimate is not None
    assert layer.estimate.startswith("a100: no difference is predicted")


def test_types_that_a_target_lacks_are_refused_with_those_that_have_them() -> None:
    recipe = load_recipe(Path(FP8_RECIPE))
    require_types(recipe, [find_target("rtx40"), find_target("h100")])
    with pytest.raises(GpusqError, match="a100 has no fp8 tensor cores; it has int8, fp16, bf16, fp32") as caught:
        require_types(recipe, [find_target("a100"), find_target("orin")])
    assert "orin" in caught.value.what
    assert caught.value.hint is not None
    assert "rtx50" in caught.value.hint
    # INT4 weights are unpacked first: any tensor core will do.
    require_types(load_recipe(Path(INT4_RECIPE)), [find_target("a100"), find_target("orin")])
