"""A slice of the GPU suite on the GPU at hand. Skipped, with the reason, where none answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpusq_deploy.artifacts.base import json_from_value
from gpusq_deploy.benchmarks.gpu.cases import GemmCase, all_cases
from gpusq_deploy.benchmarks.gpu.prepare import make, plan_and_record
from gpusq_deploy.benchmarks.gpu.products import measured
from gpusq_deploy.benchmarks.gpu.runs import Ground
from gpusq_deploy.benchmarks.gpu.values import Finding, Way, Ways
from gpusq_deploy.engines.backend_choice import why_not

pytestmark = pytest.mark.gpu

CASES = [case for case in all_cases(models=("ViT-S",), batches=(8,)) if case.layer == "proj"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_a_product_agrees_with_integer_arithmetic(tmp_path: Path, case: GemmCase) -> None:
    refusal = why_not("tensorrt-rtx")
    if refusal is not None:
        pytest.skip(f"tensorrt-rtx can't run engines here: {refusal}")
    way = Way(backend="tensorrt-rtx", capability="CURRENT", graph=True, names=True)
    (tmp_path / "ways.json").write_bytes(json_from_value(Ways(ways=(way,))))
    make(case, Ground(tmp_path, tmp_path, float("inf")))
    found = measured(case, plan_and_record(tmp_path, case.file, way)[0], way, Finding(step="products", name=case.name))
    assert not found.why_not
    assert found.samples_ms
    error = found.number("error")
    assert error is not None
    # A code by rounding, or FP16's precision of the largest value.
    assert error < (0.01 if case.output == "fp16" else 1.5)
