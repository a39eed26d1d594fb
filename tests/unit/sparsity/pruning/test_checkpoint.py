"""Pruning a checkpoint before it is compiled: which layers, on which samples, and what is said of the others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gpusq_deploy.artifacts.arch import ArchSpec, Preprocessing
from gpusq_deploy.artifacts.recipe import Recipe, load_recipe, recipe_from_toml
from gpusq_deploy.artifacts.sparsity import SparsityRecord
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import Checkpoint
from gpusq_deploy.sparsity.pruning.checkpoint import PRUNE_SAMPLES, Pruning, prune_checkpoint
from gpusq_deploy.sparsity.pruning.magnitude import prunable_layers

ALL = 'schema = "gpusq.recipe/1"\nname = "all"\ndescription = "x"\n[[rule]]\nreason = "everything"'
NONE = ALL + "\nsparse = false"


@dataclass
class Counted:
    """Noise that remembers which samples were asked for."""

    count: int
    name: str = "counted"
    synthetic: bool = False
    asked: list[int] = field(default_factory=list[int])

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> npt.NDArray[np.float32]:
        self.asked.append(index)
        return np.random.default_rng(index).standard_normal((3, 2, 2), dtype=np.float32)


def checkpoint(*, record: SparsityRecord | None = None) -> Checkpoint:
    """Convolutions with K = 3 and K = 8, a Linear with K = 24, and one with K = 6, which isn't a multiple of 4."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 1),
        torch.nn.Conv2d(8, 6, 1),
        torch.nn.Flatten(),
        torch.nn.Linear(24, 6),
        torch.nn.Linear(6, 8),
    )
    return Checkpoint(
        file="model.pt",
        digest="",
        format="",
        arch=ArchSpec(source="factory", name="x:y", arguments={}),
        module=module.eval().requires_grad_(False),
        preprocessing=Preprocessing(channels=3, height=2, width=2, mean=(0, 0, 0), std=(1, 1, 1), origin="test"),
        sparsity=record,
        ranges={"3": 1.0},
    )


def recipe(text: str = ALL) -> Recipe:
    return recipe_from_toml(text, place="test")


def test_what_cannot_be_pruned_stays_as_it_is_and_is_said() -> None:
    dense, said = checkpoint(), list[str]()
    result = prune_checkpoint(dense, recipe(), Pruning("activation"), Counted(8), said.append)
    assert result.sparsity is not None
    assert result.sparsity.layers == ("3",)
    before, after = dense.module.state_dict(), result.module.state_dict()
    assert int((after["3.weight"].reshape(-1, 4) != 0).sum(1).max()) == 2
    assert int((before["3.weight"] != 0).sum()) == 24 * 6
    assert all(torch.equal(before[name], after[name]) for name in ("0.weight", "1.weight", "4.weight", "4.bias"))
    assert "1 stays dense: --prune takes Linear layers only" in said
    assert "4 stays dense: K = 6 is not a multiple of 4" in said
    assert dict(result.ranges) == {}
    assert any("1 activation ranges" in remark for remark in result.remarks)


class Attentive(torch.nn.Module):
    """Two by two pixels are four tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attn = torch.nn.Linear(3, 8), torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = torch.nn.Linear(8, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 3, 2, 2] to [n, 4, 8]."""
        tokens = self.embed(images.flatten(2).transpose(1, 2))
        answer: torch.Tensor = self.fc(self.attn(tokens, tokens, tokens)[0])
        return answer


def test_an_attentions_packed_projection_is_pruned_too() -> None:
    dense, said = replace(checkpoint(), module=Attentive().eval().requires_grad_(False)), list[str]()
    result = prune_checkpoint(dense, recipe(), Pruning("magnitude"), None, said.append)
    assert result.sparsity is not None
    assert result.sparsity.layers == ("attn.in_proj", "attn.out_proj", "fc")
    assert int((result.module.get_parameter("attn.in_proj_weight").reshape(-1, 4) != 0).sum(1).max()) == 2


class Classifier(torch.nn.Module):
    """Two layers and heads of every name that the default recipe knows, and one that only looks like a head."""

    heads = ("fc", "head", "head_dist", "mlp_head", "classifier")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.fc1, self.multihead_attn = torch.nn.Linear(12, 32), torch.nn.Linear(32, 32)
        for name in self.heads:
            self.add_module(name, torch.nn.Linear(32, 8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 3, 2, 2] to [n, 40]."""
        features = self.multihead_attn(torch.relu(self.fc1(images.flatten(1))))
        return torch.cat([self.get_submodule(name)(features) for name in self.heads], 1)


@pytest.mark.parametrize(
    ("rule", "pruned"),
    [
        ("", ("multihead_attn",)),
        ('[[rule]]\nmatch = "fc"\nreason = "x"\n', ("multihead_attn", "fc")),
        ('[[rule]]\nname = "heads"\nsparse = true\n', ("multihead_attn", *Classifier.heads)),
        ('[[rule]]\nname = "linear"\nleast_k = 0\n', ("fc1", "multihead_attn")),
    ],
)
def test_both_commands_prune_what_the_recipe_expects(rule: str, pruned: tuple[str, ...]) -> None:
    """gpusq-compress asks `prunable_layers`, gpusq-build --prune `prune_checkpoint`."""
    text = f'schema = "gpusq.recipe/1"\nname = "mine"\ndescription = "x"\nbase = "static_wi8_ai8"\n{rule}'
    mine = recipe(text) if rule else load_recipe(None)
    dense = replace(checkpoint(), module=Classifier().eval().requires_grad_(False))
    built = prune_checkpoint(dense, mine, Pruning("magnitude"), None, lambda _text: None)
    assert built.sparsity is not None
    assert built.sparsity.layers == pruned
    assert prunable_layers(dense.module, mine).pruned == pruned


def test_many_samples_are_thinned_evenly() -> None:
    source = Counted(3 * PRUNE_SAMPLES)
    prune_checkpoint(checkpoint(), recipe(), Pruning("second-order"), source, lambda _text: None)
    assert source.asked == list(range(0, 3 * PRUNE_SAMPLES, 3))


@pytest.mark.parametrize(
    ("record", "text", "told"),
    [
        (None, NONE, "nothing to prune"),
        (SparsityRecord(method="x", layers=("3",)), ALL, "1 layer of the checkpoint pruned to 2:4 already: 3"),
    ],
)
def test_refusals(record: SparsityRecord | None, text: str, told: str) -> None:
    with pytest.raises(GpusqError, match=told):
        prune_checkpoint(checkpoint(record=record), recipe(text), Pruning("magnitude"), None, lambda _text: None)


class Branches(torch.nn.Module):
    """What dense models are made of: a value projection that begins as the identity, and a branch that adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc1, self.value, self.gate, self.fc2 = (torch.nn.Linear(12, 12) for _ in range(4))
        with torch.no_grad():
            self.value.weight.copy_(torch.eye(12))
            self.gate.weight.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 3, 2, 2] to [n, 12]."""
        tokens = self.value(torch.relu(self.fc1(images.flatten(1))))
        answer: torch.Tensor = self.fc2(tokens + self.gate(tokens))
        return answer


def branches() -> Checkpoint:
    return replace(checkpoint(), module=Branches().eval().requires_grad_(False))


def two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """The larger two of each four: torch's own order, not the product's masks."""
    groups = weight.detach().reshape(-1, 4)
    smallest = groups.abs().argsort(dim=1)[:, :2]
    return groups.scatter(1, smallest, 0.0).reshape(weight.shape)


@pytest.mark.parametrize("how", [Pruning("magnitude"), Pruning("second-order"), Pruning("magnitude", permute=True)])
def test_layers_that_are_2_4_by_their_making_are_left_and_said(how: Pruning) -> None:
    dense, said = branches(), list[str]()
    result = prune_checkpoint(dense, recipe(), how, Counted(8), said.append)
    assert result.sparsity is not None
    assert set(result.sparsity.layers) == {"fc1", "fc2", "value", "gate"}
    after = result.module.state_dict()
    assert not after["gate.weight"].any()
    # Channels may have been permuted: a permuted identity has one 1 in each row still.
    assert torch.equal(after["value.weight"].sort(dim=1).values[:, -1], torch.ones(12))
    assert int((after["value.weight"] != 0).sum()) == 12
    assert all(int((after[f"{name}.weight"].reshape(-1, 4) != 0).sum(1).max()) == 2 for name in ("fc1", "fc2"))
    left = [line for line in said if "is left as it is: 2:4 already" in line]
    assert left == [line for line in result.remarks if "is left as it is" in line]
    assert [line.split()[0] for line in left] == ["value", "gate"]
    assert "for 91.67% of it is zero" in left[0]


def test_one_layer_that_was_pruned_is_told_from_those_that_were_made_so() -> None:
    dense = branches()
    with torch.no_grad():
        weight = dense.module.get_parameter("fc2.weight")
        weight.copy_(two_of_four(weight))
    with pytest.raises(GpusqError, match=r"1 layer of the checkpoint pruned to 2:4 already: fc2\n") as caught:
        prune_checkpoint(dense, recipe(), Pruning("magnitude"), None, lambda _text: None)
    assert "sparse = false" in str(caught.value.hint)


def test_where_all_that_could_be_pruned_is_2_4_by_its_making_there_is_nothing_to_prune() -> None:
    dense = branches()
    with torch.no_grad():
        for name in ("fc1", "fc2"):
            dense.module.get_parameter(f"{name}.weight").zero_()
    with pytest.raises(GpusqError, match=r"nothing to prune: 2:4 by its zeros already: fc1, value, gate and 1 more"):
        prune_checkpoint(dense, recipe(), Pruning("magnitude"), None, lambda _text: None)
