"""Reconstruction against numpy's least squares, and what it promises: 2:4, never worse, a sentence where it can't."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
import transformers
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import array_from_tensor, weight_of
from gpusq_deploy.sparsity.pruning.block_chain import Block, block_chain, first_inputs
from gpusq_deploy.sparsity.pruning.input_moments import GramSums
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions
from gpusq_deploy.sparsity.pruning.whole_model import prune_oneshot
from gpusq_deploy.sparsity.reconstruction.by_gradient import means
from gpusq_deploy.sparsity.reconstruction.junctions import OUTPUT, find_junctions, linears_of
from gpusq_deploy.sparsity.reconstruction.one_block import Pair, Streams, stream_error
from gpusq_deploy.sparsity.reconstruction.plan import Data, ReconstructOptions
from gpusq_deploy.sparsity.reconstruction.reconstruct import Reconstruction, reconstruct
from gpusq_deploy.sparsity.reconstruction.refit import refit_kept


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vit() -> nn.Module:
    """Two blocks with LayerScale, whose gains differ by channel."""
    torch.manual_seed(0)
    module = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=64,
        depth=2,
        num_heads=2,
        num_classes=0,
        global_pool="",
        init_values=1e-5,
    )
    for name, value in module.named_parameters():
        if name.endswith("gamma"):
            value.data = 0.05 + random(len(value), seed=len(name)).abs()
    return module.eval().requires_grad_(requires_grad=False)


def layers_of(module: nn.Module) -> list[str]:
    untyped: Any = module  # named_modules() has a partly open type
    return [name for name, child in untyped.named_modules() if isinstance(child, nn.Linear) and name.count(".") > 1]


def pruned(module: nn.Module, layers: list[str], samples: torch.Tensor) -> nn.Module:
    return prune_oneshot(module, layers, samples, OneshotOptions()).module


def agreement(teacher: nn.Module, samples: torch.Tensor, module: nn.Module) -> tuple[float]:
    with torch.no_grad():
        return (-float((module(samples) - teacher(samples)).square().mean()),)


def rebuilt(
    pair: Pair, layers: list[str], *, passes: int = 2, gradient_steps: int = 0, scores: list[float] | None = None
) -> tuple[nn.Module, Reconstruction, list[str]]:
    """On 96 images, judged on 16 others, or as `scores` say."""
    told = None if scores is None else iter(scores)
    said: list[str] = []
    held_out = random(16, 3, 32, 32, seed=9)
    data = Data(
        images=random(96, 3, 32, 32, seed=8),
        held_out=held_out,
        quality=lambda module: agreement(pair.teacher, held_out, module) if told is None else (next(told),),
    )
    options = ReconstructOptions(passes=passes, gradient_steps=gradient_steps)
    module, report = reconstruct(pair, layers, data, options, said.append)
    return module, report, said


def pattern(module: nn.Module, layers: list[str]) -> torch.Tensor:
    return torch.cat([(module.get_parameter(f"{layer}.weight") != 0).flatten() for layer in layers])


def lstsq(x: torch.Tensor, y: torch.Tensor) -> npt.NDArray[np.float64]:
    """numpy's, float64."""
    left, right = (array_from_tensor(value).astype(np.float64) for value in (x, y))
    return np.asarray(np.linalg.lstsq(left, right, rcond=None)[0], dtype=np.float64)


def test_masked_least_squares_is_numpys_on_the_kept_columns() -> None:
    x, y = random(60, 12, seed=1) @ random(12, 12, seed=2) + 3, random(60, 5, seed=3) - 2
    kept = torch.tensor([True, False, False, True, False, True, True, False, True, True, False, False]).expand(5, 12)
    sums = GramSums()
    sums.add(x, y)
    weight, bias = refit_kept(random(5, 12) * kept, random(5), sums.moments(), damping=1e-9, steps=60)
    assert bias is not None
    columns = kept[0]
    design = torch.cat([x[:, columns], torch.ones(60, 1)], dim=1)
    wanted = lstsq(design, y)
    np.testing.assert_allclose(array_from_tensor(weight[:, columns]), wanted[:-1].T, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(array_from_tensor(bias), wanted[-1], rtol=5e-3, atol=5e-3)
    assert bool((weight[:, ~kept[0]] == 0).all())


def test_without_a_bias_the_fit_goes_through_zero_and_a_large_ridge_keeps_the_weights() -> None:
    x, y = random(60, 8, seed=1) + 3, random(60, 4, seed=3) - 2
    sums = GramSums()
    sums.add(x, y)
    start = random(4, 8, seed=5)
    weight, bias = refit_kept(start, None, sums.moments(), damping=1e-9, steps=60)
    assert bias is None
    np.testing.assert_allclose(array_from_tensor(weight), lstsq(x, y).T, rtol=2e-3, atol=2e-3)
    held, _ = refit_kept(start, None, sums.moments(), damping=1e7, steps=8)
    torch.testing.assert_close(held, start, rtol=1e-4, atol=1e-4)


def first_block(module: nn.Module, samples: torch.Tensor) -> tuple[Block, torch.Tensor]:
    chain = block_chain(module, samples[:1])
    assert chain is not None
    return chain.blocks[0], first_inputs(module, chain.blocks[0], samples[:1], 1)


def test_a_projection_joins_the_stream_with_the_gain_of_its_layer_scale() -> None:
    module = vit()
    joins = find_junctions(module, *first_block(module, random(1, 3, 32, 32)))
    assert list(joins) == [f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    first, last = joins["blocks.0.attn.proj"], joins["blocks.0.mlp.fc2"]
    assert first is not None
    assert last is not None
    assert (first.place, last.place) == ("blocks.0.norm2", OUTPUT)
    torch.testing.assert_close(first.gain, module.get_parameter("blocks.0.ls1.gamma"), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(last.gain, module.get_parameter("blocks.0.ls2.gamma"), rtol=1e-3, atol=1e-4)
    assert joins["blocks.0.attn.qkv"] is None


def test_it_is_nearer_than_the_start_and_the_last_pass_keeps_the_pattern() -> None:
    teacher = vit()
    layers = layers_of(teacher)
    start = pruned(teacher, layers, random(96, 3, 32, 32, seed=8))
    before = copy.deepcopy(start.state_dict())
    one, first, _ = rebuilt(Pair(teacher=teacher, student=start), layers, passes=1)
    two, second, said = rebuilt(Pair(teacher=teacher, student=start), layers)
    assert second.kept == "pass 2"
    assert second.passes[0].scores < first.passes[1].scores < second.passes[2].scores
    assert torch.equal(pattern(one, layers), pattern(two, layers))
    assert bool((pattern(two, layers).reshape(-1, 4).sum(dim=1) <= 2).all())
    assert [entry.block for entry in second.blocks] == ["blocks.0", "blocks.1"]
    assert all(entry.reconstructed < entry.pruned for entry in second.blocks)
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items()), (
        "the start is the user's"
    )
    assert len(said) == 4
    assert "pass 2 of 2, block 1 of 2: relative error " in said[2]


@pytest.mark.parametrize(("scores", "kept"), [([3.0, 2.0, 1.0], "pruned"), ([1.0, 3.0, 2.0], "pass 1")])
def test_the_best_on_held_out_images_is_the_result(scores: list[float], kept: str) -> None:
    teacher = vit()
    layers = layers_of(teacher)
    start = pruned(teacher, layers, random(96, 3, 32, 32, seed=8))
    module, report, _ = rebuilt(Pair(teacher=teacher, student=start), layers, scores=scores)
    assert report.kept == kept
    same = all(torch.equal(value, start.state_dict()[name]) for name, value in module.state_dict().items())
    assert same == (kept == "pruned")
    assert any("more images may help" in note for note in report.notes) == (kept == "pruned")


def test_trained_together_the_blocks_come_nearer_and_keep_the_pattern() -> None:
    teacher = vit()
    layers = layers_of(teacher)
    start = pruned(teacher, layers, random(96, 3, 32, 32, seed=8))
    one, _, _ = rebuilt(Pair(teacher=teacher, student=start), layers, passes=1)
    two, report, said = rebuilt(Pair(teacher=teacher, student=start), layers, passes=1, gradient_steps=40)
    assert [entry.name for entry in report.passes[2:]] == [f"trained, {share}%" for share in (25, 50, 75, 100)]
    assert report.kept.startswith("trained, ")
    assert max(entry.scores for entry in report.passes) > report.passes[1].scores
    assert torch.equal(pattern(one, layers), pattern(two, layers))
    assert not any(value.requires_grad for value in two.parameters())
    assert [line.split(":")[0] for line in said[2:]] == [
        f"training all blocks, step {step} of 40" for step in (10, 20, 30, 40)
    ]


def test_an_attention_s_own_projection_keeps_its_pattern_too() -> None:
    torch.manual_seed(0)
    teacher = VisionTransformer(32, 8, 2, 2, 32, 64).eval().requires_grad_(requires_grad=False)
    projections = [f"encoder.layers.encoder_layer_{block}.self_attention.in_proj" for block in (0, 1)]
    layers = [*layers_of(teacher), *projections]
    start = pruned(teacher, layers, random(96, 3, 32, 32, seed=8))
    module, report, _ = rebuilt(Pair(teacher=teacher, student=start), layers, passes=1, gradient_steps=3)
    assert [entry.name for entry in report.passes[2:]][-1] == "trained, 100%"
    weights = [weight_of(module, layer) for layer in layers]
    assert all(bool(((weight != 0).reshape(-1, 4).sum(dim=1) <= 2).all()) for weight in weights)
    assert any("as pruned" in note and projections[0] in note for note in report.notes)


def test_a_mean_of_weights_is_numpys_and_the_fit_repeats() -> None:
    teacher, other = vit(), vit()
    layers = layers_of(teacher)
    with torch.no_grad():
        other.get_parameter("blocks.0.mlp.fc1.weight").mul_(3)
    found = dict(means(teacher, other))
    name = "blocks.0.mlp.fc1.weight"
    before = array_from_tensor(teacher.get_parameter(name))
    np.testing.assert_allclose(array_from_tensor(found[0.25].get_parameter(name)), 1.5 * before, rtol=1e-6)
    assert torch.equal(found[1.0].get_parameter(name), other.get_parameter(name))
    start = pruned(teacher, layers, random(96, 3, 32, 32, seed=8))
    twice = [rebuilt(Pair(teacher=teacher, student=start), layers, passes=0, gradient_steps=3)[0] for _ in range(2)]
    assert all(torch.equal(*values) for values in zip(*(each.parameters() for each in twice), strict=True))


def swin() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=32,
        depths=(2, 2),
        num_heads=(2, 2),
        num_classes=0,
        global_pool="",
    )


@pytest.mark.slow
def test_a_swin_joins_across_a_grid_but_not_across_windows() -> None:
    module = swin().eval().requires_grad_(requires_grad=False)
    joins = find_junctions(module, *first_block(module, random(1, 3, 32, 32)))
    proj, last = joins["layers.0.blocks.0.attn.proj"], joins["layers.0.blocks.0.mlp.fc2"]
    assert proj is not None
    assert last is not None
    assert (proj.place, last.place) == ("layers.0.blocks.0.attn.proj_drop", "layers.0.blocks.1.norm1")


def dinov2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, layerscale_value=0.5
    )

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = transformers.Dinov2Model(config)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            tokens: torch.Tensor = self.body(pixels).last_hidden_state
            return tokens

    return Tokens()


@pytest.mark.slow
@pytest.mark.parametrize("make", [swin, dinov2])
def test_blocks_are_found_from_the_structure(make: type[nn.Module]) -> None:
    teacher = make().eval().requires_grad_(requires_grad=False)
    chain = block_chain(teacher, random(1, 3, 32, 32))
    assert chain is not None
    layers = [name for block in chain.blocks for name in linears_of(teacher, block)]
    start = pruned(teacher, layers, random(96, 3, 32, 32, seed=8))
    module, report, _ = rebuilt(Pair(teacher=teacher, student=start), layers)
    assert report.passes[0].scores <= max(done.scores for done in report.passes)
    assert [entry.block for entry in report.blocks] == [block.name for block in chain.blocks]
    assert not any("outside" in note for note in report.notes)
    assert bool((pattern(module, layers).reshape(-1, 4).sum(dim=1) <= 2).all())


def test_a_layer_outside_the_blocks_stays_as_pruned_and_is_named() -> None:
    teacher = nn.Sequential(vit(), nn.Linear(64, 64)).requires_grad_(requires_grad=False)
    layers = ["0.blocks.0.mlp.fc1", "1"]
    start = pruned(teacher, layers, random(8, 3, 32, 32, seed=8))
    module, report, _ = rebuilt(Pair(teacher=teacher, student=start), layers, passes=1)
    assert "outside the blocks, as pruned: 1" in report.notes
    assert torch.equal(module.get_parameter("1.weight"), start.get_parameter("1.weight"))


def test_a_model_without_blocks_is_refused_in_a_sentence() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3 * 32 * 32, 8)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.one(pixels.flatten(1))
            return answer

    teacher = Flat().requires_grad_(requires_grad=False)
    with pytest.raises(GpusqError, match="no repeated blocks") as caught:
        rebuilt(Pair(teacher=teacher, student=copy.deepcopy(teacher)), ["one"])
    assert "--stage prune" in str(caught.value)


def test_layers_that_lie_in_no_block_are_refused() -> None:
    teacher = nn.Sequential(vit(), nn.Linear(64, 64)).requires_grad_(requires_grad=False)
    with pytest.raises(GpusqError, match="none of the 1 2:4 layer lies in the 2 blocks"):
        rebuilt(Pair(teacher=teacher, student=copy.deepcopy(teacher)), ["1"])


def test_the_error_of_a_stream_is_relative_to_its_variance() -> None:
    dense = random(4, 3, 8) + 100
    assert stream_error(Streams(dense=dense, sparse=dense.clone())) == 0
    means = dense.reshape(-1, 8).mean(dim=0).expand_as(dense)
    assert stream_error(Streams(dense=dense, sparse=means)) == pytest.approx(1, rel=1e-5)
