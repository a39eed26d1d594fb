"""config.pbtxt is read by Triton's own schema, and held against the rules of its model configuration."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from handed import engine, handed, spec

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.artifacts.manifest import BatchRange, EngineOptions
from gpusq_deploy.bundle.handover.model import HandedModel, Handover
from gpusq_deploy.bundle.handover.triton import triton_repository
from gpusq_deploy.engines.session import TensorSpec
from gpusq_deploy.errors import GpusqError


def _schema_file() -> Path | None:
    """Generated from Triton's model_config.proto; the Makefile puts it aside, for its package wants old protobufs."""
    places = [Path(sys.prefix) / "schemas", *map(Path, sys.path)]
    files = (place / "tritonclient" / "grpc" / "model_config_pb2.py" for place in places)
    return next((file for file in files if file.is_file()), None)


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    file = _schema_file()
    if file is None:
        pytest.skip("Triton's schema isn't here: make install puts tritonclient into .venv/schemas")
    found = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def parsed(schema: ModuleType, made: Handover, name: str = "vit") -> Any:
    text_format: Any = importlib.import_module("google.protobuf.text_format")
    return text_format.Parse(made.files[f"{name}/config.pbtxt"], schema.ModelConfig())


def problems(config: Any, model: HandedModel, made: Handover) -> list[str]:
    """What Triton's core and backends refuse, as model_configuration.md and CompareDimsSupported have it."""
    labels = [tensor.label_filename for tensor in config.output if tensor.label_filename]
    return [
        *(problem for pair in tensors(config, model) for problem in shape_problems(config.max_batch_size, *pair)),
        *batch_problems(config),
        *(problem for warm in config.model_warmup for problem in warm_up_problems(config, warm)),
        *(f"{name} isn't written" for name in labels if f"{config.name}/{name}" not in made.files),
    ]


def tensors(config: Any, model: HandedModel) -> Iterator[tuple[Any, TensorSpec]]:
    return zip([*config.input, *config.output], [*model.inputs, *model.outputs], strict=True)


def shape_problems(most: int, tensor: Any, wanted: TensorSpec) -> Iterator[str]:
    dims = list(tensor.dims)
    reshaped = tensor.HasField("reshape")
    backend = list(tensor.reshape.shape) if reshaped else dims
    if not dims:
        yield f"{tensor.name}: empty dims"
    if reshaped and math.prod(backend) != math.prod(dims):
        yield f"{tensor.name}: reshape changes the number of elements"
    full = [-1, *backend] if most else backend
    if tensor.name != wanted.name or full != list(wanted.shape):
        yield f"{tensor.name} {full} isn't the model's {wanted.name} {list(wanted.shape)}"


def batch_problems(config: Any) -> Iterator[str]:
    if config.HasField("dynamic_batching") and not config.max_batch_size:
        yield "a model that doesn't batch has a batcher"
    if any(not 0 < size <= config.max_batch_size for size in config.dynamic_batching.preferred_batch_size):
        yield "a preferred batch is above the largest"


def warm_up_problems(config: Any, warm: Any) -> Iterator[str]:
    if not 1 <= warm.batch_size <= max(1, config.max_batch_size):
        yield f"warm-up of {warm.batch_size} samples"
    if set(warm.inputs) != {tensor.name for tensor in config.input}:
        yield "warm-up lacks an input"
    if any(min(fed.dims) < 1 or not fed.HasField("zero_data") for fed in warm.inputs.values()):
        yield "warm-up has an open dimension or no data"


CASES = {
    "dynamic": handed(),
    "labelled": handed(labels=tuple(f"class {index}" for index in range(64))),
    "fixed": handed(
        inputs=(spec("input", 4, 3, 32, 32),),
        outputs=(spec("output", 4, 64),),
        batch=BatchRange(minimum=4, optimum=4, maximum=4),
    ),
    "one": handed(batch=BatchRange(minimum=1, optimum=1, maximum=1)),
    "from four": handed(batch=BatchRange(minimum=4, optimum=8, maximum=16)),
    "scalar": handed(outputs=(spec("score", -1),)),
    "several": handed(
        inputs=(spec('a "quoted" name', -1, 8, dtype="float16"), spec("ids", -1, 4, dtype="int64")),
        outputs=(spec("boxes", -1, 100, 4), spec("kept", -1, 100, dtype="bool")),
        preprocessing=None,
    ),
    "a table": handed(outputs=(spec("output", -1, 64), spec("table", 197, 8))),
    "open sides": handed(outputs=(spec("output", -1, 64), spec("found", -1, -1, 4))),
    "engine": handed(engines=(engine(),)),
    "engines": handed(engines=(engine(), engine("rtx30", "8.6"))),
    "sparse": handed(sparse=True, options=EngineOptions(level=5, workspace_mib=512)),
}


@pytest.mark.parametrize("case", CASES)
def test_triton_reads_it_and_its_rules_hold(schema: ModuleType, case: str) -> None:
    made = triton_repository(CASES[case])
    config = parsed(schema, made)
    assert problems(config, CASES[case], made) == []
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert bool(config.max_batch_size) == (case not in ("fixed", "from four", "a table"))


def test_the_rules_see_what_is_wrong(schema: ModuleType) -> None:
    made = triton_repository(CASES["scalar"])
    config = parsed(schema, made)
    config.max_batch_size = 0
    assert len(problems(config, CASES["scalar"], made)) == 5


def test_batches_follow_the_profiles(schema: ModuleType) -> None:
    ranges = (BatchRange(minimum=1, optimum=1, maximum=1), BatchRange(minimum=2, optimum=16, maximum=32))
    model = handed(options=EngineOptions(profiles=ranges), engines=(engine(),))
    config = parsed(schema, triton_repository(model))
    assert list(config.dynamic_batching.preferred_batch_size) == [16, 32]
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert config.platform == "tensorrt_plan"
    assert config.model_warmup[0].batch_size == 1


def test_engines_are_told_apart_by_their_gpu(schema: ModuleType) -> None:
    engines = (engine(), engine("rtx30", "8.6"), engine("l4", "8.9"), engine("l40s", "8.9"))
    made = triton_repository(handed(engines=engines))
    config = parsed(schema, made)
    assert dict(config.cc_model_filenames) == {"8.0": "a100.plan", "8.6": "rtx30.plan", "8.9": "l4.plan"}
    assert config.default_model_filename == "a100.plan"
    assert made.copies["vit/1/rtx30.plan"] == "engines/rtx30.plan"
    assert "engines/l40s.plan is left out: engines/l4.plan has its compute capability, 8.9, too" in made.remarks


def test_engines_that_triton_does_not_load_are_left_out(schema: ModuleType) -> None:
    stripped = engine("rtx30", "8.6", options=EngineOptions(strip=True))
    model = handed(sparse=True, engines=(engine(backend="tensorrt-rtx", backend_version="1.7"), stripped))
    made = triton_repository(model)
    config = parsed(schema, made)
    assert config.platform == "onnxruntime_onnx"
    assert made.copies == {"vit/1/model.onnx": "model.onnx"}
    assert [remark for remark in made.remarks if "left out" in remark] == [
        "engines/a100.plan is left out: Triton's tensorrt backend loads no tensorrt-rtx engine",
        "engines/rtx30.plan is left out: Triton loads no engine without weights",
    ]
    (provider,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert provider.name == "tensorrt"
    assert dict(provider.parameters) == {
        "precision_mode": "FP32",
        "trt_sparsity_enable": "1",
        "trt_profile_min_shapes": "input:1x3x32x32",
        "trt_profile_opt_shapes": "input:8x3x32x32",
        "trt_profile_max_shapes": "input:32x3x32x32",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/tmp/trt-vit",
    }


def test_a_cpu_serves_the_onnx_model(schema: ModuleType) -> None:
    config = parsed(schema, triton_repository(handed(engines=(engine(),)), cpu=True))
    assert config.platform == "onnxruntime_onnx"
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_CPU
    assert not config.HasField("optimization")


def test_labels_are_a_file_of_lines() -> None:
    made = triton_repository(handed(outputs=(spec("output", -1, 2),), labels=("cat", "dog")))
    assert made.files["vit/labels.txt"] == b"cat\ndog\n"
    assert b'label_filename: "labels.txt"' in made.files["vit/config.pbtxt"]


@pytest.mark.parametrize(("engines", "dtype"), [((), "bfloat16"), ((engine(),), "float64"), ((), "float8_e4m3fn")])
def test_types_that_the_backend_lacks_are_refused(engines: tuple[Any, ...], dtype: str) -> None:
    model = handed(engines=engines, inputs=(spec("input", -1, 8, dtype=dtype),))
    with pytest.raises(GpusqError, match=f"input is {dtype}, which Triton's"):
        triton_repository(model)


def test_what_a_client_must_know_is_told() -> None:
    fixed = triton_repository(CASES["fixed"])
    assert "the batch is fixed: each request has 4 samples, and Triton puts none together" in fixed.remarks
    four = triton_repository(CASES["from four"])
    assert any(
        remark.startswith("the smallest batch is 4: each request has 4 to 16 samples") for remark in four.remarks
    )
    portable = engine(options=EngineOptions(version_compatible=True))
    assert any("version-compatible=true" in remark for remark in triton_repository(handed(engines=(portable,))).remarks)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"crop_fraction": 224 / 232},
            "is resized (bicubic) in proportion to cover 232 x 232, the centre 224 x 224 is",
        ),
        ({"crop_fraction": 0.9, "crop_mode": "squash"}, "to 248 x 248, whatever its proportions, the centre"),
        (
            {"crop_mode": "border"},
            "in proportion to fit into 224 x 224, what lacks is filled with the mean, the centre",
        ),
    ],
)
def test_a_client_is_told_how_an_image_is_prepared(changes: dict[str, Any], told: str) -> None:
    declared = Preprocessing(
        channels=3, height=224, width=224, mean=(0.5,) * 3, std=(0.5,) * 3, origin="test", **changes
    )
    assert told in triton_repository(handed(preprocessing=declared)).files["README.md"].decode()
