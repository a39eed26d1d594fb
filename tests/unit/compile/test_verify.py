"""Splitting samples, and comparing two graphs."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tiny_models
from exact_sessions import exact_session

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.artifacts.base import json_from_value, value_from_json
from gpusq_deploy.artifacts.receipt import Verification
from gpusq_deploy.bundle.report.warnings import verification_warnings
from gpusq_deploy.calibration.data import ArrayFile, RandomNoise, split_source
from gpusq_deploy.compile import compare_graphs
from gpusq_deploy.compile.compare_graphs import Pair, compare
from gpusq_deploy.compile.export_check import require_repeatable, require_same
from gpusq_deploy.compile.verify import verify
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.engines.session import Session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.values import NAME_SCOPES
from gpusq_deploy.numerics.error import sqnr_db

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


@pytest.mark.parametrize(
    ("count", "kept"),
    [(0, 0), (1, 0), (9, 0), (10, 2), (12, 3), (16, 4), (19, 4), (49, 4), (50, 5), (99, 9), (320, 32), (1000, 32)],
)
def test_every_sample_is_used_once_and_a_tenth_but_of_few_more_is_kept_apart(count: int, kept: int) -> None:
    whole = source(np.arange(count, dtype=np.float32)[:, None, None, None])
    calibrate, apart, held_out = split_source(whole)
    if count < 10:
        assert (calibrate is whole, apart is whole, held_out) == (True, True, False)
        return
    seen = [float(part.sample(index).item()) for part in (calibrate, apart) for index in range(len(part))]
    assert sorted(seen) == list(range(count))
    assert len(apart) == kept
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
    report = verify(Pair(reference=path, built=path), source(), held_out=True)
    assert (report.sqnr_db, report.top1_agreement, report.images) == (300.0, 1.0, 19)
    assert report.cosine == pytest.approx(1)
    assert "held out of" in report.note
    assert value_from_json(json_from_value(report), Verification, place="here") == report


def test_noise_is_measured_as_it_is(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Mul", 1), model(tmp_path, "Mul", 1.01)
    report = verify(Pair(reference=one, built=other), source(), held_out=False)
    assert report.sqnr_db == pytest.approx(40, abs=0.01)
    assert "also used to calibrate" in report.note


def test_a_fixed_batch_and_a_short_last_one_give_the_same_report(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Mul", 1), model(tmp_path, "Add", 0.125)
    fixed = model(tmp_path, "Add", 0.125, batch="4")
    assert verify(Pair(reference=one, built=other), source(), held_out=True) == verify(
        Pair(reference=one, built=fixed), source(), held_out=True
    )


def test_an_opposite_answer_has_no_agreement(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Mul", 1), model(tmp_path, "Mul", -1)
    report = verify(Pair(reference=one, built=other), source(), held_out=True)
    assert report.cosine == pytest.approx(-1)
    assert report.top1_agreement == 0


def test_noise_on_silence_survives_json(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Mul", 0), model(tmp_path, "Add", 1)
    report = verify(Pair(reference=one, built=other), source(), held_out=True)
    assert report.sqnr_db == -300.0
    assert value_from_json(json_from_value(report), Verification, place="here") == report


def test_a_built_graph_that_overflows_is_refused_with_advice(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Mul", 1), model(tmp_path, "Div", 0)
    with pytest.raises(GpusqError, match="built graph computes NaN or infinity") as caught:
        verify(Pair(reference=one, built=other), source(), held_out=True)
    assert caught.value.place == other.name
    assert "--bf16" in str(caught.value.hint)


def test_a_float_graph_that_is_not_finite_is_refused_by_its_own_name(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Div", 0), model(tmp_path, "Mul", 1)
    with pytest.raises(GpusqError, match="the float graph computes NaN or infinity") as caught:
        verify(Pair(reference=one, built=other), source(), held_out=True)
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
    report = verify(Pair(reference=one, built=other), source(), held_out=True)
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
    assert [
        block.module for block in verify(Pair(reference=one, built=other), source(), held_out=True).noisiest(3)
    ] == ["blocks.0"]


def test_a_block_that_the_built_graph_lacks_is_named(tmp_path: Path) -> None:
    one = two_blocks(tmp_path, 1, 1, name="float")
    other = model(tmp_path, "Mul", 2)
    report = verify(Pair(reference=one, built=other), source(), held_out=True)
    assert [block.module for block in report.blocks] == ["blocks.1"]
    assert "not compared, because the built graph has no such tensor: blocks.0;" in report.note
    assert report.note.endswith("not compared, because the built graph has no such tensor: blocks.1.fc1")


def test_each_sample_counts_once_for_the_median(tmp_path: Path) -> None:
    """Doubling is exact; adding an eighth costs each sample something else."""
    one, other = model(tmp_path, "Mul", 1), model(tmp_path, "Add", 0.125)
    report = verify(Pair(reference=one, built=other), source(), held_out=True)
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
    report = verify(Pair(reference=path, built=path), source(), held_out=True)
    batch = SAMPLES[:4]
    plain, fused = (
        np.asarray(session.run(None, {"x": batch})[0])
        for session in (
            ort.InferenceSession(str(path), unfused_options(), providers=["CPUExecutionProvider"]),
            exact_session(path),
        )
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
    whole = verify(Pair(reference=one, built=other), source(), held_out=True)
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

    monkeypatch.setattr(compare_graphs, "_KEPT_BYTES", 0)
    monkeypatch.setattr(compare_graphs, "open_onnx", watched)
    assert verify(Pair(reference=one, built=other), source(), held_out=True) == whole
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
    report = verify(Pair(reference=one, built=other), source(), held_out=True)
    assert report.sqnr_db == 300
    (drift_of_z,) = report.others
    assert drift_of_z.tensor == "z"
    expected = 10 * np.log10((SAMPLES.astype(np.float64) ** 2).sum() / (SAMPLES.size * 0.125**2))
    assert drift_of_z.sqnr_db == pytest.approx(float(expected), abs=1e-4)


def test_a_further_output_that_overflows_is_refused_by_its_name(tmp_path: Path) -> None:
    one = two_outputs(tmp_path / "a.onnx", "float[B,4] z", "z = Add(y, c)", c=np.array(0, np.float32))
    other = two_outputs(tmp_path / "b.onnx", "float[B,4] z", "z = Add(y, c)", c=np.array(np.inf, np.float32))
    with pytest.raises(GpusqError, match="NaN or infinity in z, where the float graph doesn't"):
        verify(Pair(reference=one, built=other), source(), held_out=True)


def test_a_reference_that_answers_every_sample_alike_is_told(tmp_path: Path) -> None:
    """A head of zeros: the two agree to the last bit, whatever was done to the layers before it."""
    path = model(tmp_path, "Mul", 0)
    report = verify(Pair(reference=path, built=path), source(), held_out=True)
    assert (report.sqnr_db, report.top1_agreement) == (300.0, 1.0)
    assert (report.constant, report.synthetic) == (True, False)
    (doubt,) = verification_warnings(report)
    assert "the same output for all 19 samples" in doubt
    assert value_from_json(json_from_value(report), Verification, place="here") == report


def test_samples_that_are_one_and_the_same_are_told_too_and_one_sample_only_where_its_answer_is_zero(
    tmp_path: Path,
) -> None:
    path, zero = model(tmp_path, "Mul", 2), model(tmp_path, "Mul", 0)
    assert verify(Pair(reference=path, built=path), source(SAMPLES[[3, 3, 3, 3, 3]]), held_out=True).constant
    assert not verify(Pair(reference=path, built=path), source(SAMPLES[:1]), held_out=True).constant
    (doubt,) = verification_warnings(verify(Pair(reference=zero, built=zero), source(SAMPLES[:1]), held_out=True))
    assert "gives zeros for its one sample" in doubt


def test_a_built_graph_that_is_constant_is_a_bad_one_and_no_reason_to_doubt_the_reference(tmp_path: Path) -> None:
    assert not verify(
        Pair(reference=model(tmp_path, "Mul", 2), built=model(tmp_path, "Mul", 0)), source(), held_out=True
    ).constant


def test_a_further_output_that_is_constant_is_named(tmp_path: Path) -> None:
    body, zero = "z = Mul(y, c)", np.array(0, np.float32)
    path = two_outputs(tmp_path / "a.onnx", "float[B,4] z", body, c=zero)
    report = verify(Pair(reference=path, built=path), source(), held_out=True)
    assert (report.constant, report.constant_others) == (False, ("z",))
    (doubt,) = verification_warnings(report)
    assert "every sample the same z" in doubt


def test_outputs_without_an_axis_of_samples_are_compared_as_a_whole_and_said_to_be(tmp_path: Path) -> None:
    """A scalar and a table, each off by a tenth in the built graph."""
    for second, shape in (("float[] z", ()), ("float[4,2] z", (4, 2))):
        one, other = (
            two_outputs(tmp_path / f"{name}.onnx", second, "z = Identity(c)", c=np.full(shape, value, np.float32))
            for name, value in (("a", 2.5), ("b", 2.75))
        )
        report = verify(Pair(reference=one, built=other), source(), held_out=True)
        (whole,) = report.others
        assert whole.tensor == "z"
        assert whole.sqnr_db == pytest.approx(20, abs=1e-4)
        assert (report.whole, report.constant_others) == (("z",), ())
        assert "compared as a whole, for no axis is of samples: z" in report.note


def test_a_first_output_of_one_number_is_compared_as_a_whole(tmp_path: Path) -> None:
    text = "g (float[B,1,1,4] x) => (float z) {{ s = ReduceSum<keepdims = 0>(x)  z = Mul(s, c) }}"
    for name, factor in (("a", 1.0), ("b", 1.01)):
        save_model(tiny_models.graph(text.format(), c=np.array(factor, np.float32)), tmp_path / f"{name}.onnx")
    report = verify(Pair(reference=tmp_path / "a.onnx", built=tmp_path / "b.onnx"), source(), held_out=True)
    assert report.sqnr_db == pytest.approx(40, abs=0.01)
    assert (report.images, report.median_sqnr_db, report.lowest_sqnr_db, report.whole) == (19, None, None, ("z",))


# Hidden states [2, N, 4]: y and y², the samples along the second axis. Their error grows with the sample's last value.
STACKED = """g (float[{batch},1,1,4] x) => (float[{batch},4] y, float[2,{batch},4] z) {{
  y = Reshape(x, shape)
  s = Mul(y, y)
  a = Unsqueeze(y, first)
  b = Unsqueeze(s, first)
  w = Concat<axis = 0>(a, b)
  n = Mul(w, c)
  z = Add(w, n)
}}"""


def stacked(path: Path, error: float, batch: str) -> Path:
    c = np.array([0, 0, 0, error], np.float32)
    made = tiny_models.graph(STACKED.format(batch=batch), shape=np.array([-1, 4]), first=np.array([0]), c=c)
    save_model(made, path)
    return path


@pytest.mark.parametrize("batch", ["B", "2", "4", "8", "1"])
@pytest.mark.parametrize("count", [1, 3, 8, 19])
def test_samples_of_an_output_are_found_on_whatever_axis_they_stand(tmp_path: Path, batch: str, count: int) -> None:
    """With four samples at a time the counts of the first axis fit in no batch; with a batch of two they do."""
    one, other = stacked(tmp_path / "a.onnx", 0, batch), stacked(tmp_path / "b.onnx", 0.125, batch)
    report = verify(Pair(reference=one, built=other), source(SAMPLES[:count]), held_out=True)
    rows = SAMPLES[:count].reshape(count, 4).astype(np.float64)
    hidden = np.stack([rows, rows**2], axis=1)
    noise = np.square(hidden[:, :, 3] * 0.125).sum(axis=1)
    alone = 10 * np.log10(np.square(hidden).sum(axis=(1, 2)) / noise)
    pooled = 10 * np.log10(np.square(hidden).sum() / noise.sum())
    (found,) = report.others
    expected = (float(pooled), statistics.median(map(float, alone)))
    assert (found.sqnr_db, found.median_sqnr_db) == pytest.approx(expected, abs=1e-4)
    assert (report.images, report.constant_others, report.whole) == (count, (), ())


def test_a_constant_output_is_seen_along_its_own_axis(tmp_path: Path) -> None:
    """Two layers that differ, for each sample alike: along the first axis they would pass for two answers."""
    text = """g (float[{batch},1,1,4] x) => (float[{batch},4] y, float[2,{batch},4] z) {{
      y = Reshape(x, shape)
      n = Mul(y, zero)
      a = Unsqueeze(n, first)
      b = Add(a, table)
      z = Concat<axis = 0>(a, b)
    }}"""
    for batch in ("B", "2"):
        made = tiny_models.graph(
            text.format(batch=batch),
            shape=np.array([-1, 4]),
            first=np.array([0]),
            zero=np.array(0, np.float32),
            table=np.arange(4, dtype=np.float32),
        )
        save_model(made, tmp_path / "a.onnx")
        pair = Pair(reference=tmp_path / "a.onnx", built=tmp_path / "a.onnx")
        assert verify(pair, source(), held_out=True).constant_others == ("z",)


CLASSES = """g (float[B,1,1,4] x) => ({outputs}) {{
  y = Reshape(x, shape)
  l = Mul(y, c)
  k = ArgMax<axis = 1, keepdims = 0>(l)
  m = Less(l, zero)
}}"""
FLIPPED = np.array([1, 1, 1, -1], np.float32)


def classes(path: Path, outputs: str, c: Any) -> Path:
    zero = np.array(0, np.float32)
    made = tiny_models.graph(CLASSES.format(outputs=outputs), shape=np.array([-1, 4]), c=c, zero=zero)
    save_model(made, path)
    return path


@pytest.mark.parametrize("outputs", ["int64[B] k, bool[B,4] m", "bool[B,4] m, int64[B] k"])
def test_integers_and_booleans_agree_or_do_not_and_have_no_decibels(tmp_path: Path, outputs: str) -> None:
    """The built graph negates the last logit."""
    one, other = classes(tmp_path / "a.onnx", outputs, FLIPPED**2), classes(tmp_path / "b.onnx", outputs, FLIPPED)
    report = verify(Pair(reference=one, built=other), source(), held_out=True)
    rows = SAMPLES.reshape(19, 4)
    expected = {
        "k": float((rows.argmax(1) == (rows * FLIPPED).argmax(1)).mean()),
        "m": float(((rows < 0) == (rows * FLIPPED < 0)).mean()),
    }
    first, second = ("k", "m") if outputs.startswith("int64") else ("m", "k")
    assert (report.sqnr_db, report.cosine, report.median_sqnr_db, report.fused_sqnr_db) == (None, None, None, 300.0)
    assert report.top1_agreement == pytest.approx(expected[first])
    (further,) = report.agreements
    assert further.tensor == second
    assert further.share == pytest.approx(expected[second])
    assert report.others == ()
    assert value_from_json(json_from_value(report), Verification, place="here") == report


def test_integers_beside_floats_are_told_apart(tmp_path: Path) -> None:
    one, other = (
        classes(tmp_path / f"{name}.onnx", "float[B,4] l, int64[B] k", c)
        for name, c in (("a", FLIPPED**2), ("b", FLIPPED))
    )
    report = verify(Pair(reference=one, built=other), source(), held_out=True)
    rows = SAMPLES.reshape(19, 4).astype(np.float64)
    assert report.sqnr_db == pytest.approx(sqnr_db(rows, rows * FLIPPED), abs=1e-4)
    assert [each.tensor for each in report.agreements] == ["k"]
    assert report.agreements[0].share == report.top1_agreement


CENTRED = """g (float[B,1,1,64] x) => ({outputs}) {{
  h = Reshape(x, shape)
  n = LayerNormalization(h, ones)
  noisy = Add(n, c)
  y = Mul(noisy, small)
  m = ReduceMean(noisy, axes)
}}"""


@pytest.mark.parametrize("first", ["y", "m"])
def test_an_output_of_rounding_errors_alone_is_said_and_not_counted(tmp_path: Path, first: str) -> None:
    """The mean of normalised values is 0; y is as small, and a number all the same."""
    types = {"y": "float[B,64] y", "m": "float[B,1] m"}
    outputs = ", ".join([types.pop(first), *types.values()])
    noise = np.random.default_rng(4).normal(0, 1e-3, 64).astype(np.float32)
    for name, c in (("a", noise * 0), ("b", noise)):
        constants = {"shape": np.array([-1, 64]), "axes": np.array([1]), "small": np.array(1e-8, np.float32)}
        made = tiny_models.graph(CENTRED.format(outputs=outputs), c=c, ones=np.ones(64, np.float32), **constants)
        save_model(made, tmp_path / f"{name}.onnx")
    samples = source(np.random.default_rng(3).standard_normal((19, 1, 1, 64)).astype(np.float32))
    report = verify(Pair(reference=tmp_path / "a.onnx", built=tmp_path / "b.onnx"), samples, held_out=True)
    assert report.rounding == ("m",)
    assert [other.tensor for other in report.others] == ([] if first == "y" else ["y"])
    assert (report.sqnr_db if first == "y" else report.others[0].sqnr_db) == pytest.approx(60, abs=2)
    assert (report.sqnr_db is None, report.top1_agreement is None) == (first == "m", first == "m")
    (doubt,) = verification_warnings(report)
    assert doubt.startswith("m: the float model computes rounding errors alone there")
    assert value_from_json(json_from_value(report), Verification, place="here") == report


def test_a_bad_output_is_not_taken_for_rounding_errors(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Mul", 1), model(tmp_path, "Mul", -1)
    report = verify(Pair(reference=one, built=other), source(), held_out=True)
    assert report.rounding == ()
    assert report.sqnr_db == pytest.approx(-6.02, abs=0.01)


def test_a_single_samples_extremes_are_its_own(tmp_path: Path) -> None:
    one, other = model(tmp_path, "Mul", 1), model(tmp_path, "Add", 0.125)
    alone = [10 * np.log10((row**2).sum() / (4 * 0.125**2)) for row in SAMPLES.reshape(19, 4).astype(np.float64)]
    report = verify(Pair(reference=one, built=other), source(), held_out=True)
    assert (report.lowest_sqnr_db, report.highest_sqnr_db) == pytest.approx((min(alone), max(alone)), abs=1e-4)


@pytest.mark.parametrize(("wrong", "refused"), [(0, False), (1, False), (2, True)])
def test_of_exported_integers_a_hundredth_may_differ(wrong: int, refused: bool) -> None:
    reference, got = np.arange(150), np.arange(150)
    got[:wrong] += 1
    if refused:
        with pytest.raises(GpusqError, match=r"1\.3% of the integers differ"):
            require_same(reference, got, place="here")
    else:
        assert require_same(reference, got, place="here") == pytest.approx(wrong / 150)


def test_booleans_are_not_called_integers() -> None:
    with pytest.raises(GpusqError, match=r"50\.0% of the booleans differ"):
        require_same(np.array([True, False]), np.array([True, True]), place="here")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_computes_no_numbers_is_not_called_random(value: float) -> None:
    answers = [np.array([1, 2]), np.array([1.0, value], np.float32)]
    with pytest.raises(GpusqError, match="computes NaN or infinity"):
        require_repeatable(answers, answers, place="here")
    with pytest.raises(GpusqError, match="differently each time"):
        require_repeatable(answers[:1], [np.array([1, 3])], place="here")
    require_repeatable(answers[:1], answers[:1], place="here")


def test_the_first_output_stays_the_first_where_its_shape_does_not_tell_the_axis_of_samples(tmp_path: Path) -> None:
    """Tokens [2N, 2] in front of logits [N, 4]: only the tokens are wrong in the built graph."""
    text = """g (float[B,1,1,4] x) => (float[M,2] tokens, float[B,4] logits) {{
      y = Reshape(x, shape)
      t = Reshape(x, two)
      tokens = Mul(t, c)
      logits = Mul(y, one)
    }}"""
    for name, factor in (("a", 1.0), ("b", 1.1)):
        constants = {"c": np.array(factor, np.float32), "one": np.array(1, np.float32)}
        made = tiny_models.graph(text.format(), shape=np.array([-1, 4]), two=np.array([-1, 2]), **constants)
        save_model(made, tmp_path / f"{name}.onnx")
    report = verify(Pair(reference=tmp_path / "a.onnx", built=tmp_path / "b.onnx"), source(), held_out=True)
    assert report.sqnr_db == pytest.approx(20, abs=1e-3)
    assert [(other.tensor, other.sqnr_db) for other in report.others] == [("logits", 300.0)]
    assert report.top1_agreement is None
