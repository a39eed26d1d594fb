"""What the rules call free really is: permuted at random, the model answers the same; and what isn't is declined."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import timm
import timm.layers.mlp
import tiny_models
import torch

from gpusq_deploy.artifacts.repair import Channels
from gpusq_deploy.sparsity.permutation.free_channels import find_channels, permute_channels
from gpusq_deploy.sparsity.repair.equivalence import TensorRunner

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 8}


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Zero biases, unit norms and tiny scales would hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def vit(**changes: Any) -> torch.nn.Module:
    arguments: dict[str, Any] = VIT | changes
    return randomised(timm.create_model("vit_tiny_patch16_224", **arguments))


def torchvision_vit() -> torch.nn.Module:
    models = importlib.import_module("torchvision.models")
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
    return randomised(models.VisionTransformer(**sizes, num_classes=8))


def difference(module: torch.nn.Module, channels: Channels, size: int = 32) -> float:
    """Largest relative difference after a random permutation."""
    generator = torch.Generator().manual_seed(1)
    starts = range(0, channels.size, channels.segment)
    order = torch.cat([start + torch.randperm(channels.segment, generator=generator) for start in starts])
    state = module.state_dict()
    permuted = permute_channels(state, channels, order)
    assert any(not torch.equal(permuted[name], state[name]) for name in state)
    runner = TensorRunner(module, state, torch.randn(2, 3, size, size, generator=generator), ("", channels.place))
    return runner.difference(permuted, ("", channels.place))


MODELS = {
    "timm ViT": lambda: vit(),
    "layer scale, registers, mean": lambda: vit(
        init_values=0.1, reg_tokens=2, global_pool="avg", dynamic_img_size=True
    ),
    "norms of q and k": lambda: vit(qk_norm=True, scale_mlp_norm=True, scale_attn_norm=True, pre_norm=True),
    "packed gate": lambda: vit(mlp_layer=timm.layers.mlp.SwiGLUPacked),
    "gate": lambda: vit(mlp_layer=timm.layers.mlp.SwiGLU),
    "torchvision": lambda: torchvision_vit(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_all_three_kinds_are_free(name: str) -> None:
    module = MODELS[name]()
    found, _ = find_channels(module)
    kinds = [channels.kind for channels in found]
    assert kinds.count("hidden channels") == kinds.count("value channels") == 2, kinds
    assert kinds.count("residual stream") == 1
    for channels in found:
        assert difference(module, channels) < 1e-10, channels.place
        assert channels.segment == (16 if channels.kind == "value channels" else channels.size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224", "eva02_tiny_patch14_224"])
def test_other_vision_transformers(name: str) -> None:
    module = randomised(timm.create_model(name, img_size=56, num_classes=8))
    found, declined = find_channels(module)
    assert found
    assert [entry.kind for entry in declined if entry.place == "the model"] == ["residual stream"]
    for channels in found:
        assert difference(module, channels, 56) < 1e-10, channels.place


def test_readers_are_the_layers_whose_groups_the_order_decides() -> None:
    found, _ = find_channels(vit(depth=1))
    readers = {channels.kind: channels.readers for channels in found}
    assert readers["hidden channels"] == ("blocks.0.mlp.fc2",)
    assert readers["value channels"] == ("blocks.0.attn.proj",)
    assert readers["residual stream"] == ("blocks.0.attn.qkv", "blocks.0.mlp.fc1", "head")


def test_a_packed_projection_reads_the_stream_too() -> None:
    found, _ = find_channels(torchvision_vit())
    (stream,) = (channels for channels in found if channels.kind == "residual stream")
    layers = [f"encoder.layers.encoder_layer_{index}" for index in range(2)]
    inside = [f"{layer}.{name}" for layer in layers for name in ("self_attention.in_proj", "mlp.0")]
    assert stream.readers == (*inside, "heads.head")


def reasons(module: torch.nn.Module) -> dict[str, str]:
    return {f"{entry.kind} of {entry.place}": entry.reason for entry in find_channels(module)[1]}


def test_the_stream_is_declined_where_it_is_the_output() -> None:
    assert "no head reads it" in reasons(vit(num_classes=0))["residual stream of the model"]


def test_the_stream_is_declined_where_a_parameter_is_not_known() -> None:
    module = vit()
    module.register_parameter("temperature", torch.nn.Parameter(torch.ones(64)))
    assert "temperature" in reasons(module)["residual stream of the model"]


def test_heads_that_are_no_whole_groups_are_declined() -> None:
    said = reasons(vit(embed_dim=48, num_heads=8))
    assert "heads of 6" in said["value channels of blocks.0.attn"]


def test_shared_weights_are_declined() -> None:
    module = vit()
    blocks: Any = module.get_submodule("blocks")
    blocks[1].mlp.fc2.weight = blocks[0].mlp.fc2.weight
    said = reasons(module)
    assert "blocks.1.mlp.fc2.weight" in said["hidden channels of blocks.0.mlp"]
    assert said.keys() >= {"hidden channels of blocks.1.mlp", "residual stream of the model"}


class Strange(torch.nn.Module):
    """Called like an MLP, with something between that isn't the same for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(8, 16)
        self.gate = torch.nn.Linear(16, 16)
        self.fc2 = torch.nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.fc2(self.gate(self.fc1(x)))
        return answer


def test_a_child_that_no_rule_knows_is_declined() -> None:
    said = reasons(torch.nn.Sequential(Strange()))
    assert "gate.weight" in said["hidden channels of 0"]


def test_widths_that_do_not_fit_are_declined() -> None:
    module = Strange()
    module.fc1 = torch.nn.Linear(8, 24)
    assert "makes 24 channels" in reasons(torch.nn.Sequential(module))["hidden channels of 0"]


def test_the_tiny_model_of_the_other_tests_has_no_stranger() -> None:
    assert find_channels(tiny_models.vit())[1] == ()
