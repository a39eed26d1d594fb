"""Reconstruction in INT8: rounding against a search of all codes, and what the passes promise."""

from __future__ import annotations

import copy
from typing import Any

import timm
import torch
from torch import nn

from gpusq_deploy.artifacts import load_recipe
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions
from gpusq_deploy.sparsity.pruning.whole_model import prune_oneshot
from gpusq_deploy.sparsity.reconstruction.int8 import Int8Reconstruction, reconstruct_int8
from gpusq_deploy.sparsity.reconstruction.one_block import Pair
from gpusq_deploy.sparsity.reconstruction.plan import Data, ReconstructOptions
from gpusq_deploy.sparsity.reconstruction.rounding import round_kept
from gpusq_deploy.sparsity.training.qat import fake_quantized, int8_layers, observed_scales, quantized_weight


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_in_four(weight: torch.Tensor) -> torch.Tensor:
    groups = weight.reshape(-1, 4)
    return groups.scatter(1, groups.abs().topk(2, dim=1, largest=False).indices, 0.0).view_as(weight)


def correlated(width: int) -> torch.Tensor:
    inputs = random(400, width, seed=1) @ random(width, width, seed=2)
    return inputs.T @ inputs / len(inputs)


def descended(weight: torch.Tensor, gram: torch.Tensor, sweeps: int) -> torch.Tensor:
    """One row after another, one weight after another: every code is tried, and the best of all 255 is taken."""
    wide, result = gram.double(), torch.zeros_like(weight)
    for row, values in enumerate(weight.double()):
        grid = torch.arange(-127, 128).double() * values.abs().max() / 127
        rounded = grid[(values[:, None] - grid).abs().argmin(dim=1)]
        for column in [*range(len(values))] * sweeps:
            if 0 < values[column].abs() < values.abs().max():
                tried = rounded.repeat(255, 1)
                tried[:, column] = grid
                rounded[column] = grid[(((tried - values) @ wide) * (tried - values)).sum(dim=1).argmin()]
        result[row] = rounded
    return result


def test_rounding_is_that_of_a_search_of_all_codes_and_loses_less_than_the_nearest() -> None:
    weight, gram = two_in_four(random(6, 72, seed=3)), correlated(72)
    rounded = round_kept(weight, gram, sweeps=2)
    torch.testing.assert_close(rounded, descended(weight, gram, 2), atol=1e-6, rtol=0)
    nearest = round_kept(weight, gram, sweeps=0)
    torch.testing.assert_close(nearest, quantized_weight(weight), atol=1e-7, rtol=0)
    errors = [(((other - weight) @ gram) * (other - weight)).sum(dim=1) for other in (rounded, nearest)]
    assert bool((errors[0] < errors[1]).all())
    assert float(errors[0].sum()) < 0.75 * float(errors[1].sum())


def test_a_rounded_weight_stays_what_it_is_in_the_graph_and_its_zeros_stay() -> None:
    weight = two_in_four(random(8, 64, seed=4))
    weight[3] = 0
    rounded = round_kept(weight, correlated(64))
    torch.testing.assert_close(quantized_weight(rounded), rounded, atol=1e-7, rtol=0)
    assert torch.equal(rounded.abs().amax(dim=1), weight.abs().amax(dim=1))
    assert not bool(rounded[weight == 0].any())


def vit() -> nn.Module:
    torch.manual_seed(0)
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=0,
        global_pool="",
    )  # fmt: skip
    return module.eval().requires_grad_(requires_grad=False)


def rebuilt(scores: list[float] | None = None) -> tuple[Pair, nn.Module, Int8Reconstruction, list[str], Any]:
    """On 96 images, scored on 16 others, or as `scores` say."""
    teacher, images, others = vit(), random(96, 3, 32, 32, seed=8), random(16, 3, 32, 32, seed=9)
    untyped: Any = teacher  # named_modules() has a partly open type
    layers = [name for name, child in untyped.named_modules() if isinstance(child, nn.Linear)]
    student = prune_oneshot(teacher, layers, images, OneshotOptions()).module
    scales = observed_scales(student, int8_layers(student, load_recipe(None)).calibrators, torch.split(images, 16))
    told, said = None if scores is None else iter(scores), list[str]()

    def quality(module: nn.Module) -> tuple[float]:
        if told is not None:
            return (next(told),)
        with torch.no_grad():
            return (-float((module(others) - teacher(others)).square().mean()),)

    data = Data(images=images, held_out=others, quality=quality)
    pair = Pair(teacher=teacher, student=student)
    before = copy.deepcopy(student.state_dict())
    module, report = reconstruct_int8(pair, scales, data, ReconstructOptions(), said.append)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    return pair, module, report, said, (scales, quality)


def test_in_int8_the_blocks_come_nearer_to_the_dense_ones() -> None:
    pair, module, report, said, (scales, quality) = rebuilt()
    assert report.kept
    assert report.reconstructed > report.rounded
    with fake_quantized(module, scales):
        assert quality(module) == report.reconstructed
    with fake_quantized(pair.student, scales):
        assert quality(pair.student) == report.rounded
    assert len(report.layers) == 8
    for layer in report.layers:
        weight = module.get_parameter(f"{layer}.weight")
        torch.testing.assert_close(quantized_weight(weight), weight, atol=1e-7, rtol=0)
        assert int((weight.reshape(-1, 4) != 0).sum(dim=1).max()) <= 2
    assert said[-1].startswith("INT8, block 2 of 2: relative error ")


def test_what_scores_no_better_is_left_as_it_was() -> None:
    pair, module, report, _, _ = rebuilt([0.5, 0.5])
    assert not report.kept
    before, after = pair.student.state_dict(), module.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())
