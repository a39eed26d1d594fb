"""Ranges against what torch's own forward hooks see."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.artifacts.calibration import CalibrationTable, Calibrator, CalibratorName
from gpusq_deploy.calibration.data import ArrayFile
from gpusq_deploy.calibration.observe import Observing, collect_ranges
from gpusq_deploy.calibration.stored_ranges import table_from_recorded
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
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
    """11 samples: with the static batch of 4 the last group is short; else each sample is run alone."""
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


def test_a_layer_may_read_a_constant() -> None:
    queries = np.array([[0.5, -2.0, 1.0, 0.0]], np.float32)
    text = """g (float[B,3,1,4] x) => (float[B,3,1,4] y) {
      [constant] c = MatMul(q, w)
      y = Add(x, c)
    }"""
    model = tiny_models.graph(text, q=queries, w=np.eye(4, dtype=np.float32))
    values = np.ones((4, 3, 1, 4), np.float32)
    (entry,) = collect_ranges(model, weighted_layers(model), source(values), open_model=open_onnx).ranges
    assert (entry.tensor, entry.amax) == ("q", 2.0)


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
        how=Observing(progress=lambda done, total: seen.append((done, total))),
    )
    assert seen == [(done, 19) for done in range(1, 20)]


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
        ({}, "missing for fc, q"),
    ],
)
def test_recorded_ranges_that_do_not_fit_are_refused(recorded: dict[str, float], named: str) -> None:
    with pytest.raises(GpusqError, match=named) as caught:
        table_from_recorded(recorded, (layer("q", "x"), layer("fc", "h")), source="model.pt")
    assert caught.value.place == "model.pt"
    assert "--calib" in str(caught.value.hint)


def test_recorded_ranges_of_other_layers_are_left_out() -> None:
    recorded = {"fc": 2.0, "head": 1.0}
    table = table_from_recorded(recorded, (layer("fc", "h"),), source="model.pt")
    assert [known.tensor for known in table.ranges] == ["h"]


def magnitudes_by_hooks(module: torch.nn.Module, layer: str, samples: Any) -> Any:
    """Every magnitude of one layer's input, one sample at a time."""
    seen: list[Any] = []

    def see(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(array_from_tensor(inputs[0].abs()).ravel())

    handle = module.get_submodule(layer).register_forward_pre_hook(see)
    with torch.no_grad():
        for sample in samples:
            module(torch.from_numpy(sample[None]))
    handle.remove()
    return np.concatenate(seen)


def tensors_of(exported: tiny_models.Exported) -> dict[str, str]:
    return {layer.layer: layer.input for layer in weighted_layers(exported.model)}


def collect_with(
    exported: tiny_models.Exported, name: CalibratorName, values: Any = SAMPLES, **how: Any
) -> CalibrationTable:
    model = exported.model
    calibrators = dict.fromkeys(tensors_of(exported).values(), Calibrator(name=name))
    layers, observing = weighted_layers(model), Observing(**how)
    return collect_ranges(model, layers, source(values), calibrators=calibrators, open_model=one_thread, how=observing)


def one_thread(path: Path) -> Any:
    return open_onnx(path, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("layer", ["blocks.0.mlp.fc2", "patch_embed.proj"])
def test_a_percentile_is_that_of_what_torch_hooks_see(layer: str, static: bool) -> None:
    """With a static batch of 4 the last three of 11 samples run alone, each filling the batch."""
    exported = tiny_models.exported_vit(static=static)
    seen = magnitudes_by_hooks(exported.checkpoint.module, layer, SAMPLES)
    table = collect_with(exported, "percentile")
    (found,) = [entry for entry in table.ranges if entry.layer == layer]
    expected = sorted(seen.tolist())[math.ceil(len(seen) * 0.9999) - 1]
    assert found.amax == pytest.approx(expected, rel=1 / 128)
    assert found.origin.startswith("percentile 99.99 over 11 samples; the largest magnitude is ")
    assert float(found.origin.rsplit(" ", 1)[1]) == pytest.approx(float(seen.max()), rel=1e-4)


class SentError(Exception):
    """A rank's share is done; its table needs the others' too."""


def share_of(exported: tiny_models.Exported, name: CalibratorName, rank: int, world: int) -> bytes:
    """What one rank sends to the others."""
    sent: list[bytes] = []

    def keep(own: bytes) -> tuple[bytes, ...]:
        sent.append(own)
        raise SentError

    with pytest.raises(SentError):
        collect_with(exported, name, rank=rank, world=world, workers=1 + rank % 3, gather=keep)
    return sent[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["amax", "percentile", "entropy", "mse", "output-error"])
@pytest.mark.parametrize("static", [False, True])
def test_ranges_are_bit_identical_however_the_samples_are_shared_out(name: CalibratorName, static: bool) -> None:
    exported = tiny_models.exported_vit(static=static)
    whole = collect_with(exported, name)
    for world in (2, 3, 16):
        others = [share_of(exported, name, rank, world) for rank in range(1, world)]

        def gather(own: bytes, others: list[bytes] = others) -> tuple[bytes, ...]:
            return (*reversed(others), own)

        assert collect_with(exported, name, rank=0, world=world, gather=gather) == whole


def test_tensors_without_a_calibrator_keep_their_largest_magnitude() -> None:
    model, layers = tiny("g (float[B,3,1,4] input) => (float[B,3,1,2] y) { [fc] y = MatMul(input, w) }")
    values = np.linspace(-1, 9, 24, dtype=np.float32).reshape(2, 3, 1, 4)
    table = collect_ranges(model, layers, source(values), calibrators={"another": Calibrator(name="mse")})
    assert [(entry.amax, entry.origin) for entry in table.ranges] == [(9.0, "amax over 2 samples")]


def test_a_counted_activation_that_is_not_finite_is_named() -> None:
    model, layers = tiny(
        "g (float[B,3,1,4] input) => (float[B,3,1,2] y) { [act] h = Log(input) [fc] y = MatMul(h, w) }"
    )
    values = np.ones((1, 3, 1, 4), np.float32)
    values[0, 1, 0, 2] = 0
    with pytest.raises(GpusqError, match="NaN or infinity") as caught:
        collect_ranges(model, layers, source(values), calibrators={"h": Calibrator(name="mse")})
    assert caught.value.place in ("tensor h", "tensor y")


def test_the_wrong_normalisation_is_told_in_the_table_and_noise_is_not_judged() -> None:
    model, layers = tiny()
    declared = Preprocessing(channels=3, height=1, width=4, mean=(0.485,) * 3, std=(0.229,) * 3, origin="test")
    pixels = np.linspace(0, 255, 24, dtype=np.float32).reshape(2, 3, 1, 4)
    how = Observing(preprocessing=declared)
    told = collect_ranges(model, layers, source(pixels), open_model=open_onnx, how=how)
    assert len(told.warnings) == 1
    assert "0…255" in told.warnings[0]
    noise = ArrayFile(name="noise", values=pixels, synthetic=True)
    assert collect_ranges(model, layers, noise, open_model=open_onnx, how=how).warnings == ()


def test_damaged_rows_are_skipped_by_number_whoever_meets_them() -> None:
    values = np.ones((30, 3, 1, 4), np.float32)
    values[[4, 21]] = np.nan
    model, layers = tiny()
    table = collect_ranges(model, layers, source(values), open_model=open_onnx, how=Observing(workers=3))
    assert table.images == 28
    assert [text.split(":")[0] for text in table.skipped] == ["noise.npy, row 4", "noise.npy, row 21"]
    values[[1, 2]] = np.nan
    with pytest.raises(GpusqError, match="4 of 30 samples can't be read"):
        collect_ranges(model, layers, source(values), open_model=open_onnx)
