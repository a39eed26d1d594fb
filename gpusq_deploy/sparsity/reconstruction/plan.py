"""What reconstruction works on: the chain of blocks, where their layers join the stream, and the tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from gpusq_deploy.artifacts import Value
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.pruning.block_chain import Chain, block_chain, first_inputs, takes_any_tokens
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions
from gpusq_deploy.sparsity.pruning.whole_model import some_tokens
from gpusq_deploy.sparsity.reconstruction.junctions import Junction, find_junctions
from gpusq_deploy.sparsity.reconstruction.one_block import BATCH, run_block
from gpusq_deploy.text import counted, some

Quality = Callable[[torch.nn.Module], tuple[float, ...]]
"""Scores a model on the held-out images: larger is better, the first number counts first."""


class ReconstructOptions(Value):
    """`passes` over the blocks, then `gradient_steps` of all blocks together.

    `prune` chooses weights, and draws the tokens. `steps` of conjugate gradients refit.
    """

    passes: int = 1
    gradient_steps: int = 150
    prune: OneshotOptions = OneshotOptions()
    steps: int = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Images [n, C, H, W] on the models' device: to fit on, and held-out ones on which the error of blocks is told."""

    images: torch.Tensor
    held_out: torch.Tensor
    quality: Quality


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """`joins` by block and layer; `tokens` reach the dense model's first block, `shortened` where some are left out."""

    chain: Chain
    joins: Mapping[str, Mapping[str, Junction | None]]
    tokens: torch.Tensor
    shortened: bool
    options: ReconstructOptions
    say: Callable[[str], None]

    def tokens_in(self, module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """The same tokens as they reach the first block of another model [n, ...]."""
        tokens = first_inputs(module, self.chain.blocks[0], images, BATCH)
        return some_tokens(tokens, self.options.prune) if self.shortened else tokens


def planned(
    teacher: torch.nn.Module,
    layers: Sequence[str],
    images: torch.Tensor,
    options: ReconstructOptions,
    say: Callable[[str], None],
) -> Plan:
    """Find the blocks and what is fitted in them, by running the model.

    Raises:
        GpusqError: The model has no chain of blocks that holds one of the layers.
    """
    chain = block_chain(teacher, images[:1])
    if chain is None:
        raise GpusqError(
            "the model has no repeated blocks, each fed by the one before: nothing to reconstruct block by block",
            place="--stage reconstruct",
            hint="prune it by --method second-order --epochs 0, or recover it by distillation: --stage prune",
        )
    tokens = first_inputs(teacher, chain.blocks[0], images, BATCH)
    shortened = options.prune.token_share < 1 and takes_any_tokens(teacher, chain, tokens[:1])
    if shortened:
        tokens = some_tokens(tokens, options.prune)
    joins = _joins(teacher, chain, layers, tokens[:1])
    if not any(joins.values()):
        raise GpusqError(
            f"none of the {counted(len(layers), '2:4 layer')} lies in the {counted(len(chain.blocks), 'block')} that "
            f"were found, the first {chain.blocks[0].name}",
            place="--stage reconstruct",
            hint="relax --dense or the recipe, or take --stage prune",
        )
    return Plan(chain=chain, joins=joins, tokens=tokens, shortened=shortened, options=options, say=say)


def left_as_pruned(plan: Plan, layers: Sequence[str]) -> list[str]:
    """Which layers aren't reconstructed, in sentences."""
    left = sorted(set(layers) - {layer for joins in plan.joins.values() for layer in joins})
    within = [layer for layer in left if any(layer.startswith(f"{block.name}.") for block in plan.chain.blocks)]
    outside = [layer for layer in left if layer not in within]
    notes = [f"outside the blocks, as pruned: {some(outside)}"] if outside else []
    # The projections of a nn.MultiheadAttention, and a layer that is used twice.
    return [*notes, *([f"not called once and alone in their blocks, as pruned: {some(within)}"] if within else [])]


def store(student: torch.nn.Module, layer: str, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Give the layer new values; None: its bias stays."""
    with torch.no_grad():
        student.get_parameter(f"{layer}.weight").copy_(weight)
        if bias is not None:
            student.get_parameter(f"{layer}.bias").copy_(bias)


def _joins(
    teacher: torch.nn.Module, chain: Chain, layers: Sequence[str], tokens: torch.Tensor
) -> dict[str, dict[str, Junction | None]]:
    """By block, the junctions of its layers in the order of their calls."""
    wanted = set(layers)
    found: dict[str, dict[str, Junction | None]] = {}
    for block in chain.blocks:
        joins = find_junctions(teacher, block, tokens)
        found[block.name] = {layer: junction for layer, junction in joins.items() if layer in wanted}
        tokens = run_block(block, teacher, tokens)
    return found
