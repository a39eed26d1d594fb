"""Calibration, evaluation, a session and infer.py feed ONNX Runtime one and the same tensor."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import tiny_models
from commands import run_main
from exported import run_python
from odd_photographs import of_odd_modes, photograph

import gpusq_deploy
from gpusq_deploy.cli.export import main as export
from gpusq_deploy.frontend.checkpoint.architecture import skeleton_from_arch
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor

pytestmark = pytest.mark.slow
Array = npt.NDArray[np.float32]
ARCH: dict[str, Any] = {"arch": f"timm:{tiny_models.NAME}", "arch_args": tiny_models.ARGUMENTS}
SHAPE = (3, 32, 32)


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], list[Array]]:
    """What is fed to ONNX Runtime while something runs: images, one by one."""
    real, found = onnxruntime.InferenceSession.run, list[Array]()

    def run(self: Any, names: Any, feeds: dict[str, Any], *rest: Any) -> Any:
        found.extend(each for array in feeds.values() if array.shape[1:] == SHAPE for each in array.astype(np.float32))
        return real(self, names, feeds, *rest)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", run)

    def listen(work: Callable[[], object]) -> list[Array]:
        found.clear()
        work()
        return list(found)

    return listen


def by_timm(path: Path) -> Array:
    data: Any = importlib.import_module("timm.data")  # it ships no types
    module = skeleton_from_arch(tiny_models.vit_spec())
    config = {**data.resolve_data_config({}, model=module), "input_size": SHAPE}
    (_, image) = next(found for found in of_odd_modes(path.parent).values() if found[0] == path)
    return array_from_tensor(data.create_transform(**config)(image))


@pytest.mark.parametrize("name", ["turned.jpg", "palette-one.png", "deep.png"])
def test_one_tensor(tmp_path: Path, name: str, fed: Callable[[Callable[[], object]], list[Array]]) -> None:
    photos, out = tmp_path / "photos", tmp_path / "model.gpusq"
    for label in ("odd", "other"):
        (photos / label).mkdir(parents=True)
    of_odd_modes(tmp_path)
    (photos / "odd" / name).write_bytes((tmp_path / name).read_bytes())
    photograph(111, 90).save(photos / "other" / "plain.png")
    wanted = by_timm(tmp_path / name)
    tiny_models.write_vit(tmp_path / "model.pt")
    calibrated = fed(
        lambda: gpusq_deploy.build(
            tmp_path / "model.pt", out=out, data=photos, precision="int8", targets=(), batch="1", **ARCH
        )
    )
    evaluated = fed(lambda: gpusq_deploy.evaluate([out], data=photos, runtime="onnxruntime"))
    with gpusq_deploy.open_bundle(out).session("onnxruntime") as session:
        ran = fed(lambda: session.run(photos / "odd" / name))
    for seen in (calibrated, evaluated, ran):
        assert min(np.abs(each - wanted).max() for each in seen) <= 1e-6
    exact = [{each.tobytes() for each in seen} for seen in (calibrated, evaluated, ran)]
    assert ran[0].tobytes() in set.intersection(*exact)
    if name == "deep.png":
        return  # infer.py refuses more than 8 bits a channel
    assert run_main(export, out, "--to", "onnx", "--out", tmp_path / "handed").code == 0
    done = run_python(tmp_path / "handed", photos / "odd" / name, "--save-input", tmp_path / "input.bin")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "input.bin").read_bytes() == ran[0].tobytes()
