"""The weights that the 2:4 check sees, against torch's own modules."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tiny_models
import torch

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint, save_checkpoint, stored_weights
from gpusq_deploy.frontend.checkpoint.macs import count_macs
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.frontend.checkpoint.weights import layer_weights, weights_in_file

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


class Attentive(torch.nn.Module):
    """A nn.MultiheadAttention over four tokens, its keys and values of another width where `kdim` says so."""

    def __init__(self, kdim: int | None = None) -> None:
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(8, 2, kdim=kdim, vdim=kdim, batch_first=True)
        self.kdim = kdim or 8

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[n, 4, 8] to [n, 4, 8]."""
        other = values.repeat(1, 1, self.kdim // 8)
        answer: torch.Tensor = self.attn(values, other, value=other, need_weights=False)[0]
        return answer


@pytest.mark.parametrize("kdim", [None, 16])
def test_the_projections_that_an_attention_holds_itself_are_seen_and_counted(kdim: int | None, tmp_path: Path) -> None:
    module = Attentive(kdim)
    inputs = {"attn.in_proj": (24, 8)}
    if kdim is not None:
        inputs = {"attn.q_proj": (8, 8), "attn.k_proj": (8, 16), "attn.v_proj": (8, 16)}
    shapes = inputs | {"attn.out_proj": (8, 8)}
    weights = list(layer_weights(module))
    assert {weight.layer: weight.rows.shape for weight in weights} == shapes
    assert {weight.kind for weight in weights} == {"linear"}
    for weight in weights:
        np.testing.assert_array_equal(weight.rows, module.state_dict()[weight.tensor].numpy())
    layers = {weight.tensor: module.get_submodule(weight.layer.rpartition(".")[0]) for weight in weights[:-1]}
    counted = count_macs(module, cast("Any", layers), (4, 8))
    assert counted == {weight.tensor: 4 * np.prod(weight.rows.shape) for weight in weights}
    torch.save(Attentive(kdim).state_dict(), tmp_path / "m.pt")
    guessed = weights_in_file(tmp_path / "m.pt", None).layers
    assert {weight.layer: weight.rows.shape for weight in guessed} == shapes


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
    weights, record, *_ = weights_in_file(path, None)
    assert record is None
    assert [(weight.layer, weight.kind) for weight in weights] == [
        ("patch_embed.proj", "patch_embed"),
        *((name, "linear") for name in LINEARS),
    ]


def test_with_an_architecture_the_module_itself_is_looked_at(tmp_path: Path) -> None:
    path = tiny_models.write_vit(tmp_path / "model.pt")
    guessed = weights_in_file(path, None).layers
    known = weights_in_file(path, tiny_models.vit_spec()).layers
    for one, other in zip(guessed, known, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
    with pytest.raises(GpusqError, match="don't fit"):
        weights_in_file(path, tiny_models.vit_spec(depth=2))


def file_behind(tensor: torch.Tensor) -> str | None:
    """The file that is mapped where the tensor's values are."""
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        span, *rest = line.split(maxsplit=5)
        first, end = (int(part, 16) for part in span.split("-"))
        if first <= tensor.data_ptr() < end:
            return rest[4] if len(rest) > 4 else None
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped where")
@pytest.mark.parametrize("describes_itself", [False, True])
def test_with_an_architecture_the_weights_stay_where_they_are_in_the_file(
    tmp_path: Path, describes_itself: bool
) -> None:
    path, module = tmp_path / "model.pt", tiny_models.vit()
    if describes_itself:
        preprocessing = load_checkpoint(tiny_models.write_vit(path), arch=tiny_models.vit_spec()).preprocessing
        save_checkpoint(path, module, arch=tiny_models.vit_spec(), preprocessing=preprocessing)
    else:
        torch.save(module.state_dict(), path)
    stored = stored_weights(path, arch=None if describes_itself else tiny_models.vit_spec())
    assert {parameter.device.type for parameter in stored.skeleton.parameters()} == {"meta"}
    assert {file_behind(value) for value in stored.state.values()} == {str(path)}
    seen = weights_in_file(path, None if describes_itself else tiny_models.vit_spec()).layers
    for one, other in zip(seen, layer_weights(module), strict=True):
        assert (one.layer, one.kind) == (other.layer, other.kind)
        np.testing.assert_array_equal(one.rows, other.rows)


def test_weights_are_seen_in_the_type_that_they_are_stored_in(tmp_path: Path) -> None:
    path = tmp_path / "half.pt"
    torch.save({name: value.half() for name, value in tiny_models.vit().state_dict().items()}, path)
    weights = weights_in_file(path, tiny_models.vit_spec()).layers
    assert {weight.rows.dtype.name for weight in weights} == {"float16"}


@pytest.mark.parametrize("name", ["blocks.0.mlp.fc1.weight", "norm.bias"])
def test_one_weight_that_is_not_finite_is_named(tmp_path: Path, name: str) -> None:
    path, state = tmp_path / "bad.pt", tiny_models.vit().state_dict()
    state[name] = torch.full_like(state[name], float("nan"))
    torch.save(state, path)
    weights = weights_in_file(path, tiny_models.vit_spec()).layers
    with pytest.raises(GpusqError, match="are NaN") as caught:
        list(weights)
    assert name in str(caught.value.place)


def parametrised() -> torch.nn.Module:
    """A Linear whose weight is computed, and so is no tensor of the file."""
    module: Any = torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 4)))
    module.gpusq_preprocessing = {"channels": 1, "height": 1, "width": 8, "mean": [0.0], "std": [1.0]}
    return cast("torch.nn.Module", module)


def looks_at_its_weights() -> torch.nn.Module:
    """A constructor that fails where there is no memory behind the weights."""
    layer = torch.nn.Linear(8, 4)
    assert layer.weight.sum().item() < 1e9
    return layer


@pytest.mark.parametrize("factory", [parametrised, looks_at_its_weights])
def test_models_that_need_their_memory_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: Callable[[], torch.nn.Module]
) -> None:
    path, module = tmp_path / "model.pt", factory()
    torch.save(module.state_dict(), path)
    monkeypatch.setitem(sys.modules, "factories_of_this_test", SimpleNamespace(make=factory))
    (weight,), *_ = weights_in_file(path, ArchSpec(source="factory", name="factories_of_this_test:make", arguments={}))
    (expected,) = layer_weights(module)
    assert (weight.layer, weight.tensor) == (expected.layer, expected.tensor)
    np.testing.assert_allclose(weight.rows, expected.rows, rtol=1e-6)


def test_the_share_of_flops_is_known_where_the_architecture_is(tmp_path: Path) -> None:
    path, module = tiny_models.write_vit(tmp_path / "model.pt"), tiny_models.vit()
    outputs: dict[str, int] = {}

    def hook_for(name: str) -> Any:
        def hook(_module: torch.nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            outputs[name] = output.numel()

        return hook

    for name in ("patch_embed.proj", *LINEARS):
        module.get_submodule(name).register_forward_hook(hook_for(name))
    with torch.no_grad():
        module(torch.from_numpy(tiny_models.images(1)))
    known = {weight.layer: weight.macs for weight in weights_in_file(path, tiny_models.vit_spec())[0]}
    sizes = {name: module.get_parameter(f"{name}.weight")[0].numel() for name in outputs}
    assert known == {name: outputs[name] * sizes[name] for name in outputs}
    assert {weight.macs for weight in weights_in_file(path, None)[0]} == {0}


class Undecided(torch.nn.Module):
    """Looks at its values, which shapes alone don't have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[n, 4] to [n, 4]."""
        answer: torch.Tensor = self.layer(values)
        return answer if float(values.sum()) > 0 else values


def test_a_model_that_looks_at_its_values_counts_nothing() -> None:
    module = Undecided()
    assert not count_macs(module, {"layer.weight": module.layer}, (4,))


def test_a_conv_says_how_many_kernel_positions_its_rows_have() -> None:
    conv = torch.nn.Conv2d(8, 6, (3, 2))
    (weight,) = layer_weights(torch.nn.Sequential(conv))
    assert (len(weight.rows), weight.positions) == (36, 6)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped where")
def test_a_loaded_modules_weights_stay_where_they_are_in_the_file(tmp_path: Path) -> None:
    path = tiny_models.write_vit(tmp_path / "model.pt")
    module = load_checkpoint(path, arch=tiny_models.vit_spec()).module
    assert {file_behind(parameter) for parameter in module.parameters()} == {str(path)}
    assert {parameter.requires_grad for parameter in module.parameters()} == {False}


def test_a_loaded_module_computes_in_float32_whatever_the_file_holds(tmp_path: Path) -> None:
    path, state = tmp_path / "half.pt", tiny_models.vit().state_dict()
    torch.save({name: value.half() for name, value in state.items()}, path)
    loaded = load_checkpoint(path, arch=tiny_models.vit_spec()).module.state_dict()
    for name, value in loaded.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].half().float())
