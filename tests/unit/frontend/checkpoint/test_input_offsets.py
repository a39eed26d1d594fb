"""What inputs are quantised about, moved out of the layers of files that the producers' libraries made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import producers
import pytest
import torch

from gpusq_deploy.frontend.checkpoint.input_offsets import with_offsets
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"


def run(checkpoint: Any) -> Any:
    return lambda: producers.answers(checkpoint.module, producers.images())


def test_the_model_is_the_same_and_its_ranges_are_those_of_all_256_codes() -> None:
    """Reference: the module as it was, whose weights are on their grids already."""
    loaded = load_checkpoint(FIXTURES / "pt2e_x86_wider.pt2", arch=producers.WIDER)
    before = producers.answers(loaded.module, producers.images())
    moved = with_offsets(loaded, run(loaded))
    torch.testing.assert_close(producers.answers(moved.module, producers.images()), before, rtol=1e-4, atol=1e-5)
    assert set(loaded.quantizers.inputs) == {*loaded.ranges}
    assert not moved.quantizers.inputs
    scales = {layer: found.scale for layer, found in loaded.quantizers.inputs.items()}
    assert moved.ranges == pytest.approx({layer: 127 * scale for layer, scale in scales.items()})
    assert all(moved.ranges[layer] < loaded.ranges[layer] for layer in moved.ranges)


def test_an_offset_goes_into_the_bias_with_the_weight_on_its_grid() -> None:
    loaded = load_checkpoint(FIXTURES / "modelopt_offsets.pt", arch=producers.WIDER)
    layer = "blocks.0.mlp.fc1"
    module: Any = loaded.module.get_submodule(layer)
    offset: Any = loaded.quantizers.inputs[layer].offset
    bias = module.bias.detach().clone()
    amax = loaded.quantizers.grids[layer].amax[:, None]
    weight = torch.fake_quantize_per_channel_affine(
        module.weight, amax[:, 0] / 127, torch.zeros(len(amax), dtype=torch.int32), 0, -128, 127
    )
    with_offsets(loaded, run(loaded))
    torch.testing.assert_close(module.bias, bias + weight @ offset.flatten(), rtol=1e-5, atol=1e-6)


def test_a_convolution_that_pads_and_an_offset_for_each_token_stay() -> None:
    loaded = load_checkpoint(FIXTURES / "pt2e_x86_wider.pt2", arch=producers.WIDER)
    conv: Any = loaded.module.get_submodule("patch_embed.proj")
    conv.padding = (1, 1)
    assert set(with_offsets(loaded, run(loaded)).quantizers.inputs) == {"patch_embed.proj"}
    tokens = load_checkpoint(FIXTURES / "modelopt_affine.pt", arch=producers.WIDER)
    assert with_offsets(tokens, run(tokens)) is tokens


def test_a_layer_that_is_not_called_as_a_module_is_left_alone() -> None:
    """As the out_proj of nn.MultiheadAttention, or the qkv of timm's BEiT."""
    loaded = load_checkpoint(FIXTURES / "pt2e_x86_wider.pt2", arch=producers.WIDER)
    layer = "head"
    head: Any = loaded.module.get_submodule(layer)
    bias = head.bias.detach().clone()

    def without_the_head() -> None:
        untyped: Any = loaded.module
        untyped.forward_features(producers.images())

    moved = with_offsets(loaded, without_the_head)
    assert set(moved.quantizers.inputs) == {layer}
    assert moved.ranges[layer] == loaded.ranges[layer]
    assert torch.equal(head.bias, bias)
