"""Layers left float: what each costs alone, against graphs quantised one layer at a time, and who is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import planning
import pytest
import tiny_models

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.calibration.sources import ArrayFile
from gpusq_deploy.compile import CANONICAL
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.export.onnx_export import export_float_model
from gpusq_deploy.graph.layers import GraphLayer, weighted_layers
from gpusq_deploy.mixing import contenders, left_float
from gpusq_deploy.passes.base import run_passes
from gpusq_deploy.passes.quantize import Quantize, RoundedWeight
from gpusq_deploy.recipe import MixedRule, recipe_from_toml
from gpusq_deploy.sensitivity import noise_of_layers

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
    # Six samples in groups of four: a static batch is filled up with two of them again.
    images = tiny_models.images(4 if static else 6, seed=5)
    heard: list[tuple[int, int]] = []
    noise = noise_of_layers(
        model,
        plan,
        rounded,
        ArrayFile(name="noise", values=images),
        lambda done, total: heard.append((done, total)),
    )
    linear = [layer.node for layer in layers if layer.kind == "linear"]
    assert list(noise) == linear
    assert heard[-1][0] == heard[-1][1] == len(heard) - 1
    wanted = tiny_models.run_model(model, {"input": images})["output"]
    for node in linear:
        only = msgspec.structs.replace(plan, layers=tuple(entry for entry in plan.layers if entry.node == node))
        alone = Quantize(only, rounded)
        got = tiny_models.run_model(run_passes(model, [alone]), {"input": images})["output"]
        expected = float(np.square(got - wanted).sum() / np.square(wanted).sum())
        assert noise[node] == pytest.approx(expected, rel=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [2, 4])
def test_only_contenders_are_measured_on_all_samples(batch: int) -> None:
    """The first four samples are for all layers, in one batch or in two."""
    static = BatchRange(minimum=batch, optimum=batch, maximum=batch)
    model = run_passes(export_float_model(tiny_models.exported_vit().checkpoint, batch=static), CANONICAL)
    plan = planning.plan_for(model, planning.measured(model))
    images = tiny_models.images(8, seed=5)

    def noise_on(values: Array, *, kept: str | None = None) -> dict[str, float]:
        def narrow(_noise: Mapping[str, float]) -> set[str]:
            return {kept} if kept else set()

        source = ArrayFile(name="noise", values=values)
        return noise_of_layers(
            model, plan, {}, source, lambda _done, _total: None, narrow=narrow if kept is not None else None
        )

    first, whole = noise_on(images[:4]), noise_on(images)
    kept = next(layer.node for layer in weighted_layers(model) if layer.layer.endswith("fc2"))
    assert noise_on(images, kept=kept) == pytest.approx({**first, kept: whole[kept]}, rel=1e-6)
    assert first != pytest.approx(whole, rel=1e-3)


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


NOTHING = tiny_models.graph("g (float[B,8] x) => (float[B,8] y) { y = Relu(x) }")


def test_the_noisiest_that_fit_are_left_float_and_say_what_they_cost() -> None:
    layers = layers_with({"a": 50, "b": 30, "c": 10, "d": 10, "unknown": 0})
    noise = {"a": 0.1, "b": 0.001, "c": 0.01, "d": 0.0, "unknown": 1.0}
    found = left_float(NOTHING, layers, 40, MixedRule(flops=0.4), lambda: noise)
    assert set(found) == {"b", "c"}
    assert "20.0 dB" in found["c"]


def never() -> dict[str, float]:
    raise AssertionError("nothing is to be measured")


def test_nothing_is_measured_where_nothing_fits() -> None:
    assert left_float(NOTHING, layers_with({"a": 50, "b": 30}), 20, MixedRule(flops=0.2), never) == {}


@pytest.mark.slow
def test_kernels_first_begins_with_the_layers_behind_attentions() -> None:
    model = run_passes(tiny_models.exported_vit().model, CANONICAL)
    layers = [layer for layer in weighted_layers(model) if layer.kind == "linear"]
    noise = {layer.node: 0.0 if layer.layer.endswith("proj") else 1.0 for layer in layers}
    proj = next(layer for layer in layers if layer.layer == "blocks.0.attn.proj")
    rules = {True: MixedRule(flops=0.1, first="kernels"), False: MixedRule(flops=0.1)}
    for expected, rule in rules.items():
        assert (proj.node in left_float(model, layers, proj.macs * 1.5, rule, lambda: noise)) == expected
    # What is left would hold another layer, but isn't worth measuring all of them.
    assert any(layer.macs <= 0.3 * proj.macs for layer in layers)
    little = left_float(model, layers, proj.macs * 1.3, MixedRule(flops=0.1, first="kernels"), never)
    assert list(little) == [proj.node]
    assert "too little of the share is left" in little[proj.node]
    alone = left_float(model, layers, proj.macs, MixedRule(flops=0.1, first="kernels"), never)
    assert list(alone) == [proj.node]


@pytest.mark.parametrize("flops", ["0", "1", "-0.1", "1.5"])
def test_a_share_that_is_none_is_refused(flops: str) -> None:
    head = 'schema = "gpusq.recipe/1"\nname = "m"\ndescription = "d"'
    with pytest.raises(GpusqError, match="share of the Linear layers' FLOPs"):
        recipe_from_toml(f'{head}\n[mixed]\nflops = {flops}\n[[rule]]\nreason = "r"\n', place="m.toml")


def test_a_layer_without_noise_stays_int8_though_it_would_fit() -> None:
    found = left_float(NOTHING, layers_with({"a": 5, "b": 5}), 20, MixedRule(flops=0.9), lambda: {"a": 0.0, "b": 0.1})
    assert set(found) == {"b"}
