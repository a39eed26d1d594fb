"""The eligibility experiment's graphs, against ONNX Runtime and TensorRT-RTX."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.benchmarks.gpu.cases import (
    OUTPUTS,
    WEIGHTS,
    GemmCase,
    Output,
    Weights,
    all_cases,
    case_arrays,
    case_feeds,
    case_model,
    expected_rows,
)
from gpusq_deploy.engines.builder import build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.layer_classes import totals
from gpusq_deploy.engines.targets import find_target

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
)


def case(output: Output = "fp16", weights: Weights = "2:4", batch: int = 1) -> GemmCase:
    return GemmCase(model="ViT-S", layer="proj", batch=batch, weights=weights, output=output)


def test_the_grid_is_whole_and_every_case_has_its_own_file() -> None:
    cases = all_cases()
    assert len(cases) == 3 * 4 * 4 * 2 * 4
    assert len({one.file for one in cases}) == len({one.name for one in cases}) == len(cases)
    shapes = {(one.model, one.layer): (one.n, one.k) for one in cases}
    assert shapes[("ViT-S", "qkv")] == (1152, 384)
    assert shapes[("ViT-B", "fc1")] == (3072, 768)
    assert shapes[("ViT-L", "fc2")] == (1024, 4096)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_are_what_the_case_says_along_k(weights: Weights) -> None:
    groups = (case_arrays(case(weights=weights))["w"] != 0).reshape(384 // 4, 4, 384)
    most = int(groups.sum(axis=1).max())
    assert most == (2 if weights == "2:4" else 4)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_case_computes_what_it_says(output: Output, weights: Weights) -> None:
    one = case(output, weights, batch=2)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(case_model(one)).SerializeToString()
    feeds = case_feeds(one)
    got = np.asarray(ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)[0])
    wanted = expected_rows(one, feeds["x"])
    assert got.shape == wanted.shape == (2, 197, 384)
    if output == "fp16":
        assert got.dtype == np.float16
        assert float(np.abs(got - wanted).max()) < 0.01 * float(np.abs(wanted).max())
    else:
        assert got.dtype == np.int8
        # FP16 on the way may move a code by its rounding.
        assert float(np.abs(got - wanted).max()) < 1.1
        assert len(np.unique(got)) > 20


@needs_rtx
@pytest.mark.parametrize(("output", "kernels", "writes"), [("fp16", 2, "Half"), ("int8-plain", 1, "Int8")])
def test_only_the_plain_form_writes_int8(tmp_path: Path, output: Output, kernels: int, writes: str) -> None:
    path = tmp_path / "case.onnx"
    ir.save(case_model(case(output)), path)
    settings = BuildSettings(batch=BatchRange(minimum=1, optimum=1, maximum=1), sparse=True)
    built = build_engine(path, find_target("a100"), settings)
    assert totals(built.layers).gemms == {"int8": 1}
    assert totals(built.layers).kernels == kernels
    gemm = next(layer for layer in built.layers if layer.kind == "gemm")
    assert [tensor.dtype for tensor in gemm.outputs] == [writes]
