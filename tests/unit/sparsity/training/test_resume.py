"""A training that is stopped after any step and goes on ends where an uninterrupted one ends, to the bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from kept_samples import kept_samples
from kept_states import KeptState
from torch import nn

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.pruning.magnitude import apply_masks, magnitude_masks
from gpusq_deploy.sparsity.training.data.entries import EntrySamples
from gpusq_deploy.sparsity.training.distill import recover
from gpusq_deploy.sparsity.training.distributed import ALONE
from gpusq_deploy.sparsity.training.fingerprint import differences, digest_of_data, digest_of_tensors
from gpusq_deploy.sparsity.training.options import DistillOptions, EpochResult, StepResult
from gpusq_deploy.sparsity.training.pair import Distilled
from gpusq_deploy.sparsity.training.qat import InputScales, fake_quantized
from gpusq_deploy.sparsity.training.resume import Every, ResumeFolder, StageKeeper, folder_of
from gpusq_deploy.sparsity.training.samples import TrainingData
from gpusq_deploy.sparsity.training.tasks.classification import Classification

CLASSES = 4
LAYERS = ("blocks.0.0", "blocks.1.0", "blocks.2.0")
PIXELS = Preprocessing(channels=1, height=4, width=4, mean=(0.0,), std=(1.0,), origin="test")


class Drops(nn.Module):
    """Blocks with dropout and a BatchNorm: both remember or draw something at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        blocks = (nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Dropout(0.2)) for _ in range(3))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.blocks(self.norm(images.flatten(1))))
        return logits


def samples(count: int, seed: int) -> EntrySamples:
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count).astype(np.int64)
    return kept_samples(rng.standard_normal((count, 1, 4, 4)).astype(np.float32), labels, PIXELS)


DATA = TrainingData(
    train=samples(30, 1), validation=samples(10, 2), held_out=samples(10, 3), classes=tuple("abcd"), skipped=()
)


def pair() -> tuple[Distilled, InputScales]:
    torch.manual_seed(0)
    teacher = Drops().requires_grad_(requires_grad=False).eval()
    student = copy.deepcopy(teacher)
    masks = magnitude_masks(student, LAYERS)
    apply_masks(student, masks)
    scales = InputScales(logarithms={"head": nn.Parameter(torch.tensor(-3.0))})
    task = Classification()
    return Distilled(student=student, teacher=teacher, masks=masks, task=task, scales=scales.parameters()), scales


class StoppedError(Exception):
    pass


def kept_states(stop: int | None = None) -> KeptState:
    return KeptState(None, stop, StoppedError)


def trained(options: DistillOptions, keeper: KeptState) -> tuple[dict[str, torch.Tensor], float, list[EpochResult]]:
    distilled, scales = pair()
    told: list[EpochResult] = []
    with fake_quantized(distilled.student, scales):
        recover(distilled, DATA, options, told.append, keeper=keeper)
    return distilled.student.state_dict(), float(distilled.scales[0].detach()), told


def options(**others: Any) -> DistillOptions:
    usual = DistillOptions(epochs=2, learning_rate=3e-3, batch_size=8, seed=0)
    return msgspec.structs.replace(usual, **others)


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"optimizer": "sgd", "schedule": "constant", "weight_decay": 0.1},
        {"ema": 0.7, "warmup": 0.5},
        {"amp": "bf16"},
        {"amp": "fp16"},
        {"recompute": True},
    ],
    ids=str,
)
def test_stopped_after_any_step_it_ends_the_same_to_the_bit(others: dict[str, Any]) -> None:
    asked, whole = options(**others), kept_states()
    wanted, scale, results = trained(asked, whole)
    assert whole.saved == 2 * (4 + 1)  # four steps and the end of each of two epochs
    for stop in range(1, whole.saved) if "ema" in others else (2, 5):
        keeper = kept_states(stop)
        with pytest.raises(StoppedError):
            trained(asked, keeper)
        got, again, told = trained(asked, keeper)
        assert again == scale
        assert all(torch.equal(value, wanted[name]) for name, value in got.items())
        assert told == results[len(results) - len(told) :]


def test_a_state_depends_on_what_was_asked() -> None:
    """Else the test above would hold whatever a state lost."""
    (wanted, *_), (other, *_) = trained(options(), kept_states()), trained(options(ema=0.7), kept_states())
    assert not torch.equal(wanted["head.weight"], other["head.weight"])


def test_recomputed_blocks_give_the_same_weights_to_the_bit() -> None:
    (wanted, *_), (other, *_) = trained(options(), kept_states()), trained(options(recompute=True), kept_states())
    assert all(torch.equal(value, other[name]) for name, value in wanted.items())


def test_the_kept_student_and_the_best_are_2_4() -> None:
    keeper = kept_states(6)
    with pytest.raises(StoppedError):
        trained(options(ema=0.5), keeper)
    state = keeper.load()
    assert state is not None
    for tensors in (state["student"], state["best"]["tensors"]):
        for layer in LAYERS:
            assert int((tensors[f"{layer}.weight"].reshape(-1, 4) != 0).sum(dim=1).max()) == 2


def test_a_lower_rate_takes_over_where_it_goes_on() -> None:
    keeper = kept_states(2)
    with pytest.raises(StoppedError):
        trained(options(), keeper)
    last = keeper.load()
    assert last is not None
    fast, _, _ = trained(options(learning_rate=3e-3), kept_states())
    slow, _, _ = trained(options(learning_rate=1e-9), keeper)
    assert torch.allclose(slow["blocks.0.0.weight"], last["student"]["blocks.0.0.weight"], atol=1e-6)
    assert not torch.allclose(fast["blocks.0.0.weight"], last["student"]["blocks.0.0.weight"], atol=1e-6)


def test_a_state_that_isnt_finite_is_never_kept() -> None:
    keeper = kept_states()
    with pytest.raises(GpusqError, match=r"diverged: norm\.weight isn't finite"):
        trained(options(learning_rate=float("inf")), keeper)
    assert keeper.kept is None


def test_each_step_is_told_with_the_terms_of_its_loss() -> None:
    distilled, scales = pair()
    steps: list[StepResult] = []
    epochs: list[EpochResult] = []
    with fake_quantized(distilled.student, scales):
        recover(distilled, DATA, options(), epochs.append, told=steps.append)
    assert [(step.epoch, step.step, step.steps) for step in steps] == [
        (epoch, step, 4) for epoch in (1, 2) for step in (1, 2, 3, 4)
    ]
    sizes = (8, 8, 8, 6)
    mean = sum(n * (s.hard + 10 * s.soft + 5 * s.feature) for n, s in zip(sizes, steps[:4], strict=True)) / 30
    assert epochs[0].loss == pytest.approx(mean, rel=1e-5)
    assert all(step.rate > 0 for step in steps)


def folder(out: Path, **request: str) -> ResumeFolder:
    return ResumeFolder(out, {"model": "1", "--epochs": "3", **request}, Every(), ALONE)


def write_model(path: Path) -> None:
    path.write_bytes(b"model")


def test_a_folder_gives_back_what_was_written_to_the_same_request(tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    first = folder(out)
    assert not first.begin(resume=True)
    keeper = StageKeeper(first, "prune")
    keeper.save({"epoch": 3})
    left = folder_of(out) / ".training.pt.1234"
    left.write_bytes(b"half a sta")
    again = folder(out)
    assert again.begin(resume=True)
    assert not left.exists()
    assert StageKeeper(again, "prune").load() == {"epoch": 3}
    assert StageKeeper(again, "qat").load() is None
    again.finish(write_model, b"report")
    assert list(tmp_path.iterdir()) == [out]


def test_another_request_is_told_what_differs_and_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    folder(out).write("start", {"x": 1})
    other = folder(out, **{"model": "2", "--epochs": "5", "--dense": "a.*"})
    with pytest.raises(GpusqError) as caught:
        other.begin(resume=True)
    assert caught.value.what == "the interrupted run had another model; --epochs 3, not 5; --dense none, not a.*"
    same = folder(out)
    assert same.begin(resume=True)
    assert same.read("start") == {"x": 1}
    assert not other.begin(resume=False)
    assert other.read("start") is None
    kept = folder(out)
    assert kept.begin(resume=True)
    assert kept.read("start") == {"x": 1}, "until the other one writes"
    other.write("sparse", {"y": 2})
    assert sorted(path.name for path in folder_of(out).iterdir()) == ["request.json", "sparse.pt"]


@pytest.mark.parametrize("moved", [False, True])
def test_killed_at_its_very_end_a_run_is_over(tmp_path: Path, moved: bool) -> None:
    out = tmp_path / "model.pt"
    first = folder(out)
    first.write("start", {"x": 1})
    place = folder_of(out)
    (place / "result.pt").write_bytes(b"model")
    (place / "done.json").write_bytes(b"report")
    if moved:
        (place / "result.pt").replace(out)
    again = folder(out)
    assert again.begin(resume=True)
    assert again.report() == b"report"
    assert out.read_bytes() == b"model"
    assert list(tmp_path.iterdir()) == [out]


def test_a_damaged_state_is_told(tmp_path: Path) -> None:
    first = folder(tmp_path / "model.pt")
    first.write("start", {"x": 1})
    assert first.begin(resume=True)
    (folder_of(tmp_path / "model.pt") / "start.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(GpusqError, match="the state can't be read"):
        first.read("start")


def test_seconds_and_steps_say_when_a_state_is_due(tmp_path: Path) -> None:
    by_steps = StageKeeper(ResumeFolder(tmp_path / "a", {}, Every(steps=3), ALONE), "prune")
    assert [by_steps.due(epoch_ended=False) for _ in range(3)] == [False, False, True]
    by_steps.save({})
    assert [by_steps.due(epoch_ended=False) for _ in range(3)] == [False, False, True]
    assert by_steps.due(epoch_ended=True)
    always, never = (
        StageKeeper(ResumeFolder(tmp_path / "a", {}, Every(seconds=seconds), ALONE), "prune") for seconds in (0.0, 1e9)
    )
    assert always.due(epoch_ended=False)
    assert not never.due(epoch_ended=False)


def test_digests_tell_models_and_data_apart() -> None:
    one = {"a": torch.zeros(2, 3), "b": torch.tensor(1, dtype=torch.bfloat16)}
    assert digest_of_tensors(one) == digest_of_tensors({name: value.clone() for name, value in one.items()})
    two = torch.tensor(2, dtype=torch.bfloat16)
    for other in ({**one, "a": torch.zeros(3, 2)}, {**one, "b": two}, {"a": one["a"]}):
        assert digest_of_tensors(other) != digest_of_tensors(one)
    swapped = TrainingData(
        train=DATA.train, validation=DATA.held_out, held_out=DATA.validation, classes=DATA.classes, skipped=()
    )
    assert digest_of_data(DATA) == digest_of_data(DATA) != digest_of_data(swapped)
    assert differences({"model": "a"}, {"model": "a"}) == []


def test_batches_of_one_image_and_a_batch_norm_are_told() -> None:
    with pytest.raises(GpusqError, match="a BatchNorm has no variance of one image") as caught:
        trained(options(batch_size=1), kept_states())
    assert caught.value.place == "a batch of 1 for 1 process"
