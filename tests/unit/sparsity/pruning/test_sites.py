"""The projections of a nn.MultiheadAttention: their data against torch's own result, and their pruning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import weight_of
from gpusq_deploy.sparsity.permutation.arrange import input_power
from gpusq_deploy.sparsity.pruning.input_moments import GramSums
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions, solve_layer
from gpusq_deploy.sparsity.pruning.sites import site_of
from gpusq_deploy.sparsity.pruning.whole_model import prune_oneshot

WIDTH = 16


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(**changes: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, 2, batch_first=True, **changes).eval().requires_grad_(requires_grad=False)
    for name, value in module.named_parameters():
        if name.endswith("bias"):
            value.copy_(random(len(value), seed=len(name)))
    return module


class Model(nn.Module):
    """Tokens [n, T, 16] look at their neighbours; `ways` of giving an attention its operands."""

    def __init__(self, way: str, **changes: Any) -> None:
        super().__init__()
        self.way, self.attn = way, attention(**changes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.way == "self":
            found = self.attn(tokens, tokens, tokens, need_weights=False)
        elif self.way == "named":
            found = self.attn(tokens, value=tokens, key=tokens)
        else:
            found = self.attn(tokens + 1, tokens + 1, tokens[..., : self.attn.vdim])
        answer: torch.Tensor = found[0]
        return answer


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "self": ("self", {}),
    "named": ("named", {}),
    "positions": ("positions", {}),
    "narrow values": ("positions", {"vdim": 8, "kdim": WIDTH}),
    "no bias": ("self", {"bias": False}),
}


def layers_of(module: nn.Module) -> list[str]:
    names = ("in_proj", "q_proj", "k_proj", "v_proj")
    held = [f"attn.{name}" for name in names if getattr(module.get_submodule("attn"), f"{name}_weight") is not None]
    return [*held, "attn.out_proj"]


@pytest.mark.parametrize("name", MODELS)
def test_the_data_of_the_projections_give_what_torch_gives(name: str) -> None:
    """softmax(q kᵀ / √d) v and out_proj, computed from what each site reads and returns."""
    way, changes = MODELS[name]
    module, tokens = Model(way, **changes), random(3, 5, WIDTH, seed=1)
    made: dict[str, list[torch.Tensor]] = {}
    read: dict[str, torch.Tensor] = {}

    def hook(_child: nn.Module, args: Any, named: Any, output: Any) -> None:
        for layer in layers_of(module):
            site = site_of(module, layer)
            made[layer] = site.outputs(module, args, named, output)
            read[layer] = site.reads(module, args, named)[0].inputs

    before = {key: value.clone() for key, value in module.state_dict().items()}
    handle = module.attn.register_forward_hook(hook, with_kwargs=True)
    wanted = module(tokens)
    handle.remove()
    parts = torch.cat([part for layer in layers_of(module)[:-1] for part in made[layer]], dim=-1)
    query, key, value = (part.reshape(3, 5, 2, -1).transpose(1, 2) for part in parts.chunk(3, dim=-1))
    context = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(read["attn.out_proj"], context)
    projection = module.attn.out_proj
    torch.testing.assert_close(functional.linear(context, projection.weight, projection.bias), wanted)
    assert torch.equal(made["attn.out_proj"][0], wanted)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["magnitude", "activation", "second-order"])
@pytest.mark.parametrize("sequential", [True, False])
def test_every_projection_is_pruned_by_each_method(name: str, method: Any, sequential: bool) -> None:
    way, changes = MODELS[name]
    module, tokens = Model(way, **changes), random(32, 5, WIDTH, seed=2)
    result = prune_oneshot(
        module, layers_of(module), tokens, OneshotOptions(method=method, sequential=sequential, token_share=1)
    )
    for layer in layers_of(module):
        groups = weight_of(result.module, layer).reshape(-1, 4)
        assert int((groups != 0).sum(dim=1).max()) == 2
    assert all(layer.note is None for layer in result.report.layers)
    assert all((layer.error is None) == (method == "magnitude") for layer in result.report.layers)


def test_it_is_the_solution_for_a_linear_of_the_same_rows_and_data() -> None:
    module, tokens, options = Model("positions"), random(32, 5, WIDTH, seed=3), OneshotOptions(token_share=1)
    got = prune_oneshot(module, ["attn.in_proj"], tokens, options).module
    weight, bias = got.get_parameter("attn.in_proj_weight"), got.get_parameter("attn.in_proj_bias")
    for part, inputs in enumerate((tokens + 1, tokens + 1, tokens)):
        rows, sums = slice(part * WIDTH, (part + 1) * WIDTH), GramSums()
        sums.add(inputs)
        wanted = solve_layer(module.attn.in_proj_weight[rows], module.attn.in_proj_bias[rows], sums.moments(), options)
        torch.testing.assert_close(weight[rows], wanted.weight)
        assert wanted.bias is not None
        torch.testing.assert_close(bias[rows], wanted.bias)


def test_second_order_loses_less_than_magnitude_in_an_attention() -> None:
    module, tokens = Model("self"), random(64, 6, WIDTH, seed=4) @ random(WIDTH, WIDTH, seed=5)
    other = random(64, 6, WIDTH, seed=6) @ random(WIDTH, WIDTH, seed=5)
    errors = [
        float(
            (
                prune_oneshot(module, layers_of(module), tokens, OneshotOptions(method=method)).module(other)
                - module(other)
            )
            .square()
            .mean()
        )
        for method in ("second-order", "magnitude")
    ]
    assert errors[0] < 0.6 * errors[1]


def test_layers_of_torch_s_encoder_are_reached_in_eval_mode_too() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True, dropout=0.0)
    module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval().requires_grad_(requires_grad=False)
    names = [
        f"layers.{index}.{name}" for index in (0, 1) for name in ("self_attn.in_proj", "self_attn.out_proj", "linear1")
    ]
    tokens = random(16, 5, WIDTH, seed=7)
    result = prune_oneshot(module, names, tokens, OneshotOptions(token_share=1))
    assert all(layer.note is None for layer in result.report.layers)
    power = input_power(module, ["layers.0.self_attn.in_proj"], tokens)
    torch.testing.assert_close(power["layers.0.self_attn.in_proj"], tokens.flatten(0, 1).square().mean(dim=0))


def test_what_is_no_such_layer_is_refused() -> None:
    module = Model("self")
    for layer in ("attn.q_proj", "attn.nothing", "attn"):
        with pytest.raises(GpusqError, match=r"no such layer|takes Linear layers"):
            site_of(module, layer)
