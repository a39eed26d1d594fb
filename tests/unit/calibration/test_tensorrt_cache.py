"""TensorRT's calibration caches: the format, and finding our tensors among theirs."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import tiny_models
import torch
from damage import overwritten_and_cut
from hypothesis import HealthCheck, given, settings, strategies as st

from gpusq_deploy.artifacts import TensorRange
from gpusq_deploy.calibration.data import open_source
from gpusq_deploy.calibration.named_ranges import NamedRanges
from gpusq_deploy.calibration.observe import collect_ranges
from gpusq_deploy.calibration.tensorrt_cache import (
    MatchedRanges,
    read_tensorrt_cache,
    require_borne_out,
    require_evidence,
    table_from_cache,
)
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.layers import weighted_layers

HEADER = "TRT-8601-EntropyCalibration2"


def bits(scale: float) -> str:
    return struct.pack(">f", scale).hex()


def written(path: Path, entries: dict[str, float], header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *(f"{name}: {bits(scale)}" for name, scale in entries.items())]) + "\n")
    return path


def test_scales_are_big_endian_bits_and_amax_is_127_of_them(tmp_path: Path) -> None:
    path = tmp_path / "a.cache"
    path.write_text(f"{HEADER}\ninput: 3f800000\na:b: 40000000\n(Unnamed Layer* 64) [Shuffle]_output: 0\n")
    found = read_tensorrt_cache(path)
    assert dict(found.amax) == {"input": 127.0, "a:b": 254.0}
    assert "line 4: the scale is 0" in found.unusable["(Unnamed Layer* 64) [Shuffle]_output"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("hello", "it starts with 'hello'"),
        (f"{HEADER}\nx: 3f8000001\n", "not NAME: HEX"),
        (f"{HEADER}\nx 3f800000\n", "not NAME: HEX"),
        (f"{HEADER}\nx: hello\n", "not NAME: HEX"),
    ],
)
def test_what_is_no_cache_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.cache").write_text(text)
    with pytest.raises(GpusqError, match=words):
        read_tensorrt_cache(tmp_path / "a.cache")


@pytest.mark.parametrize(
    ("bits_", "word"), [("7f800000", "inf"), ("bf800000", "-1"), ("7fc00000", "nan"), ("0", "never saw it")]
)
def test_a_line_without_a_usable_scale_matters_where_its_tensor_is_needed(
    tmp_path: Path, bits_: str, word: str
) -> None:
    model = tiny_models.exported_vit().model
    layers = [layer for layer in weighted_layers(model) if layer.layer != "head"]
    path = written(tmp_path / "a.cache", VIT)
    path.write_text(f"{path.read_text()}/nobody/Reads_output_0: {bits_}\n")
    assert len(table_from_cache(read_tensorrt_cache(path), model, layers, source="a.cache").table.ranges) == 5
    name = "/blocks/blocks.0/norm1/LayerNormalization_output_0"
    path.write_text(path.read_text().replace(f"{name}: {bits(VIT[name])}", f"{name}: {bits_}"))
    with pytest.raises(GpusqError, match=word) as caught:
        table_from_cache(read_tensorrt_cache(path), model, layers, source="a.cache")
    assert "line 3" in caught.value.what
    assert "blocks.0.attn.qkv" in str(caught.value.place)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_cache(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.cache").write_bytes(f"{HEADER}\r\nx: 3f800000\r\n".encode(encoding))
    assert dict(read_tensorrt_cache(tmp_path / "a.cache").amax) == {"x": 127.0}


def test_a_line_that_stands_there_twice_counts_where_both_agree(tmp_path: Path) -> None:
    (tmp_path / "a.cache").write_text(f"{HEADER}\nx: 3f800000\ny: 3f800000\nx: 3f800000\ny: 40000000\n")
    found = read_tensorrt_cache(tmp_path / "a.cache")
    assert dict(found.amax) == {"x": 127.0}
    assert found.unusable == {"y": "lines 3 and 5 give it different scales"}


# As torch's older exporter names the tensors of a ViT; LayerNormalization as one operator, then spelt out.
VIT = {
    "images": 0.02,
    "/blocks/blocks.0/norm1/LayerNormalization_output_0": 0.03,
    "/blocks/blocks.0/attn/Reshape_output_0": 9.0,
    "/blocks/blocks.0/attn/Reshape_1_output_0": 0.04,
    "/blocks/blocks.0/norm2/Add_output_0": 9.0,
    "/blocks/blocks.0/norm2/Add_1_output_0": 0.05,
    "/blocks/blocks.0/mlp/act/Mul_output_0": 9.0,
    "/blocks/blocks.0/mlp/act/Mul_1_output_0": 0.06,
    "/blocks/blocks.10/norm2/Add_1_output_0": 9.0,
}
EXPECTED = {
    "patch_embed.proj": 0.02,
    "blocks.0.attn.qkv": 0.03,
    "blocks.0.attn.proj": 0.04,
    "blocks.0.mlp.fc1": 0.05,
    "blocks.0.mlp.fc2": 0.06,
}


def test_tensors_of_the_older_exporter_are_found(tmp_path: Path) -> None:
    model = tiny_models.exported_vit().model
    layers = [layer for layer in weighted_layers(model) if layer.layer != "head"]
    cache = read_tensorrt_cache(written(tmp_path / "a.cache", VIT))
    table, doubtful = table_from_cache(cache, model, layers, source="a.cache")
    assert not doubtful
    assert {entry.layer: entry.amax for entry in table.ranges} == pytest.approx(
        {layer: 127 * scale for layer, scale in EXPECTED.items()}
    )
    origins = {entry.layer: entry.origin for entry in table.ranges}
    assert "/blocks/blocks.0/mlp/act/Mul_1_output_0" in origins["blocks.0.mlp.fc2"]


def test_a_name_without_a_path_is_no_evidence(tmp_path: Path) -> None:
    """torch's newer exporter numbers tensors: `layer_norm_1` is another one in the next release's graph."""
    model = tiny_models.exported_vit().model
    (layer,) = [layer for layer in weighted_layers(model) if layer.layer == "blocks.0.attn.qkv"]
    assert "/" not in layer.input
    both = read_tensorrt_cache(written(tmp_path / "a.cache", {**VIT, layer.input: 0.5}))
    assert table_from_cache(both, model, [layer], source="a").table.ranges[0].amax == pytest.approx(127 * 0.03)
    alone = read_tensorrt_cache(written(tmp_path / "a.cache", {layer.input: 0.5}))
    matched = table_from_cache(alone, model, [layer], source="a")
    assert matched.doubtful == (layer,)
    with pytest.raises(GpusqError, match="anew by each export") as caught:
        require_evidence(matched, source="a")
    assert "--calib" in str(caught.value.hint)


@pytest.mark.parametrize(("seen", "fits"), [(63.5, True), (200.0, True), (20.0, False), (2000.0, False)])
def test_samples_bear_a_numbered_name_out_or_contradict_it(tmp_path: Path, seen: float, fits: bool) -> None:
    model = tiny_models.exported_vit().model
    (layer,) = [layer for layer in weighted_layers(model) if layer.layer == "blocks.0.attn.qkv"]
    cache = read_tensorrt_cache(written(tmp_path / "a.cache", {layer.input: 0.5}))
    known: MatchedRanges = table_from_cache(cache, model, [layer], source="a")
    found = {layer.input: TensorRange(tensor=layer.input, layer=layer.layer, amax=seen, origin="seen")}
    if fits:
        require_borne_out(known.table, found, known.doubtful, source="a")
        return
    with pytest.raises(GpusqError, match=r"blocks\.0\.attn\.qkv \(63\.5, samples reach"):
        require_borne_out(known.table, found, known.doubtful, source="a")


def test_inputs_that_fit_nothing_are_an_error_that_names_both_sides(tmp_path: Path) -> None:
    model = tiny_models.exported_vit().model
    del (cut := dict(VIT))["/blocks/blocks.0/norm1/LayerNormalization_output_0"]
    cache = read_tensorrt_cache(written(tmp_path / "a.cache", cut))
    with pytest.raises(GpusqError, match=r"blocks\.0\.attn\.qkv") as caught:
        table_from_cache(cache, model, weighted_layers(model), source="a.cache")
    assert "/blocks/blocks.0/norm2/Add_1_output_0" in caught.value.what


def test_two_inputs_without_a_path_are_no_answer() -> None:
    model = tiny_models.exported_vit().model
    (layer,) = [layer for layer in weighted_layers(model) if layer.layer == "patch_embed.proj"]
    with pytest.raises(GpusqError, match="fit no tensor"):
        table_from_cache(NamedRanges(kind="", amax={"images": 1.0, "mask": 1.0}), model, [layer], source="a")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = written(tmp_path / "a.cache", VIT)
    path.write_bytes(overwritten_and_cut(path.read_bytes(), data))
    found: dict[str, float] = {}
    refusal = None
    try:
        found = dict(read_tensorrt_cache(path).amax)
    except GpusqError as error:
        refusal = error
    assert all(0 < amax < float("inf") for amax in found.values())
    assert refusal is None or (str(path) in str(refusal.place) and refusal.hint)


def all_amax(path: Path, batch: npt.NDArray[np.float32]) -> dict[str, float]:
    """The largest magnitude of every float tensor of an ONNX file, by ONNX Runtime: what a calibrator sees."""
    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    known = {output.name for output in proto.graph.output}
    floats = [v for v in proto.graph.value_info if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    proto.graph.output.extend(value for value in floats if value.name not in known)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs() if output.type == "tensor(float)"]
    values = session.run(names, {session.get_inputs()[0].name: batch})
    return {"images": float(np.abs(batch).max())} | {
        name: float(np.abs(value).max()) for name, value in zip(names, values, strict=True) if np.abs(value).max() > 0
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's older exporter about itself
@pytest.mark.parametrize("opset", [16, 17])
def test_a_cache_of_an_old_export_gives_the_ranges_of_today_s_graph(tmp_path: Path, opset: int) -> None:
    """The whole way: torch's older exporter (opset 16 spells LayerNorm out), every tensor's range, and back."""
    exported = tiny_models.exported_vit()
    batch = tiny_models.images(4)
    old = tmp_path / "old.onnx"
    module = exported.checkpoint.module
    torch.onnx.export(
        module, (torch.from_numpy(batch),), old, opset_version=opset, dynamo=False, input_names=["images"]
    )
    seen = all_amax(old, batch)
    cache = read_tensorrt_cache(written(tmp_path / "a.cache", {name: amax / 127 for name, amax in seen.items()}))
    layers = weighted_layers(exported.model)
    table, _ = table_from_cache(cache, exported.model, layers, source="a.cache")
    np.save(tmp_path / "batch.npy", batch)
    source = open_source(str(tmp_path / "batch.npy"), exported.checkpoint.preprocessing)
    today = collect_ranges(exported.model, layers, source, open_model=open_onnx)
    assert {entry.layer: entry.amax for entry in table.ranges} == pytest.approx(
        {entry.layer: entry.amax for entry in today.ranges}, rel=1e-4
    )
