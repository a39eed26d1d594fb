"""Polygraphy builds the same ONNX file, with a configuration of its own: it must come to the same kernels."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.engines.builder import build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.layer_list_parser import layer_from_line
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.graph.files import load_model

BATCH = BatchRange(minimum=1, optimum=4, maximum=8)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
    ),
]


def sizes(value: ir.Value) -> list[int]:
    """All dimensions but the batch."""
    assert value.shape is not None
    return [dimension for dimension in value.shape if isinstance(dimension, int)]


@pytest.mark.parametrize("form", ["int8", "attention"])
def test_polygraphy_comes_to_the_same_layers(make_model: Callable[..., Path], tmp_path: Path, form: str) -> None:
    model = make_model(form)
    ours = build_engine(model, find_target("a100"), BuildSettings(batch=BATCH, sparse=True)).layers
    command = [str(Path(sys.executable).with_name("polygraphy")), "convert", str(model), "--convert-to", "trt"]
    command += ["--strongly-typed", "--sparse-weights", "--compute-capabilities", "8.0", "-vvvvv"]
    command += ["--profiling-verbosity", "detailed", "-o", str(tmp_path / "theirs.plan")]
    inputs = [(str(value.name), sizes(value)) for value in load_model(model).graph.inputs]
    for option, size in (("min", BATCH.minimum), ("opt", BATCH.optimum), ("max", BATCH.maximum)):
        shapes = [f"{name}:[{','.join(map(str, (size, *rest)))}]" for name, rest in inputs]
        command += [f"--trt-{option}-shapes", *shapes]
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = [line.strip() for line in done.stdout.splitlines() if ", LayerType: " in line]
    theirs = tuple(layer_from_line(line) for line in lines)
    assert ours
    assert theirs == ours
