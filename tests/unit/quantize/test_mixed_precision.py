"""Layers left float: what each costs alone, against graphs quantised one layer at a time, and who is chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import planning
import pytest
import tiny_models

from gpusq_deploy.artifacts.recipe import MixedRule, recipe_from_toml
from gpusq_deploy.calibration.data import ArrayFile
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.layers import GraphLayer, weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.pipelines import CANONICAL
from gpusq_deploy.graph.passes.quantize import Quantize, RoundedWeight
from gpusq_deploy.quantize.mixed_precision import contenders, layers_to_keep_float
from gpusq_deploy.quantize.noise_measured import noise_of_layers

Array = npt.NDArray[Any]


def shifted_codes(model: ir.Model, layer: GraphLayer) -> RoundedWeight:
    """Codes and a bias change that no rounding to nearest would give."""
    random = np.random.default_rng(len(layer.layer))
    codes = random.integers(-127, 128, (layer.n, layer.k)).astype(np.int8)
    scale = np.full(layer.n, 0.002, np.float32)
    return RoundedWeight(codes=codes, scale=scale, bias=random.standard_normal(layer.n))


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
def test_each_layers_noise_is_that_of_a_graph_with_it_alone_in_int8(*, static: bool) -> None:
    model = run_passes(tiny_models.exported_vit(static=static).model, CANONICAL)
    plan = planning.plan_for(model, planning.measured(model))
    layers = weighted_layers(model)
    rounded = {layer.node: shifted_codes(model, layer) for layer in layers if layer.layer.endswith("fc1")}
    # Six samples in groups of four: a static batch is filled up with repetitions, which must not count.
    images = tiny_models.images(6, seed=5)
    heard: list[tuple[int, int]] = []
    linear = [layer.node for layer in layers if layer.kind == "linear" and not layer.layer.endswith("qkv")]
    noise = noise_of_layers(
        model,
        plan,
        rounded,
        ArrayFile(name="noise", values=images),
        lambda done, total: heard.append((done, total)),
        nodes=linear,
    )
    assert list(noise) == linear
    assert heard[-1][0] == heard[-1][1] == len(heard)

    def answered(graph: ir.Model) -> Array:
        first, last = (tiny_models.run_model(graph, {"input": batch})["output"] for batch in (images[:4], images[2:]))
        return np.concatenate([first, last[2:]])

    wanted = answered(model)
    for node in linear:
        only = msgspec.structs.replace(plan, layers=tuple(entry for entry in plan.layers if entry.node == node))
        alone = Quantize(only, rounded)
        got = answered(run_passes(model, [alone]))
        expected = float(np.square(got - wanted).sum() / np.square(wanted).sum())
        assert noise[node] == pytest.approx(expected, rel=2e-2)


@dataclass(kw_only=True)
class Heard:
    """Two batches, and in which order they are read and run."""

    name: str = "heard"
    synthetic: bool = False
    events: list[str] = field(default_factory=list[str])

    def __len__(self) -> int:
        return 8

    def sample(self, index: int) -> npt.NDArray[np.float32]:
        self.events.append("read")
        image: npt.NDArray[np.float32] = tiny_models.images(1, seed=index)[0]
        return image


@pytest.mark.slow
def test_a_batch_is_run_before_the_next_is_read() -> None:
    """So that memory doesn't grow with the samples."""
    plain = run_passes(tiny_models.exported_vit().model, CANONICAL)
    plan = planning.plan_for(plain, planning.measured(plain))
    source = Heard()
    node = next(layer.node for layer in weighted_layers(plain) if layer.layer.endswith("fc1"))
    noise_of_layers(
        plain, plan, {}, source, lambda done, total: source.events.append(f"{done} of {total}"), nodes=[node]
    )
    assert source.events == [*["read"] * 4, "1 of 2", *["read"] * 4, "2 of 2"]


@pytest.mark.slow
def test_noise_is_taken_from_the_first_floats_and_of_integers_alone_it_is_the_share_that_changes() -> None:
    plain = run_passes(tiny_models.exported_vit().model, CANONICAL)
    plan = planning.plan_for(plain, planning.measured(plain))
    nodes = [layer.node for layer in weighted_layers(plain) if layer.layer.endswith("fc1")]
    source = ArrayFile(name="noise", values=tiny_models.images(6, seed=5))

    def noise(outputs: int) -> dict[str, float]:
        """With the classes in front of the logits, and at most so many outputs."""
        model = plain.clone()
        (logits,) = model.graph.outputs
        largest = ir.node("ArgMax", [logits], {"axis": 1, "keepdims": 0}, name="largest")
        largest.outputs[0].name, largest.outputs[0].type = "classes", ir.TensorType(ir.DataType.INT64)
        model.graph.append(largest)
        model.graph.outputs[:] = [largest.outputs[0], logits][:outputs]
        return noise_of_layers(model, plan, {}, source, lambda _done, _total: None, nodes=nodes)

    alone = noise_of_layers(plain, plan, {}, source, lambda _done, _total: None, nodes=nodes)
    assert noise(2) == pytest.approx(alone, rel=1e-4)
    assert all(share * 6 == pytest.approx(round(share * 6)) for share in noise(1).values())


def test_contenders_make_most_noise_for_their_flops_up_to_three_times_the_budget() -> None:
    layers = layers_with({"a": 100, "b": 10, "c": 10, "d": 10, "unknown": 0})
    noise = {"a": 0.9, "b": 0.2, "c": 0.3, "d": 0.01, "unknown": 1.0}
    assert contenders(layers, noise, 3) == {"c"}
    assert contenders(layers, noise, 6) == {"b", "c"}
    assert contenders(layers, noise, 7) == {"a", "b", "c"}
    assert contenders(layers, noise, 100) == {"a", "b", "c", "d"}


def layers_with(macs: dict[str, int]) -> list[GraphLayer]:
    return [
        GraphLayer(layer=name, node=name, kind="linear", input="x", weight="w", channel_axis=0, n=1, k=1, macs=count)
        for name, count in macs.items()
    ]


def chosen(
    macs: dict[str, int], noise: dict[str, float], budget: float, *first: str, measure: str = "stream"
) -> dict[str, str]:
    mixed = msgspec.convert({"flops": 0.1, "measure": measure}, MixedRule)
    return layers_to_keep_float(layers_with(macs), noise, budget, first, mixed)


def test_the_noisiest_that_fit_are_left_float_and_say_what_they_cost() -> None:
    macs = {"a": 50, "b": 30, "c": 10, "d": 10, "unknown": 0}
    noise = {"a": 0.1, "b": 0.001, "c": 0.01, "d": 0.0, "unknown": 1.0}
    found = chosen(macs, noise, 40)
    assert set(found) == {"b", "c"}
    assert "leaves 20.0 dB of its residual stream" in found["c"]
    assert chosen(macs, noise, 40, measure="output")["c"].endswith("leaves 20.0 dB")


def test_nothing_that_fits_is_nothing_left_float() -> None:
    assert chosen({"a": 50, "b": 30}, {"a": 1.0, "b": 1.0}, 20) == {}


def test_those_that_go_first_take_the_share_and_the_others_what_is_left() -> None:
    macs, noise = {"a": 10, "b": 10, "c": 10, "d": 15}, {"a": 0.0, "b": 0.1, "c": 0.2, "d": 0.3}
    assert list(chosen(macs, noise, 20, "a", "b")) == ["a", "b"]
    assert list(chosen(macs, noise, 30, "a", "b")) == ["a", "b", "c"]
    # Of those that don't all fit, the noisiest.
    assert list(chosen(macs, noise, 15, "a", "b")) == ["b"]
    found = chosen(macs, noise, 20, "a", "b")
    assert "reads an attention's result" in found["a"]
    assert "changes nothing" in found["a"]


@pytest.mark.parametrize("flops", ["0", "1", "-0.1", "1.5"])
def test_a_share_that_is_none_is_refused(flops: str) -> None:
    head = 'schema = "gpusq.recipe/1"\nname = "m"\ndescription = "d"'
    with pytest.raises(GpusqError, match="share of the Linear layers' FLOPs"):
        recipe_from_toml(f'{head}\n[mixed]\nflops = {flops}\n[[rule]]\nreason = "r"\n', place="m.toml")


def test_a_layer_without_noise_stays_int8_though_it_would_fit() -> None:
    assert set(chosen({"a": 5, "b": 5}, {"a": 0.0, "b": 0.1}, 20)) == {"b"}
