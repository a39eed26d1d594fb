"""Splitting samples, and comparing two graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tiny_models

from gpusq_deploy import drift
from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.artifacts.base import json_from_value, value_from_json
from gpusq_deploy.artifacts.receipt import Verification
from gpusq_deploy.calibration.sources import ArrayFile, RandomNoise
from gpusq_deploy.doubts import doubts
from gpusq_deploy.drift import Pair, compare
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.engines.session import Session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.values import NAME_SCOPES
from gpusq_deploy.numerics.error import sqnr_db
from gpusq_deploy.verify import require_same, split_source, verify

TEXT = "g (float[{batch},1,1,4] x) => (float[{batch},4] y) {{ [s] h = Reshape(x, shape) [op] y = {op}(h, c) }}"
SAMPLES = np.random.default_rng(0).standard_normal((19, 1, 1, 4)).astype(np.float32)


def source(values: Any = SAMPLES) -> ArrayFile:
    return ArrayFile(name="noise.npy", values=values)


def model(folder: Path, op: str, constant: float, *, batch: str = "B") -> Path:
    path = folder / f"{op}-{constant}-{batch}.onnx"
    text = TEXT.format(op=op, batch=batch)
    made = tiny_models.graph(text, c=np.array(constant, np.float32), shape=np.array([-1, 4]))
    save_model(made, path)
    return path


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 19, 20, 99, 320, 1000])
def test_every_sample_is_used_once_and_a_tenth_is_kept_apart(count: int) -> None:
    whole = source(np.arange(count, dtype=np.float32)[:, None, None, None])
    calibrate, apart, held_out = split_source(whole)
    if count < 10:
        assert (calibrate is whole, apart is whole, held_out) == (True, True, False)
        return
    seen = [float(part.sample(index).item()) for part in (calibrate, apart) for index in range(len(part))]
    assert sorted(seen) == list(range(count))
    assert len(apart) == min(count // 10, 32)
    assert held_out


def test_samples_that_are_kept_apart_are_spread_over_the_whole() -> None:
    _, apart, _ = split_source(source(np.arange(100, dtype=np.float32)[:, None, None, None]))
    assert [float(apart.sample(index).item()) for index in range(10)] == [10.0 * index for index in range(10)]


def test_noise_is_not_split() -> None:
    size = Preprocessing(channels=1, height=1, width=4, mean=(0.0,), std=(1.0,), origin="test")
    noise = RandomNoise(preprocessing=size)
    assert split_source(noise) == (noise, noise, False)


def test_a_graph_agrees_with_itself_wholly_and_the_report_survives_json(tmp_path: Path) -> None:
    path = model(tmp_path, "Mul", 2)
    report = verify(path, path, source(), held_out=True)
    assert (report.sqnr_db, report.top1_agreement, report.images) == (300.0, 1.0, 19)
    assert report.cosine == pytest.approx(1)
    assert "kept apart" in report.note
    assert value_from_json(json_from_value(report), Verification, place="here") == report


def test_noise_is_measured_as_it_is(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Mul", 1), model(tmp_path, "Mul", 1.01)
    report = verify(one, other, source(), held_out=False)
    assert report.sqnr_db == pytest.approx(40, abs=0.01)
    assert "also used to calibrate" in report.note


def test_a_fixed_batch_and_a_short_last_one_give_the_same_report(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Mul", 1), model(tmp_path, "Add", 0.125)
    fixed = model(tmp_path, "Add", 0.125, batch="4")
    assert verify(one, other, source(), held_out=True) == verify(one, fixed, source(), held_out=True)


def test_an_opposite_answer_has_no_agreement(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Mul", 1), model(tmp_path, "Mul", -1)
    report = verify(one, other, source(), held_out=True)
    assert report.cosine == pytest.approx(-1)
    assert report.top1_agreement == 0


def test_noise_on_silence_survives_json(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Mul", 0), model(tmp_path, "Add", 1)
    report = verify(one, other, source(), held_out=True)
    assert report.sqnr_db == -300.0
    assert value_from_json(json_from_value(report), Verification, place="here") == report


def test_a_built_graph_that_overflows_is_refused_with_advice(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Mul", 1), model(tmp_path, "Div", 0)
    with pytest.raises(GpusqError, match="built graph computes NaN or infinity") as caught:
        verify(one, other, source(), held_out=True)
    assert caught.value.place == other.name
    assert "--bf16" in str(caught.value.hint)


def test_a_float_graph_that_is_not_finite_is_refused_by_its_own_name(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Div", 0), model(tmp_path, "Mul", 1)
    with pytest.raises(GpusqError, match="the float graph computes NaN or infinity") as caught:
        verify(one, other, source(), held_out=True)
    assert caught.value.place == "noise.npy"


def test_the_largest_difference_is_relative_to_the_largest_value() -> None:
    reference = np.array([[0.0, 4.0]])
    assert require_same(reference, np.array([[0.0002, 4.0]]), place="here") == pytest.approx(0.00005)
    assert require_same(np.zeros(3), np.zeros(3), place="here") == 0


@pytest.mark.parametrize(
    "got",
    [
        np.array([[0.0, 4.1]]),
        np.array([[0.0, np.nan]]),
        np.array([[np.inf, 4.0]]),
        np.array([[4.0], [4.0]]),
        np.array([0.0, 4.0]),
        np.array([[0.0, 4.0], [0.0, 4.0]]),
    ],
    ids=["value", "nan", "inf", "column", "vector", "two rows"],
)
def test_an_export_that_answers_something_else_is_refused(got: Any) -> None:
    with pytest.raises(GpusqError, match="the exported graph") as caught:
        require_same(np.array([[0.0, 4.0]]), got, place="timm:x")
    assert caught.value.place == "timm:x"
    assert caught.value.hint


def two_blocks(folder: Path, first: float, second: float, *, name: str) -> Path:
    """x, then two blocks that multiply by almost one; the second doubles too, so that noise is seen against signal."""
    text = "g (float[N,1,1,4] x) => (float[N,4] y) { h = Reshape(x, shape)  a = MatMul(h, w1)  b = MatMul(a, w2)"
    text += "  c = MatMul(b, w3)  y = MatMul(c, w4) }"
    eye = np.eye(4, dtype=np.float32)
    weights = {"w1": eye, "w2": eye * np.float32(first), "w3": 2 * eye, "w4": eye * np.float32(second)}
    made = tiny_models.graph(text, shape=np.array([-1, 4]), **weights)
    modules = {"h": "", "a": "blocks.0.fc1", "b": "blocks.0.fc2", "c": "blocks.1.fc1", "y": "blocks.1.fc2"}
    for node in made.graph:
        module = modules[str(node.outputs[0].name)]
        node.name = f"node_{node.outputs[0].name}"
        node.metadata_props[NAME_SCOPES] = repr(["", module, f"{module}.op"])
    path = folder / f"{name}.onnx"
    save_model(made, path)
    return path


def test_the_drift_map_gives_each_blocks_own_figure_and_points_at_the_worse(tmp_path: Path) -> None:
    one = two_blocks(tmp_path, 1, 1, name="float")
    other = two_blocks(tmp_path, 1.001, 1.02, name="built")
    report = verify(one, other, source(), held_out=True)
    assert [block.module for block in report.blocks] == ["blocks.0", "blocks.1"]
    assert report.blocks[0].sqnr_db == pytest.approx(60, abs=0.01)
    assert report.blocks[1].sqnr_db == pytest.approx(-20 * np.log10(1.001 * 1.02 - 1), abs=0.01)
    assert [block.module for block in report.noisiest(1)] == ["blocks.1"]
    assert report.blocks[0].cosine == pytest.approx(1)
    behind = {layer.module: round(layer.sqnr_db) for layer in report.layers}
    assert behind == {"blocks.0.fc1": 300, "blocks.0.fc2": 60, "blocks.1.fc1": 60, "blocks.1.fc2": 34}
    assert report.layer_images == 4
    assert value_from_json(json_from_value(report), Verification, place="here") == report
    assert [path.name for path in tmp_path.iterdir() if "tapped" in path.name] == []


def test_a_block_that_adds_no_noise_is_not_pointed_at(tmp_path: Path) -> None:
    one = two_blocks(tmp_path, 1, 1, name="float")
    other = two_blocks(tmp_path, 1.001, 1, name="built")
    assert [block.module for block in verify(one, other, source(), held_out=True).noisiest(3)] == ["blocks.0"]


def test_a_block_that_the_built_graph_lacks_is_named(tmp_path: Path) -> None:
    one = two_blocks(tmp_path, 1, 1, name="float")
    other = model(tmp_path, "Mul", 2)
    report = verify(one, other, source(), held_out=True)
    assert [block.module for block in report.blocks] == ["blocks.1"]
    assert "not looked at, because the built graph has no such tensor: blocks.0;" in report.note
    assert report.note.endswith("not looked at, because the built graph has no such tensor: blocks.1.fc1")


def test_each_sample_counts_once_for_the_median(tmp_path: Path) -> None:
    """Doubling is exact; adding an eighth costs each sample something else."""
    one, other = model(tmp_path, "Mul", 1), model(tmp_path, "Add", 0.125)
    report = verify(one, other, source(), held_out=True)
    alone = [10 * np.log10((row**2).sum() / (4 * 0.125**2)) for row in SAMPLES.reshape(19, 4).astype(np.float64)]
    assert report.median_sqnr_db == pytest.approx(float(np.median(alone)), abs=1e-4)


def test_the_state_of_a_comparison_does_not_hold_the_outputs(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Mul", 1), model(tmp_path, "Add", 0.125)
    seen = compare(Pair(reference=one, built=other), source(np.zeros((50, 1, 1, 4), np.float32) + 1))
    assert seen.images == 50
    assert len(seen.first[0]) == 4


def test_what_onnx_runtime_makes_of_a_quantized_product_is_measured(tmp_path: Path) -> None:
    """Fused, an INT8 product of FP32 scales sums in integers; as it is written, it sums in float."""
    text = """g (float[N,1,1,4] x) => (float[N,4] y) {
      h = Reshape(x, shape)
      q = QuantizeLinear(h, s, z)
      d = DequantizeLinear(q, s, z)
      wd = DequantizeLinear(w, s, z)
      y = MatMul(d, wd)
    }"""
    made = tiny_models.graph(
        text,
        shape=np.array([-1, 4]),
        s=np.array(0.013, np.float32),
        z=np.array(0, np.int8),
        w=np.arange(-8, 8, dtype=np.int8).reshape(4, 4) * np.int8(9),
    )
    path = tmp_path / "quantized.onnx"
    save_model(made, path)
    report = verify(path, path, source(), held_out=True)
    batch = SAMPLES[:4]
    plain, fused = (
        np.asarray(
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"x": batch})[0]
        )
        for options in (unfused_options(), ort.SessionOptions())
    )
    assert report.fused_images == 4
    assert report.fused_sqnr_db == pytest.approx(min(sqnr_db(plain, fused), 300.0))


def unfused_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def test_the_two_graphs_are_never_open_at_once_and_chunks_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = model(tmp_path, "Mul", 1), model(tmp_path, "Add", 0.125)
    whole = verify(one, other, source(), held_out=True)
    events: list[str] = []

    def watched(path: Path, **options: bool) -> Session:
        events.append(f"open {path.name}")
        session = open_onnx(path, **options)
        close = session.close

        def closing() -> None:
            events.append("close")
            close()

        monkeypatch.setattr(session, "close", closing)
        return session

    monkeypatch.setattr(drift, "_KEPT_BYTES", 0)
    monkeypatch.setattr(drift, "open_onnx", watched)
    assert verify(one, other, source(), held_out=True) == whole
    assert events[1::2] == ["close"] * (len(events) // 2)
    batches = -(-19 // 4)
    assert events[: 4 * batches : 2] == [f"open {one.name}", f"open {other.name}"] * batches


TWO = "g (float[B,1,1,4] x) => (float[B,4] y, {second}) {{ y = Reshape(x, shape)\n {body} }}"


def two_outputs(path: Path, second: str, body: str, **constants: Any) -> Path:
    save_model(tiny_models.graph(TWO.format(second=second, body=body), shape=np.array([-1, 4]), **constants), path)
    return path


def test_further_outputs_are_compared_too(tmp_path: Path) -> None:
    """The first output is the same; the second is off by an eighth."""
    body, zero = "z = Add(y, c)", np.array(0, np.float32)
    one = two_outputs(tmp_path / "a.onnx", "float[B,4] z", body, c=zero)
    other = two_outputs(tmp_path / "b.onnx", "float[B,4] z", body, c=zero + np.float32(0.125))
    report = verify(one, other, source(), held_out=True)
    assert report.sqnr_db == 300
    (drift_of_z,) = report.others
    assert drift_of_z.tensor == "z"
    expected = 10 * np.log10((SAMPLES.astype(np.float64) ** 2).sum() / (SAMPLES.size * 0.125**2))
    assert drift_of_z.sqnr_db == pytest.approx(float(expected), abs=1e-4)


def test_a_further_output_that_overflows_is_refused_by_its_name(tmp_path: Path) -> None:
    one = two_outputs(tmp_path / "a.onnx", "float[B,4] z", "z = Add(y, c)", c=np.array(0, np.float32))
    other = two_outputs(tmp_path / "b.onnx", "float[B,4] z", "z = Add(y, c)", c=np.array(np.inf, np.float32))
    with pytest.raises(GpusqError, match="NaN or infinity in z, where the float graph doesn't"):
        verify(one, other, source(), held_out=True)


def test_a_reference_that_answers_every_sample_alike_is_told(tmp_path: Path) -> None:
    """A head of zeros: the two agree to the last bit, whatever was done to the layers before it."""
    path = model(tmp_path, "Mul", 0)
    report = verify(path, path, source(), held_out=True)
    assert (report.sqnr_db, report.top1_agreement) == (300.0, 1.0)
    assert (report.constant, report.synthetic) == (True, False)
    (doubt,) = doubts(report)
    assert "answers all 19 samples alike" in doubt
    assert value_from_json(json_from_value(report), Verification, place="here") == report


def test_samples_that_are_one_and_the_same_are_told_too_and_one_sample_only_where_its_answer_is_zero(
    tmp_path: Path,
) -> None:
    path, zero = model(tmp_path, "Mul", 2), model(tmp_path, "Mul", 0)
    assert verify(path, path, source(SAMPLES[[3, 3, 3, 3, 3]]), held_out=True).constant
    assert not verify(path, path, source(SAMPLES[:1]), held_out=True).constant
    (doubt,) = doubts(verify(zero, zero, source(SAMPLES[:1]), held_out=True))
    assert "answers its one sample with zeros" in doubt


def test_a_built_graph_that_is_constant_is_a_bad_one_and_no_reason_to_doubt_the_reference(tmp_path: Path) -> None:
    assert not verify(model(tmp_path, "Mul", 2), model(tmp_path, "Mul", 0), source(), held_out=True).constant


def test_a_further_output_that_is_constant_is_named(tmp_path: Path) -> None:
    body, zero = "z = Mul(y, c)", np.array(0, np.float32)
    path = two_outputs(tmp_path / "a.onnx", "float[B,4] z", body, c=zero)
    report = verify(path, path, source(), held_out=True)
    assert (report.constant, report.constant_others) == (False, ("z",))
    (doubt,) = doubts(report)
    assert "every sample the same z" in doubt


def test_outputs_that_are_not_of_samples_are_left_alone(tmp_path: Path) -> None:
    path = two_outputs(tmp_path / "a.onnx", "float[] z", "z = Identity(c)", c=np.array(2.5, np.float32))
    assert verify(path, path, source(), held_out=True).others == ()


def test_a_first_output_of_one_number_is_refused(tmp_path: Path) -> None:
    text = "g (float[B,1,1,4] x) => (float z) { z = ReduceMax<keepdims = 0>(x) }"
    save_model(tiny_models.graph(text), tmp_path / "a.onnx")
    with pytest.raises(GpusqError, match="the first output, z, is one number"):
        verify(tmp_path / "a.onnx", tmp_path / "a.onnx", source(), held_out=True)
