"""The loss against its formulas, and that distillation recovers what pruning lost."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from kept_samples import kept_samples
from torch import nn

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.artifacts.recipe import recipe_from_toml
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.pruning.magnitude import apply_masks, magnitude_masks, prunable_layers
from gpusq_deploy.sparsity.training.data.entries import EntrySamples
from gpusq_deploy.sparsity.training.distill import later_blocks, later_outputs, recover
from gpusq_deploy.sparsity.training.losses import block_weights, feature_losses, soft_loss
from gpusq_deploy.sparsity.training.options import DistillOptions, EpochResult
from gpusq_deploy.sparsity.training.pair import Distilled
from gpusq_deploy.sparsity.training.samples import TrainingData
from gpusq_deploy.sparsity.training.scoring import predict, score
from gpusq_deploy.sparsity.training.tasks.classification import Classification

CLASSES = 10
TASK = Classification()
OPTIONS = DistillOptions(epochs=12, learning_rate=3e-3, batch_size=32, seed=0)
PIXELS = Preprocessing(channels=1, height=4, width=4, mean=(0.0,), std=(1.0,), origin="test")


# The toy's K is 16, which no tensor core would gain by.
SMALL_TOO = recipe_from_toml(
    'schema = "gpusq.recipe/1"\nname = "small too"\ndescription = "x"\nbase = "static_wi8_ai8"\n'
    '[[rule]]\nname = "linear"\nleast_k = 0\n',
    place="test",
)


class Blocks(nn.Module):
    """An MLP in blocks that end in a head, on [N, 1, 4, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(3)))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.blocks(images.flatten(1)))
        return logits


def samples(count: int, seed: int, *, labelled: bool = True) -> EntrySamples:
    """Points around one seeded centre per class: separable, but not by one weight."""
    centres = np.random.default_rng(99).standard_normal((CLASSES, 16))
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    images = (centres[labels] + 0.4 * rng.standard_normal((count, 16))).astype(np.float32)
    return kept_samples(images.reshape(count, 1, 4, 4), labels, PIXELS, labelled=labelled)


def training_data(*, labelled: bool = True) -> TrainingData:
    return TrainingData(
        train=samples(256, 1, labelled=labelled),
        validation=samples(64, 3, labelled=labelled),
        held_out=samples(128, 2, labelled=labelled),
        classes=tuple("abcdefghij") if labelled else (),
        skipped=(),
    )


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(0)
    module = Blocks()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    points = samples(256, 1).batch(range(256))
    assert points.targets is not None
    labels = torch.tensor(points.targets)
    for _ in range(80):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(module(points.images), labels))
        optimizer.step()
    return module.requires_grad_(requires_grad=False).eval()


def pruned_pair(teacher: nn.Module) -> Distilled:
    student = copy.deepcopy(teacher)
    masks = magnitude_masks(student, prunable_layers(student, SMALL_TOO).pruned)
    apply_masks(student, masks)
    return Distilled(student=student, teacher=teacher, masks=masks, task=TASK)


def ignore(_result: EpochResult) -> None:
    pass


def test_hard_loss_is_the_mean_negative_log_likelihood_of_the_label() -> None:
    student = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    teacher = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    logs = (torch.exp(student) / torch.exp(student).sum(dim=1, keepdim=True)).log()
    labels, shares = torch.tensor([1, 2]), torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.0, 1.0]])
    predicted = TASK.as_targets(TASK.predictions(teacher))
    cases: list[tuple[Sequence[Any], torch.Tensor]] = [
        ([1, 2], torch.eye(3)[labels]),
        (predicted, torch.eye(3)[[0, 1]]),
        (list(shares), shares),
    ]
    for targets, wanted in cases:
        found = TASK.losses(nn.Identity(), student, teacher, targets)
        torch.testing.assert_close(found.hard, -(wanted * logs).sum(dim=1).mean())
        assert found.agree.tolist() == [False, False]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_loss_is_kl_divergence_at_a_temperature(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 7, generator=generator) for _ in range(2))
    p, q = (torch.softmax(logits / temperature, dim=1) for logits in (teacher, student))
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    torch.testing.assert_close(soft_loss(student, teacher, temperature), expected)
    assert float(soft_loss(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-6)


def test_feature_loss_counts_only_the_samples_that_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.randn(4, 3, 2, generator=generator) for _ in range(2)] for _ in range(2))
    agree = torch.tensor([True, False, True, False])
    terms: list[torch.Tensor] = []
    for student, teacher in zip(ours, theirs, strict=True):
        rows = teacher[[0, 2]]
        error = ((student[[0, 2]] - rows) ** 2).mean()
        terms.append(error / ((rows - rows.mean()) ** 2).mean())
    torch.testing.assert_close(feature_losses(ours, theirs, agree), torch.stack([terms[0], terms[1]]))


def test_feature_loss_is_zero_without_agreement_or_blocks() -> None:
    features = [torch.ones(2, 3)]
    assert feature_losses(features, [torch.zeros(2, 3)], torch.tensor([False, False])) == 0
    assert feature_losses([], [], torch.tensor([True])).shape == (0,)


def test_later_blocks_are_the_later_half_and_their_outputs_the_latest() -> None:
    module = Blocks()
    assert [id(block) for block in later_blocks(module)] == [id(block) for block in module.blocks[1:]]
    assert later_blocks(nn.Linear(2, 2)) == ()
    images = torch.randn(2, 3, 1, 4, 4)
    with later_outputs(module) as outputs:
        module(images[0])
        module(images[1])
        assert [tuple(output.shape) for output in outputs] == [(3, 16), (3, 16)]
        torch.testing.assert_close(module.head(outputs[1]), module(images[1]))
        latest = outputs[1]
    module(images[0])
    assert outputs[1] is latest, "the hooks are gone"


def test_predictions_keep_the_module_s_mode_and_cover_a_last_short_batch(teacher: nn.Module) -> None:
    points = samples(10, 5)
    teacher.train()
    images = points.batch(range(10)).images
    assert torch.equal(torch.tensor(predict(TASK, teacher, points, 4)), teacher(images).argmax(dim=1))
    assert teacher.training
    teacher.eval()


@pytest.mark.parametrize("labelled", [True, False])
def test_distillation_recovers_what_pruning_lost(teacher: nn.Module, labelled: bool) -> None:
    data, truth = training_data(labelled=labelled), samples(128, 2)
    pair = pruned_pair(teacher)
    reference = predict(TASK, teacher, truth, 32)
    before = score(TASK, pair.student, truth, reference, 32)
    epochs: list[EpochResult] = []
    recover(pair, data, OPTIONS, epochs.append)
    after = score(TASK, pair.student, truth, reference, 32)
    assert before.labelled is not None
    assert after.labelled is not None
    assert after.labelled > before.labelled + 0.05
    assert after.labelled > 0.97
    assert [result.epoch for result in epochs] == list(range(1, 13))
    assert epochs[-1].loss < epochs[0].loss
    assert epochs[-1].score == (after.labelled if labelled else None)
    assert epochs[-1].agreement == after.agreement


def test_the_loss_is_the_weighted_sum_of_its_terms(teacher: nn.Module) -> None:
    pair, data, results = pruned_pair(teacher), training_data(), list[EpochResult]()
    points = data.train.batch(range(256))
    assert points.targets is not None
    with later_outputs(pair.student) as ours, later_outputs(teacher) as theirs:
        student, wanted = pair.student(points.images), teacher(points.images)
        agree = student.argmax(dim=1) == wanted.argmax(dim=1)
        assert 0 < int(agree.sum()) < 256
        terms = (
            1.0 * nn.functional.cross_entropy(student, torch.tensor(points.targets)),
            10.0 * soft_loss(student, wanted, 2.0),
            5.0 * feature_losses(ours, theirs, agree).mean(),
        )
    assert all(float(term) > 0.01 for term in terms)
    options = DistillOptions(epochs=1, learning_rate=1e-9, batch_size=256, seed=0)
    recover(pair, data, options, results.append)
    assert results[0].loss == pytest.approx(float(sum(terms)), rel=1e-4)


def test_a_start_that_no_epoch_beats_is_kept(teacher: nn.Module) -> None:
    student = copy.deepcopy(teacher)
    before = copy.deepcopy(student.state_dict())
    pair = Distilled(student=student, teacher=teacher, masks={}, task=TASK)
    ruinous = DistillOptions(epochs=2, learning_rate=3.0, batch_size=32, seed=0)
    found = recover(pair, training_data(labelled=False), ruinous, ignore)
    assert (found.epoch, found.start, found.kept) == (0, 1.0, 1.0)
    assert found.last < 0.9
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_blocks_that_lost_more_before_weigh_less() -> None:
    assert block_weights([0.1, 0.2, 0.4]) == pytest.approx([12 / 7, 6 / 7, 3 / 7])


def test_training_keeps_the_pruned_weights_zero_and_changes_the_others(teacher: nn.Module) -> None:
    pair = pruned_pair(teacher)
    before = copy.deepcopy(pair.student.state_dict())
    teacher_before = copy.deepcopy(teacher.state_dict())
    recover(pair, training_data(), OPTIONS, ignore)
    for layer, mask in pair.masks.items():
        weight = pair.student.get_parameter(f"{layer}.weight")
        assert torch.equal(weight != 0, mask)
        assert not torch.equal(weight, before[f"{layer}.weight"])
    assert not pair.student.training
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, teacher_before[name])


def test_a_seed_repeats_to_the_bit_and_another_one_does_not(teacher: nn.Module) -> None:
    results: list[torch.Tensor] = []
    for seed in (0, 0, 1):
        pair = pruned_pair(teacher)
        torch.rand(seed + len(results))  # the global generator's state must not matter
        options = DistillOptions(epochs=2, learning_rate=1e-3, batch_size=32, seed=seed)
        recover(pair, training_data(), options, ignore)
        results.append(pair.student.get_parameter("head.weight"))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_global_random_state_is_left_alone(teacher: nn.Module) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    recover(
        pruned_pair(teacher),
        training_data(),
        DistillOptions(epochs=1, learning_rate=1e-3, batch_size=64, seed=0),
        ignore,
    )
    assert torch.equal(torch.rand(3), expected)


def test_no_epochs_leave_the_pruned_model(teacher: nn.Module) -> None:
    pair = pruned_pair(teacher)
    before = copy.deepcopy(pair.student.state_dict())
    recover(pair, training_data(), DistillOptions(epochs=0, learning_rate=1e-3, batch_size=32, seed=0), ignore)
    assert all(torch.equal(value, before[name]) for name, value in pair.student.state_dict().items())


def test_divergence_is_an_error_that_says_what_to_do(teacher: nn.Module) -> None:
    options = DistillOptions(epochs=3, learning_rate=math.inf, batch_size=32, seed=0)
    with pytest.raises(GpusqError, match="training diverged") as caught:
        recover(pruned_pair(teacher), training_data(), options, ignore)
    assert caught.value.hint is not None
    assert "--lr" in caught.value.hint


def test_an_output_that_is_no_logits_is_refused() -> None:
    module = nn.ModuleDict({"pixels": nn.Linear(4, 4)})
    module.forward = module["pixels"].forward
    with pytest.raises(GpusqError, match=r"the model returns \[4, 1, 4, 4\]"):
        predict(TASK, module, samples(8, 0), 4)
