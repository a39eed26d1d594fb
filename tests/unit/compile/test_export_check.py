"""The exported graph against torch: what is said where they disagree."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest
import torch

from gpusq_deploy.artifacts.arch import ArchSpec, Preprocessing
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.compile.export_check import check_export, sizes_to_check
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import Checkpoint
from gpusq_deploy.progress import Reporter

DOUBLED = "doubled (float[batch, 3, 4, 4] input) => (float[batch, 3, 4, 4] output) { output = Add(input, input) }"


class Times(torch.nn.Module):
    """The input by a factor, and noise that eval mode doesn't switch off."""

    def __init__(self, factor: float, noise: float) -> None:
        super().__init__()
        self.factor, self.noise = factor, noise

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Another answer at each call, unless `noise` is 0."""
        return images * self.factor + self.noise * torch.rand_like(images)


RANGE = BatchRange(minimum=1, optimum=2, maximum=4)


def checked(
    folder: Path, module: torch.nn.Module, *, batch: BatchRange = RANGE, text: str = DOUBLED
) -> tuple[float, list[str]]:
    path, said = folder / "doubled.onnx", list[str]()
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {text}'), path)
    checkpoint = Checkpoint(
        file="m.pt",
        digest="",
        format="",
        arch=ArchSpec(source="factory", name="x:y", arguments={}),
        module=module.eval(),
        preprocessing=Preprocessing(channels=3, height=4, width=4, mean=(0,) * 3, std=(1,) * 3, origin="test"),
    )
    reporter = Reporter(say=said.append, progress=lambda _label, _done, _total: None)
    return check_export(checkpoint, path, batch, reporter), said


def test_a_graph_that_agrees_is_said_to_and_one_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    difference, said = checked(tmp_path, Times(2, 0))
    assert difference <= 1e-6
    assert said[0].endswith(
        "agrees with torch to 0.0e+00 (relative) at batch 1, 2 and 3; larger batches, up to 4, were not run"
    )
    with pytest.raises(GpusqError, match=r"something else than torch: relative difference 0\.333") as caught:
        checked(tmp_path, Times(3, 0))
    assert "--opset" in str(caught.value.hint)


def test_a_model_that_differs_from_itself_is_called_random_and_no_opset_is_proposed(tmp_path: Path) -> None:
    with pytest.raises(GpusqError, match="answers differently each time") as caught:
        checked(tmp_path, Times(2, 0.5))
    assert "--opset" not in str(caught.value.hint)
    assert "draws nothing" in str(caught.value.hint)


class Branching(torch.nn.Module):
    """Twice the input; but three times at one batch size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * (3 if len(images) == self.size else 2)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_branch_on_the_batch_size_is_refused_by_that_size(tmp_path: Path, size: int) -> None:
    batch = BatchRange(minimum=1, optimum=8, maximum=32)
    with pytest.raises(GpusqError, match=rf"^at batch {size}, the exported graph computes something else") as caught:
        checked(tmp_path, Branching(size), batch=batch)
    others = {1: "3 and 8", 3: "1 and 8", 8: "1 and 3"}[size]
    assert f"at batch {others} they agree" in str(caught.value)
    assert str(caught.value.place).endswith(f"batch {size}")


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        ((1, 8, 32), (1, 3, 8)),
        ((1, 1, 1), (1,)),
        ((8, 8, 8), (8,)),
        ((1, 64, 512), (1, 3, 8)),
        ((16, 64, 512), (16,)),
        ((2, 2, 2), (2,)),
        ((1, 2, 2), (1, 2)),
        ((4, 6, 8), (4, 6)),
    ],
)
def test_an_export_is_checked_at_small_batches_of_the_range(
    batch: tuple[int, int, int], sizes: tuple[int, ...]
) -> None:
    least, best, most = batch
    assert sizes_to_check(BatchRange(minimum=least, optimum=best, maximum=most)) == sizes


def test_a_graph_that_the_exporter_fixed_to_one_batch_is_refused_with_the_way_out(tmp_path: Path) -> None:
    fixed = DOUBLED.replace("float[batch,", "float[2,")
    with pytest.raises(GpusqError, match="takes batch 2 alone, and 1:2:4 was asked for") as caught:
        checked(tmp_path, Times(2, 0), text=fixed)
    assert "--batch" in str(caught.value.hint)


def test_a_batch_that_torch_cannot_run_is_named(tmp_path: Path) -> None:
    class Pairs(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images + images[[0, 1]][:1] - images[:1]

    with pytest.raises(GpusqError, match="torch can't run the model on 1 sample: ") as caught:
        checked(tmp_path, Pairs())
    assert "--batch" in str(caught.value.hint)


def test_an_axis_that_squeeze_drops_at_batch_1_is_said_and_no_error(tmp_path: Path) -> None:
    class Squeezing(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return (2 * images).squeeze()

    _, said = checked(tmp_path, Squeezing())
    assert "at batch 1 torch answers [3, 4, 4], the graph [1, 3, 4, 4]" in said[0]


def test_integers_of_an_export_are_held_against_torchs_own(tmp_path: Path) -> None:
    class Largest(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.argmax(1)

    text = "largest (float[batch, 3, 4, 4] input) => (int64[batch, 4, 4] output)"
    text += " { output = %s<axis = 1, keepdims = 0>(input) }"
    assert checked(tmp_path, Largest(), text=text % "ArgMax")[0] == 0
    with pytest.raises(GpusqError, match="of the integers differ"):
        checked(tmp_path, Largest(), text=text % "ArgMin")


class Rest(torch.nn.Module):
    """The mean of each sample's normalised values, which is zero but for rounding; times a factor."""

    def __init__(self, factor: float = 1) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.factor * torch.nn.functional.layer_norm(100 * images, images.shape[1:]).mean((1, 2, 3))


# The same sums in another order.
REST = """rest (float[batch, 3, 4, 4] input) => (float[batch] output)
<float[48] ones = {ONES}, float hundred = {100.0}, int64[2] flat = {0, -1}, int64[1] last = {1}> {
  scaled = Mul(input, hundred)
  rows = Reshape(scaled, flat)
  norm = LayerNormalization<axis = 1>(rows, ones)
  output = ReduceMean<keepdims = 0>(norm, last)
}""".replace("ONES", ", ".join(["1.0"] * 48))


def test_an_answer_that_is_rounding_alone_is_as_exact_as_what_it_is_the_rest_of(tmp_path: Path) -> None:
    difference, said = checked(tmp_path, Rest(), text=REST)
    assert difference < 1e-4
    assert "agrees with torch" in said[0]


def test_a_small_answer_is_still_held_against_itself(tmp_path: Path) -> None:
    """Small because of its factor, and not as a rest of larger numbers."""
    text = DOUBLED.replace("{ output = Add(input, input)", "<float f = {2e-9}> { output = Mul(input, f)")
    assert checked(tmp_path, Times(2e-9, 0), text=text)[0] < 1e-6
    with pytest.raises(GpusqError, match="something else than torch"):
        checked(tmp_path, Times(2.001e-9, 0), text=text)
