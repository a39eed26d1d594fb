"""The weights that the 2:4 check sees, against torch's own modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from gpusq_deploy.checkpoint.tensors import array_from_tensor
from gpusq_deploy.checkpoint.weights import layer_weights, weights_in_file
from gpusq_deploy.errors import GpusqError

LINEARS = ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "head"]


def test_every_linear_and_conv_is_seen_in_order_with_its_own_weights() -> None:
    module = tiny_models.vit()
    weights = list(layer_weights(module))
    assert [weight.layer for weight in weights] == ["patch_embed.proj", *LINEARS]
    for weight in weights[1:]:
        np.testing.assert_array_equal(weight.rows, module.state_dict()[weight.tensor].numpy())


def test_the_patch_embedding_is_rows_over_channels() -> None:
    module = tiny_models.vit()
    conv = module.state_dict()["patch_embed.proj.weight"].numpy()
    seen = next(iter(layer_weights(module)))
    assert seen.kind == "patch_embed"
    assert seen.rows.shape == (64 * 8 * 8, 3)
    assert seen.rows[2 * 64 + 3 * 8 + 5].tolist() == conv[2, :, 3, 5].tolist()


@pytest.mark.parametrize(
    ("conv", "kind"),
    [
        (torch.nn.Conv2d(4, 4, 2, stride=2), "patch_embed"),
        (torch.nn.Conv2d(4, 4, 2, stride=1), "conv"),
        (torch.nn.Conv2d(4, 4, 1, stride=1), "conv"),
        (torch.nn.Conv2d(4, 4, 2, stride=2, groups=4), "conv"),
    ],
)
def test_a_patch_embedding_is_a_conv_whose_kernel_is_its_stride(conv: torch.nn.Conv2d, kind: str) -> None:
    assert [weight.kind for weight in layer_weights(torch.nn.Sequential(conv))] == [kind]


def test_half_precision_weights_are_seen_as_float32() -> None:
    layer = torch.nn.Linear(4, 4).bfloat16()
    rows = next(iter(layer_weights(torch.nn.Sequential(layer)))).rows
    np.testing.assert_array_equal(rows, array_from_tensor(layer.weight.detach().float()))


def test_a_state_dict_is_guessed_by_names_and_shapes(tmp_path: Path) -> None:
    path = tiny_models.write_vit(tmp_path / "model.pt")
    weights, record = weights_in_file(path, None)
    assert record is None
    assert [(weight.layer, weight.kind) for weight in weights] == [
        ("patch_embed.proj", "patch_embed"),
        *((name, "linear") for name in LINEARS),
    ]


def test_with_an_architecture_the_module_itself_is_looked_at(tmp_path: Path) -> None:
    path = tiny_models.write_vit(tmp_path / "model.pt")
    guessed, _ = weights_in_file(path, None)
    known, _ = weights_in_file(path, tiny_models.vit_spec())
    for one, other in zip(guessed, known, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
    with pytest.raises(GpusqError, match="don't fit"):
        weights_in_file(path, tiny_models.vit_spec(depth=2))
