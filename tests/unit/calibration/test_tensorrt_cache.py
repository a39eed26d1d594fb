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
from hypothesis import HealthCheck, given, settings, strategies as st

from gpusq_deploy.calibration.data import open_source
from gpusq_deploy.calibration.observe import collect_ranges
from gpusq_deploy.calibration.tensorrt_cache import is_tensorrt_cache, read_tensorrt_cache, table_from_cache
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
    assert read_tensorrt_cache(path) == {"input": 127.0, "a:b": 254.0}
    assert is_tensorrt_cache(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("hello", "not a calibration cache"),
        (f"{HEADER}\n", "holds no range"),
        (f"{HEADER}\nx: 7f800000\n", "scale is inf"),
        (f"{HEADER}\nx: bf800000\n", "scale is -1"),
        (f"{HEADER}\nx: 7fc00000\n", "scale is nan"),
        (f"{HEADER}\nx: 3f8000001\n", "not NAME: HEX"),
        (f"{HEADER}\nx 3f800000\n", "not NAME: HEX"),
        (f"{HEADER}\nx: hello\n", "not NAME: HEX"),
    ],
)
def test_what_is_no_cache_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.cache").write_text(text)
    with pytest.raises(GpusqError, match=words):
        read_tensorrt_cache(tmp_path / "a.cache")


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
    table = table_from_cache(cache, model, layers, source="a.cache")
    assert {entry.layer: entry.amax for entry in table.ranges} == pytest.approx(
        {layer: 127 * scale for layer, scale in EXPECTED.items()}
    )
    origins = {entry.layer: entry.origin for entry in table.ranges}
    assert "/blocks/blocks.0/mlp/act/Mul_1_output_0" in origins["blocks.0.mlp.fc2"]


def test_the_same_name_beats_every_rule(tmp_path: Path) -> None:
    model = tiny_models.exported_vit().model
    (layer,) = [layer for layer in weighted_layers(model) if layer.layer == "blocks.0.attn.qkv"]
    cache = read_tensorrt_cache(written(tmp_path / "a.cache", {**VIT, layer.input: 0.5}))
    assert table_from_cache(cache, model, [layer], source="a").ranges[0].amax == 63.5


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
        table_from_cache({"images": 1.0, "mask": 1.0}, model, [layer], source="a")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = written(tmp_path / "a.cache", VIT)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    found: dict[str, float] = {}
    refusal = None
    try:
        found = read_tensorrt_cache(path)
    except GpusqError as error:
        refusal = error
    assert all(0 < amax < float("inf") for amax in found.values())
    assert bool(found) != (refusal is not None)
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
    table = table_from_cache(cache, exported.model, layers, source="a.cache")
    np.save(tmp_path / "batch.npy", batch)
    source = open_source(str(tmp_path / "batch.npy"), exported.checkpoint.preprocessing)
    today = collect_ranges(exported.model, layers, source, open_model=open_onnx)
    assert {entry.layer: entry.amax for entry in table.ranges} == pytest.approx(
        {entry.layer: entry.amax for entry in today.ranges}, rel=1e-4
    )
