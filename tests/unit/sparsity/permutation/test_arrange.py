"""Channels put in order before pruning: the same function, more kept, by loops; misread modules are caught."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_families
import torch
from hypothesis import given, strategies as st
from tiny_models import images, vit

from gpusq_deploy.sparsity.permutation.arrange import arrange, input_power
from gpusq_deploy.sparsity.permutation.search import dealt_order

LAYERS = [f"blocks.{block}.{name}" for block in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


def kept_slowly(scores: torch.Tensor) -> float:
    """Share of [N, K] that 2:4 keeps."""
    rows = np.asarray(scores, dtype=np.float64)
    kept = sum(np.sort(row[start : start + 4])[2:].sum() for row in rows for start in range(0, len(row), 4))
    return float(kept / rows.sum())


def randomised() -> torch.nn.Module:
    """Biases that are all zero would hide one that stayed behind."""
    module = vit()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


@given(seed=st.integers(0, 999), segments=st.integers(1, 3), groups=st.integers(1, 6))
def test_channels_are_dealt_to_and_fro(seed: int, segments: int, groups: int) -> None:
    size = 4 * groups
    scores = np.random.default_rng(seed).random((segments * size, 3))
    order = [int(channel) for channel in dealt_order(torch.from_numpy(scores), size)]
    for segment in range(segments):
        here = range(segment * size, (segment + 1) * size)
        ranked = sorted(here, key=lambda channel: -scores[channel].sum())
        hands: list[list[int]] = [[] for _ in range(groups)]
        for place, channel in enumerate(ranked):
            turn, hand = divmod(place, groups)
            hands[hand if turn % 2 == 0 else groups - 1 - hand].append(channel)
        assert [channel for hand in hands for channel in hand] == order[here.start : here.stop]


@pytest.mark.parametrize("learnt", [False, True])
def test_more_is_kept_and_the_function_stays(learnt: bool) -> None:
    dense, batch = randomised(), torch.from_numpy(images(4))
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    arranged = arrange(dense, LAYERS, batch if learnt else None, batch)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert arranged.difference is not None
    assert arranged.difference < 1e-9
    with torch.no_grad():
        torch.testing.assert_close(arranged.module.double()(batch.double()), dense.double()(batch.double()))
    assert {item.channels.kind for item in arranged.permuted} >= {"hidden channels", "residual stream"}
    for item in arranged.permuted:
        assert item.kept[0] < item.kept[1]
        if not learnt and len(item.channels.readers) == 1:
            name = f"{item.channels.readers[0]}.weight"
            old, new = before[name].abs(), arranged.module.get_parameter(name).detach().abs()
            assert item.kept == pytest.approx((kept_slowly(old), kept_slowly(new)), rel=1e-5)


def test_input_power_is_the_mean_square_of_every_call() -> None:
    linear = torch.nn.Linear(4, 4, bias=False)
    module = torch.nn.Sequential(linear, linear)
    batch = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        second = linear(batch)
    expected = torch.cat([batch, second]).square().mean(dim=0)
    torch.testing.assert_close(input_power(module, ["0"], batch)["0"], expected)


class Misread(torch.nn.Module):
    """An MLP by its names, which scales each hidden channel by something that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)
        self.scale = torch.arange(1.0, 17.0)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[n, 8] to [n, 8]."""
        answer: torch.Tensor = self.fc2(self.fc1(values) * self.scale)
        return answer


def test_an_order_that_changes_the_function_is_taken_back() -> None:
    torch.manual_seed(0)
    dense = Misread().eval()
    arranged = arrange(dense, ["fc2"], None, torch.randn(2, 8))
    assert (arranged.permuted, arranged.difference) == ((), None)
    assert any("taken back" in item.reason for item in arranged.declined)
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in arranged.module.state_dict().items())


def test_readers_that_are_no_modules_are_left_out_of_what_is_learnt() -> None:
    """torchvision's stream is read by packed projections, which are never pruned."""
    dense, layers = tiny_families.torchvision_vit().eval(), ["mlp.0", "mlp.3"]
    names = [f"encoder.layers.encoder_layer_0.{name}" for name in layers]
    batch = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    arranged = arrange(dense, names, batch, batch)
    assert arranged.difference is not None
    assert arranged.difference < 1e-9
