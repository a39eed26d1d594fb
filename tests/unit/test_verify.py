"""Splitting samples, and comparing two graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.artifacts.base import json_from_value, value_from_json
from gpusq_deploy.artifacts.receipt import Verification
from gpusq_deploy.calibration.sources import ArrayFile, RandomNoise
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import save_model
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
    assert require_same(reference, np.array([[0.002, 4.0]]), place="here") == pytest.approx(0.0005)
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
