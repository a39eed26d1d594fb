"""Ranges against what torch's own forward hooks see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from gpusq_deploy.artifacts.calibration import CalibrationTable
from gpusq_deploy.calibration.observe import collect_ranges, table_from_recorded
from gpusq_deploy.calibration.sources import ArrayFile
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.layers import GraphLayer, weighted_layers

SAMPLES = tiny_models.images(11)


def source(values: Any = SAMPLES) -> ArrayFile:
    return ArrayFile(name="noise.npy", values=values)


def collect(exported: tiny_models.Exported, values: Any = SAMPLES) -> CalibrationTable:
    model = exported.model
    return collect_ranges(model, weighted_layers(model), source(values), open_model=open_onnx)


def amax_by_hooks(module: torch.nn.Module, samples: Any) -> dict[str, float]:
    """The largest magnitude of each Linear's and Conv's input, by layer name, one sample at a time."""
    largest: dict[str, float] = {}

    def hook(name: str) -> Any:
        def see(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), float(inputs[0].abs().max()))

        return see

    untyped: Any = module
    handles = [
        child.register_forward_pre_hook(hook(name))
        for name, child in untyped.named_modules()
        if isinstance(child, (torch.nn.Linear, torch.nn.Conv2d))
    ]
    with torch.no_grad():
        for sample in samples:
            module(torch.from_numpy(sample[None]))
    for handle in handles:
        handle.remove()
    return largest


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
def test_ranges_are_what_torch_hooks_see(static: bool) -> None:
    """11 samples: with the static batch of 4, and with the observer's own batch of 8, the last one is short."""
    exported = tiny_models.exported_vit(static=static)
    expected = amax_by_hooks(exported.checkpoint.module, SAMPLES)
    table = collect(exported)
    assert {entry.layer for entry in table.ranges} == set(expected)
    for entry in table.ranges:
        assert entry.amax == pytest.approx(expected[entry.layer], rel=1e-4)
    assert (table.images, table.synthetic, table.source) == (11, False, "noise.npy")


@pytest.mark.slow
def test_ranges_and_digest_do_not_depend_on_the_batch_size() -> None:
    one, other = collect(tiny_models.exported_vit()), collect(tiny_models.exported_vit(static=True))
    assert one.digest == other.digest
    for a, b in zip(one.ranges, other.ranges, strict=True):
        assert a.layer == b.layer
        assert a.amax == pytest.approx(b.amax, rel=1e-6)


@pytest.mark.slow
def test_another_order_of_samples_gives_the_same_ranges_and_another_digest() -> None:
    one = collect(tiny_models.exported_vit())
    other = collect(tiny_models.exported_vit(), SAMPLES[::-1])
    assert [entry.amax for entry in one.ranges] == pytest.approx([entry.amax for entry in other.ranges], rel=1e-6)
    assert one.digest != other.digest


@pytest.mark.slow
def test_the_model_is_left_as_it_is() -> None:
    exported = tiny_models.exported_vit()
    before = [str(output.name) for output in exported.model.graph.outputs], len(exported.model.graph)
    collect(exported)
    assert ([str(output.name) for output in exported.model.graph.outputs], len(exported.model.graph)) == before


MATMUL = "g (float[B,3,1,4] input) => (float[B,3,1,2] y) { [act] h = Relu(input) [fc] y = MatMul(h, w) }"


def tiny(text: str = MATMUL) -> tuple[Any, tuple[GraphLayer, ...]]:
    model = tiny_models.graph(text, w=np.ones((4, 2), np.float32))
    return model, weighted_layers(model)


def test_the_magnitude_counts_not_the_value() -> None:
    model, layers = tiny("g (float[B,3,1,4] input) => (float[B,3,1,2] y) { [fc] y = MatMul(input, w) }")
    values = np.zeros((3, 3, 1, 4), np.float32)
    values[1, 2, 0, 3], values[2, 0, 0, 0] = -7.5, 2
    table = collect_ranges(model, layers, source(values), open_model=open_onnx)
    assert [(entry.tensor, entry.layer, entry.amax) for entry in table.ranges] == [("input", "fc", 7.5)]


def test_an_activation_that_is_always_zero_has_the_range_zero() -> None:
    model, layers = tiny()
    table = collect_ranges(model, layers, source(-np.ones((2, 3, 1, 4), np.float32)), open_model=open_onnx)
    assert table.ranges[0].amax == 0


@pytest.mark.parametrize("place", [0, 5, 11])
@pytest.mark.parametrize("operator", ["Sqrt", "Log"])
def test_an_activation_that_is_not_finite_stops_it_and_is_named(operator: str, place: int) -> None:
    """Sqrt makes NaN, Log minus infinity. What follows hides both from the model's own output."""
    text = f"""g (float[B,3,1,4] input) => (float[B,3,1,2] y) {{
      [act] h = {operator}(input)
      [fc] m = MatMul(h, w)
      [bad] n = IsNaN(m)
      [keep] y = Where(n, zero, zero)
    }}"""
    model = tiny_models.graph(text, w=np.ones((4, 2), np.float32), zero=np.zeros((1, 1, 1, 2), np.float32))
    values = np.ones((1, 3, 1, 4), np.float32)
    values.reshape(-1)[place] = -1 if operator == "Sqrt" else 0
    with pytest.raises(GpusqError, match="NaN or infinity") as caught:
        collect_ranges(model, weighted_layers(model), source(values), open_model=open_onnx)
    assert caught.value.place == "tensor h"


def test_progress_counts_samples() -> None:
    model, layers = tiny()
    seen: list[tuple[int, int]] = []
    collect_ranges(
        model,
        layers,
        source(np.ones((19, 3, 1, 4), np.float32)),
        open_model=open_onnx,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(8, 19), (16, 19), (19, 19)]


def test_the_session_is_closed_when_running_fails() -> None:
    class Failing:
        closed = False

        def run(self, feeds: Any) -> dict[str, Any]:
            raise GpusqError(f"no {len(feeds)}")

        def close(self) -> None:
            self.closed = True

    model, layers = tiny()
    runner = Failing()
    opened: list[Path] = []

    def open_it(path: Path) -> Failing:
        opened.append(path)
        return runner

    with pytest.raises(GpusqError):
        collect_ranges(model, layers, source(np.ones((2, 3, 1, 4), np.float32)), open_model=open_it)
    assert runner.closed
    assert not opened[0].exists()


def layer(name: str, tensor: str) -> GraphLayer:
    return GraphLayer(
        layer=name, node=f"node_{name}", kind="linear", input=tensor, weight="w", channel_axis=1, n=2, k=4, macs=8
    )


def test_recorded_ranges_become_a_table_and_layers_of_one_tensor_share_the_larger() -> None:
    layers = (layer("q", "x"), layer("k", "x"), layer("fc", "h"))
    table = table_from_recorded({"q": 1.0, "k": 3.0, "fc": 2.0}, layers, source="model.pt")
    assert [(entry.tensor, entry.layer, entry.amax) for entry in table.ranges] == [("x", "k", 3.0), ("h", "fc", 2.0)]
    assert all("model.pt" in entry.origin for entry in table.ranges)


@pytest.mark.parametrize(
    ("recorded", "named"),
    [
        ({"q": 1.0}, "missing for fc"),
        ({"q": 1.0, "fc": 1.0, "old": 1.0}, "fit no layer: old"),
        ({}, "missing for fc, q"),
    ],
)
def test_recorded_ranges_that_do_not_fit_are_refused(recorded: dict[str, float], named: str) -> None:
    with pytest.raises(GpusqError, match=named) as caught:
        table_from_recorded(recorded, (layer("q", "x"), layer("fc", "h")), source="model.pt")
    assert caught.value.place == "model.pt"
    assert "--calib" in str(caught.value.hint)


def test_recorded_ranges_of_layers_that_stay_float_are_no_strangers() -> None:
    recorded = {"fc": 2.0, "head": 1.0}
    table = table_from_recorded(recorded, (layer("fc", "h"),), source="model.pt", known=(layer("head", "y"),))
    assert [known.tensor for known in table.ranges] == ["h"]
