"""Files for --ranges: ONNX Runtime's tables as it writes them, and files that hold no ranges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import overwritten_and_cut
from hypothesis import HealthCheck, given, settings, strategies as st
from onnxruntime.quantization import quant_utils
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData

from gpusq_deploy.calibration.named_ranges import NamedRanges
from gpusq_deploy.calibration.ranges_file import read_ranges
from gpusq_deploy.errors import GpusqError

ENDS = {"input": (-2.5, 3.25), "/fc/MatMul_output_0": (-7.0, 1.5), "/act/Relu_output_0": (0.0, 4.0)}


def written(folder: Path) -> Path:
    """What ONNX Runtime's own function writes."""
    ends: dict[str, Any] = {name: tuple(np.array(end, np.float32) for end in pair) for name, pair in ENDS.items()}
    untyped: Any = quant_utils
    untyped.write_calibration_table(TensorsData(CalibrationMethod.MinMax, ends), dir=str(folder))
    return folder


def read(path: Path) -> NamedRanges:
    found = read_ranges(path, model="")
    assert isinstance(found, NamedRanges)
    return found


def test_onnx_runtimes_json_gives_the_larger_end(tmp_path: Path) -> None:
    found = read(written(tmp_path) / "calibration.json")
    assert dict(found.amax) == {name: max(abs(low), abs(high)) for name, (low, high) in ENDS.items()}
    assert not found.warning


@pytest.mark.parametrize("name", ["calibration.cache", "calibration.flatbuffers"])
def test_onnx_runtimes_other_forms_hold_the_upper_end_which_is_told(tmp_path: Path, name: str) -> None:
    found = read(written(tmp_path) / name)
    assert dict(found.amax) == {name: high for name, (_, high) in ENDS.items()}
    assert "calibration.json" in found.warning


def test_the_json_of_older_releases_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({name: list(ends) for name, ends in ENDS.items()}))
    assert read(tmp_path / "old.json").amax["/fc/MatMul_output_0"] == 7.0


def test_a_table_of_a_graph_that_was_smoothed_is_refused(tmp_path: Path) -> None:
    content = json.loads((written(tmp_path) / "calibration.json").read_text())
    (tmp_path / "s.json").write_text(json.dumps({**content, "smooth_quant": True}))
    with pytest.raises(GpusqError, match="SmoothQuant"):
        read(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x89PNG\r\n", "an image"),
        (b"\x80\x04", "a pickle"),
        (b"\x08\x0a\x12\x07pytorch", "an ONNX model"),
        (b'{"schema": "gpusq.plan/1"}', r"a file of gpusq\.plan/1"),
        (b'{"rows": []}', "JSON with 'rows'"),
        (b"[[rule]]\nmatch = 1\n", r"it starts with '\[\[rule"),
        (b"\xff\xfe\x00", "it starts with"),
        (b"\xf3\xf2\xf1 binary", "it starts with"),
    ],
)
def test_another_file_is_told_what_it_is_and_what_is_taken(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(GpusqError, match=words) as caught:
        read(path)
    assert "gpusq-calibrate's JSON" in str(caught.value.hint)
    assert caught.value.place == str(path)


def test_a_folder_and_a_missing_file_are_told(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "a folder"), (tmp_path / "none", "cannot read")):
        with pytest.raises(GpusqError, match=words):
            read(path)


def test_a_file_without_one_usable_range_names_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.cache").write_text("TRT-8601-EntropyCalibration2\nx: 7f800000\n")
    with pytest.raises(GpusqError, match="no range that can be used: x: line 2: the scale is inf"):
        read(tmp_path / "a.cache")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["calibration.json", "calibration.cache", "calibration.flatbuffers"]))
    path = written(tmp_path) / name
    path.write_bytes(overwritten_and_cut(path.read_bytes(), data))
    found: dict[str, float] = {}
    refusal = None
    try:
        found = dict(read(path).amax)
    except GpusqError as error:
        refusal = error
    assert refusal is None or (refusal.place and refusal.hint)
    assert all(0 < amax < float("inf") for amax in found.values())
