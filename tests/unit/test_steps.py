"""The exported graph against torch: what is said where they disagree."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest
import torch

from gpusq_deploy.artifacts.arch import ArchSpec, Preprocessing
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.checkpoint.checkpoint import Checkpoint
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.request import Reporter
from gpusq_deploy.steps import check_export

DOUBLED = "doubled (float[batch, 3, 4, 4] input) => (float[batch, 3, 4, 4] output) { output = Add(input, input) }"


class Times(torch.nn.Module):
    """The input by a factor, and noise that eval mode doesn't switch off."""

    def __init__(self, factor: float, noise: float) -> None:
        super().__init__()
        self.factor, self.noise = factor, noise

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Another answer at each call, unless `noise` is 0."""
        return images * self.factor + self.noise * torch.rand_like(images)


def checked(folder: Path, module: torch.nn.Module) -> tuple[float, list[str]]:
    path, said = folder / "doubled.onnx", list[str]()
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {DOUBLED}'), path)
    checkpoint = Checkpoint(
        file="m.pt",
        digest="",
        format="",
        arch=ArchSpec(source="factory", name="x:y", arguments={}),
        module=module.eval(),
        preprocessing=Preprocessing(channels=3, height=4, width=4, mean=(0,) * 3, std=(1,) * 3, origin="test"),
    )
    reporter = Reporter(say=said.append, progress=lambda _label, _done, _total: None)
    return check_export(checkpoint, path, BatchRange(minimum=1, optimum=2, maximum=4), reporter), said


def test_a_graph_that_agrees_is_said_to_and_one_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    difference, said = checked(tmp_path, Times(2, 0))
    assert difference <= 1e-6
    assert "agrees with torch" in said[0]
    with pytest.raises(GpusqError, match=r"something else than torch: relative difference 0\.333") as caught:
        checked(tmp_path, Times(3, 0))
    assert "--opset" in str(caught.value.hint)


def test_a_model_that_differs_from_itself_is_called_random_and_no_opset_is_proposed(tmp_path: Path) -> None:
    with pytest.raises(GpusqError, match="answers differently each time") as caught:
        checked(tmp_path, Times(2, 0.5))
    assert "--opset" not in str(caught.value.hint)
    assert "draws nothing" in str(caught.value.hint)
