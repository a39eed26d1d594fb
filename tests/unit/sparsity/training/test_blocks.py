"""Blocks that are found by structure: those that the families' own classes name, in the order in which they run."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import pytest
import timm
import tiny_families
import torch
from torch import nn

from gpusq_deploy.artifacts import ArchSpec
from gpusq_deploy.frontend import example_input, module_from_arch, named_modules
from gpusq_deploy.sparsity.training.blocks import first_tensor, repeated_blocks
from gpusq_deploy.sparsity.training.distill import later_outputs
from gpusq_deploy.sparsity.training.losses import feature_losses

# The classes that the families' authors call a layer or a block of a transformer.
CLASSES = re.compile(
    r"(Block|SwinTransformerBlock|SwinTransformerV2Block|SwinLayer|ViTLayer|SegformerLayer|EncoderBlock"
    r"|(Deformable)?Detr(Encoder|Decoder)Layer)"
)
LATER = {
    "swin": ["layers.0.blocks.1"],
    "transformers-swin": [f"swin.encoder.layers.{place}" for place in ("2.blocks.0", "2.blocks.1", "3.blocks.0")],
    "upernet-swin": [f"backbone.swin.encoder.layers.{place}" for place in ("2.blocks.0", "2.blocks.1", "3.blocks.0")],
    "segformer": ["segformer.stages.1.blocks.0"],
    "detr": ["model.encoder.layers.0", "model.decoder.layers.1"],
    "deformable-detr": ["model.encoder.layers.0", "model.decoder.layers.1"],
    "torchvision-swin": ["features.1.1"],
    "torchvision-vit": ["encoder.layers.encoder_layer_0"],
}


@pytest.mark.parametrize("family", tiny_families.FAMILIES)
def test_blocks_are_those_that_the_family_names_in_the_order_of_their_calls(family: str) -> None:
    checkpoint, called = tiny_families.checkpoint(family), list[str]()

    def note(name: str, _block: nn.Module, _inputs: Any, output: Any) -> None:
        hidden = first_tensor(output)
        assert hidden is not None
        assert hidden.ndim > 2
        assert len(hidden) == 2
        called.append(name)

    named = [name for name, child in named_modules(checkpoint.module) if CLASSES.fullmatch(type(child).__name__)]
    handles = [checkpoint.module.get_submodule(name).register_forward_hook(partial(note, name)) for name in named]
    with torch.no_grad():
        checkpoint.module(example_input(checkpoint, 2))
    for handle in handles:
        handle.remove()
    found = repeated_blocks(checkpoint.module)
    assert called
    assert list(found.all) == called
    if family in LATER:
        assert list(found.later) == LATER[family]


@pytest.mark.parametrize(("name", "model_type"), [("Dinov2Model", "dinov2"), ("BeitModel", "beit")])
def test_other_transformers_encoders(name: str, model_type: str) -> None:
    config: dict[str, Any] = {
        "model_type": model_type,
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    found = repeated_blocks(
        module_from_arch(ArchSpec(source="transformers", name=name, arguments={"config": json.dumps(config)}))
    )
    assert len(found.all) == 3
    assert found.later == found.all[1:]


@pytest.mark.parametrize("family", ["transformers-swin", "detr"])
def test_features_of_a_model_that_is_not_the_teacher_differ_in_its_later_blocks(family: str) -> None:
    checkpoint = tiny_families.checkpoint(family)
    images = example_input(checkpoint, 2)
    later = repeated_blocks(checkpoint.module).later
    with torch.no_grad(), later_outputs(checkpoint.module) as outputs:
        checkpoint.module(images)
        first = list(outputs)
        checkpoint.module(images.flip(0))
        losses = feature_losses(list(outputs), first, torch.tensor([True, True]))
        same = feature_losses([output.flip(0) for output in outputs], first, torch.tensor([True, True]))
    assert losses.shape == (len(later),)
    assert bool((losses > 1e-6).all())
    torch.testing.assert_close(same, torch.zeros(len(later)), atol=1e-6, rtol=0)


def test_a_convolutional_model_and_a_head_of_linears_have_none() -> None:
    assert repeated_blocks(timm.create_model("resnet18", num_classes=3)).all == ()
    head = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert repeated_blocks(head).all == ()


def test_a_wrapper_around_a_model_and_its_head_keeps_the_model_s_blocks() -> None:
    inner = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2)
    head = nn.ModuleDict({"norm": nn.LayerNorm(8), "first": nn.Linear(8, 8), "second": nn.Linear(8, 2)})
    found = repeated_blocks(nn.Sequential(inner, head))
    assert found.all == ("0.blocks.0", "0.blocks.1", "0.blocks.2")
    assert found.later == ("0.blocks.1", "0.blocks.2")


def test_blocks_without_a_normalisation_are_the_children_of_one_class() -> None:
    module = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(4)))
    assert repeated_blocks(module) == (("0", "1", "2", "3"), ("2", "3"))
