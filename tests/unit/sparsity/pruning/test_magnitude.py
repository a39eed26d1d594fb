"""Which layers are pruned, which weights are kept, and that they stay zero."""

from __future__ import annotations

import pytest
import torch
from tiny_models import vit
from torch import nn

from gpusq_deploy.artifacts.recipe import load_recipe
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.pruning.magnitude import apply_masks, magnitude_masks, prunable_layers

DEFAULT = load_recipe(None)


def violations(weight: torch.Tensor) -> int:
    """Groups of four with more than two non-zeros, counted one by one."""
    rows, columns = weight.shape
    count = 0
    for row in range(rows):
        for start in range(0, columns, 4):
            count += sum(float(weight[row, column]) != 0 for column in range(start, start + 4)) > 2
    return count


class Decoder(nn.Module):
    """Names and kinds that are easy to get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.body = nn.Conv2d(8, 8, 3)
        self.multihead_attn = nn.Linear(32, 8)
        self.attention = nn.MultiheadAttention(32, 1)
        self.mlp = nn.ModuleDict({"fc": nn.Linear(32, 8), "odd": nn.Linear(34, 8), "talk": nn.Linear(4, 4)})
        self.fc = nn.Linear(8, 4)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))


def reasons(module: nn.Module, *dense: str, convolutions: bool = False) -> dict[str, str]:
    choice = prunable_layers(module, DEFAULT, dense, convolutions=convolutions)
    return {entry.layer: entry.reason for entry in choice.dense}


def test_a_vit_is_pruned_but_for_its_head_and_patch_embedding() -> None:
    choice = prunable_layers(vit(), DEFAULT)
    assert choice.pruned == ("blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2")
    assert {entry.layer for entry in choice.dense} == {"patch_embed.proj", "head"}


def test_each_dense_layer_says_why() -> None:
    found = reasons(Decoder())
    assert set(found) == {"stem", "body", "mlp.odd", "mlp.talk", "fc", "head.0", "head.1"}
    assert found["mlp.odd"] == "K = 34 is not a multiple of 4"
    assert found["mlp.talk"].startswith("K = 4 is less than 32")
    assert "convolution" in found["stem"]
    assert found["fc"].startswith("recipe static_wi8_ai8: classifier heads")
    assert found["head.0"] == found["fc"]


def test_attention_is_no_head_and_an_inner_fc_is_no_output_layer() -> None:
    assert prunable_layers(Decoder(), DEFAULT).pruned == (
        "multihead_attn",
        "attention.in_proj",
        "attention.out_proj",
        "mlp.fc",
    )


def test_convolutions_are_pruned_where_their_channels_allow() -> None:
    found = reasons(Decoder(), convolutions=True)
    assert "body" not in found
    assert found["stem"] == "K = 3 is not a multiple of 4"


def test_a_pattern_leaves_layers_dense_and_is_named() -> None:
    found = reasons(Decoder(), "mlp.*")
    assert found["mlp.fc"] == "asked for by --dense mlp.*"


def test_a_pattern_without_a_layer_is_refused_with_near_names() -> None:
    with pytest.raises(GpusqError, match="matches no weighted layer") as caught:
        prunable_layers(Decoder(), DEFAULT, ("multihead_atn",))
    assert caught.value.hint is not None
    assert "multihead_attn" in caught.value.hint


def test_nothing_to_prune_is_an_error() -> None:
    with pytest.raises(GpusqError, match=r"nothing to prune: head: recipe static_wi8_ai8: classifier heads"):
        prunable_layers(nn.ModuleDict({"head": nn.Linear(8, 8)}), DEFAULT)
    with pytest.raises(GpusqError, match="no Linear layers"):
        prunable_layers(nn.ReLU(), DEFAULT)


def test_masks_keep_the_two_largest_of_each_four() -> None:
    module = nn.ModuleDict({"a": nn.Linear(8, 2, bias=False)})
    weight = torch.tensor([[1.0, -4, 2, 3, 0, 0, 0, 1], [5, 5, 5, 5, -1, 2, -3, 4]])
    module.get_parameter("a.weight").data.copy_(weight)
    apply_masks(module, magnitude_masks(module, ["a"]))
    expected = [[0.0, -4, 0, 3, 0, 0, 0, 1], [5, 5, 0, 0, 0, 0, -3, 4]]
    assert module.get_parameter("a.weight").tolist() == expected


def test_pruned_layers_are_2_4_and_dense_ones_are_untouched() -> None:
    module = vit()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    pruned = prunable_layers(module, DEFAULT).pruned
    apply_masks(module, magnitude_masks(module, pruned))
    for name, value in module.state_dict().items():
        if name.removesuffix(".weight") in pruned:
            assert violations(before[name]) > 0
            assert violations(value) == 0
            kept = value != 0
            assert torch.equal(value[kept], before[name][kept])
            assert kept.double().mean() == 0.5
        else:
            assert torch.equal(value, before[name])


def test_a_convolution_is_2_4_along_its_channels_at_each_kernel_position() -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"conv": nn.Conv2d(8, 3, (2, 5))})
    apply_masks(module, magnitude_masks(module, ["conv"]))
    weight = module.get_parameter("conv.weight").detach()
    for row in range(2):
        for column in range(5):
            assert violations(weight[:, :, row, column]) == 0
    assert (weight != 0).double().mean() == 0.5


def test_the_mask_survives_steps_of_an_optimiser_with_momentum() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 2))
    masks = magnitude_masks(module, ["0"])
    apply_masks(module, masks)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    start = module.get_parameter("0.weight").detach().clone()
    revived = 0
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(module(torch.randn(8, 16)).square().mean())
        optimizer.step()
        revived += violations(module.get_parameter("0.weight").detach())
        apply_masks(module, masks)
        assert violations(module.get_parameter("0.weight").detach()) == 0
    assert revived > 0
    assert not torch.equal(module.get_parameter("0.weight").detach(), start)
