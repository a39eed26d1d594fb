"""ONNX files as subjects: any batch they take, and a digest that knows their weights wherever they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny_models
import torch

from gpusq_deploy.artifacts import BatchRange
from gpusq_deploy.benchmarks.accuracy.subject import find_subjects
from gpusq_deploy.calibration import SessionModule
from gpusq_deploy.engines import open_session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import preprocessing_of, save_checkpoint

SPEC = tiny_models.vit_spec()


def written(path: Path, *, static: bool = False) -> Path:
    ir.save(tiny_models.exported_vit(static=static).model, path)
    return path


@pytest.mark.parametrize("count", [1, 4, 6, 9])
@pytest.mark.parametrize(
    ("static", "batch"), [(True, None), (False, None), (False, BatchRange(minimum=2, optimum=4, maximum=5))]
)
def test_images_are_run_in_batches_that_the_model_takes(
    tmp_path: Path, count: int, static: bool, batch: BatchRange | None
) -> None:
    file, images = written(tmp_path / "m.onnx", static=static), torch.from_numpy(tiny_models.images(count))
    module = SessionModule(open_session(file, "onnxruntime"), None, batch, "m")
    with torch.no_grad():
        wanted = tiny_models.vit()(images)
    torch.testing.assert_close(module(images), wanted, rtol=1e-3, atol=1e-3)


def test_the_digest_is_of_the_weights_beside_the_file_too(tmp_path: Path) -> None:
    model: Any = onnx.load(written(tmp_path / "m.onnx"))
    big = tmp_path / "big.onnx"
    onnx.save(model, big, save_as_external_data=True, location="big.weights", size_threshold=1024)

    def digest(path: Path) -> str:
        (found,) = find_subjects((path,), "onnxruntime", SPEC, None)
        return found.digest

    first = digest(big)
    assert first == digest(big) != digest(tmp_path / "m.onnx")
    weights = bytearray((tmp_path / "big.weights").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "big.weights").write_bytes(weights)
    assert digest(big) != first


def test_an_onnx_file_is_described_by_another_model_of_its_input(tmp_path: Path) -> None:
    file = written(tmp_path / "m.onnx")
    module = tiny_models.vit()
    save_checkpoint(tmp_path / "m.pt", module, arch=SPEC, preprocessing=preprocessing_of(SPEC, module))
    with pytest.raises(GpusqError, match="doesn't say how an image becomes its input"):
        find_subjects((file,), "onnxruntime", None, None)
    checkpoint, model = find_subjects((tmp_path / "m.pt", file), "onnxruntime", None, None)
    assert model.preprocessing == checkpoint.preprocessing
    assert model.digest != checkpoint.digest
    assert np.prod(model.sample_shape) == 3 * 32 * 32
