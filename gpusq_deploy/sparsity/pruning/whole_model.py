"""One-shot 2:4 pruning of a whole model, block by block, without training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from gpusq_deploy.artifacts import PruneMethod, Value
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.pruning.block_chain import Chain, block_chain, first_inputs, takes_any_tokens
from gpusq_deploy.sparsity.pruning.input_moments import GramSums, collect_moments
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions, Solution, solve_layer
from gpusq_deploy.sparsity.pruning.sites import Read, Site, site_of, without_fast_path

Progress = Callable[[int, int], None]
"""Hears how many layers are done, of how many."""

_BATCH = 8


class PrunedLayer(Value):
    """One pruned layer: `error` as in `oneshot.Solution`; `note` says why a layer was not pruned as asked."""

    layer: str
    method: PruneMethod
    error: float | None = None
    note: str | None = None


class OneshotReport(Value):
    """What was done.

    `blocks` is 0 where the model has no chain of blocks (see `chain`): then there are no dense targets. `tokens` are
    those per image that the blocks ran on, None where they weren't run or their inputs aren't [n, T, D].
    """

    options: OneshotOptions
    images: int
    blocks: int
    tokens: int | None
    layers: tuple[PrunedLayer, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunedModule:
    """A new module, with the named layers exactly 2:4, and what was done."""

    module: torch.nn.Module
    report: OneshotReport


@dataclass(kw_only=True, slots=True)
class _Work:
    """The student in the making. `wanted` are layers still to prune."""

    student: torch.nn.Module
    options: OneshotOptions
    sites: Mapping[str, Site]
    wanted: set[str]
    progress: Progress | None
    blocks: int = 0
    tokens: int | None = None
    done: dict[str, PrunedLayer] = field(default_factory=dict[str, PrunedLayer])


def prune_oneshot(
    module: torch.nn.Module,
    layers: Sequence[str],
    images: torch.Tensor | None,
    options: OneshotOptions,
    progress: Progress | None = None,
) -> PrunedModule:
    """Prune the named Linear layers to 2:4, the projections of a nn.MultiheadAttention among them; see `sites`.

    With data and `sequential`: for each block of the model, the dense block runs first and tells what each of its
    layers should return; then the pruned one runs, and each of its layers is pruned at the moment the data reaches it.
    So every layer is fitted on the inputs it will really have, in two forward passes in all. One block's activations
    for all images are in memory at a time (ViT-S/14, 64 images of 224 px: 0.4 GB). Layers outside the blocks, and all
    layers of a model without a chain of blocks, follow in one pass of the whole model, towards their own outputs.

    Args:
        module: The dense model, in eval mode; not changed.
        layers: Names of Linear layers whose K is a multiple of 4; each is pruned in the result.
        images: Model inputs float32 [n, C, H, W] on the module's device; `magnitude` makes no use of them.
        options: See `OneshotOptions`.
        progress: Called with the layers done and all of them, after each.

    Raises:
        GpusqError: A name that isn't such a layer, no images where the method needs them, or inputs that aren't finite.
    """
    sites = {layer: site_of(module, layer) for layer in layers}
    if options.method == "magnitude":
        images = None  # it learns nothing from them
    work = _Work(student=copy.deepcopy(module), options=options, sites=sites, wanted=set(layers), progress=progress)
    with torch.no_grad(), without_fast_path():
        if images is not None and len(images):
            _with_data(module, work, images)
        _without_data(work, layers, images)
    report = OneshotReport(
        options=options,
        images=0 if images is None else len(images),
        blocks=work.blocks,
        tokens=work.tokens,
        layers=tuple(work.done[layer] for layer in layers),
    )
    return PrunedModule(module=work.student, report=report)


def _with_data(teacher: torch.nn.Module, work: _Work, images: torch.Tensor) -> None:
    if not work.options.sequential:
        _independent(teacher, work, images)
        return
    chain = block_chain(teacher, images[:1])
    if chain is not None:
        _along(chain, teacher, work, images)
    if work.wanted:
        with _pruning_on_arrival(work, {}, work.wanted):
            work.student(images)


def _independent(teacher: torch.nn.Module, work: _Work, images: torch.Tensor) -> None:
    """Every layer on what the dense model feeds it, as if no other were pruned."""
    called = sorted(layer for layer in work.wanted if work.sites[layer].role == "linear")
    moments = collect_moments(teacher, called, torch.split(images, _BATCH))
    for layer, found in moments.items():
        site = work.sites[layer]
        weight, bias = site.weight(work.student), site.bias(work.student)
        _store(work, layer, solve_layer(weight, bias, found, work.options))
    with _pruning_on_arrival(work, {}, work.wanted, on=teacher):
        teacher(images)


def _along(chain: Chain, teacher: torch.nn.Module, work: _Work, images: torch.Tensor) -> None:
    dense = first_inputs(teacher, chain.blocks[0], images, _BATCH)
    if work.options.token_share < 1 and takes_any_tokens(teacher, chain, dense[:1]):
        dense = some_tokens(dense, work.options)
    work.blocks, work.tokens = len(chain.blocks), dense.shape[1] if dense.ndim == 3 else None
    pruned = dense
    for block in chain.blocks:
        inside = {layer for layer in work.wanted if layer.startswith(f"{block.name}.")}
        targets: _Targets = {}
        if work.options.dense_targets:
            with _recording(teacher, [work.sites[layer] for layer in inside], targets):
                dense = block.run(teacher, dense)
        with _pruning_on_arrival(work, targets, inside):
            pruned = block.run(work.student, pruned)


def some_tokens(tokens: torch.Tensor, options: OneshotOptions) -> torch.Tensor:
    """The tokens that `options` draw; see `drawn_tokens`."""
    return drawn_tokens(tokens, options.token_share, torch.Generator().manual_seed(options.seed))


def drawn_tokens(tokens: torch.Tensor, share: float, random: torch.Generator) -> torch.Tensor:
    """Other tokens of each image; the first always, for in most models it sums up the image.

    Attention then sees fewer neighbours than it will, as in training with dropped patches.
    """
    count, length, width = tokens.shape
    keep = max(1, round(share * (length - 1)))
    drawn = torch.rand(count, length - 1, generator=random).argsort(dim=1)[:, :keep].sort(dim=1).values + 1
    chosen = torch.cat([torch.zeros(count, 1, dtype=torch.long), drawn], dim=1).to(tokens.device)
    return tokens.gather(1, chosen[:, :, None].expand(-1, -1, width))


_Targets = dict[str, list[torch.Tensor]]
"""The dense layers' outputs, by layer; see `Site.outputs`."""


@contextmanager
def _recording(teacher: torch.nn.Module, sites: Iterable[Site], targets: _Targets) -> Generator[None, None, None]:
    def hook_for(site: Site) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            # A second call of a layer that is used twice has no counterpart: the layer is pruned at its first.
            if site.layer not in targets:
                targets[site.layer] = site.outputs(teacher, args, named, output)

        return hook

    with ExitStack() as stack:
        for site in sites:
            place = teacher.get_submodule(site.place)
            stack.callback(place.register_forward_hook(hook_for(site), with_kwargs=True).remove)
        yield


@contextmanager
def _pruning_on_arrival(
    work: _Work, targets: _Targets, layers: Iterable[str], *, on: torch.nn.Module | None = None
) -> Generator[None, None, None]:
    """Prune each layer when its inputs reach it, in the student before it computes with them, or `on` another."""
    module = work.student if on is None else on

    def hook_for(site: Site) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if site.layer in work.wanted:
                reads = site.reads(module, args, named)
                _store(work, site.layer, _solved(work, site, reads, targets.pop(site.layer, [None] * len(reads))))

        return hook

    with ExitStack() as stack:
        # By their names an attention's input projections come before its out_proj, as they run.
        for site in (work.sites[layer] for layer in sorted(layers)):
            place = module.get_submodule(site.place)
            stack.callback(place.register_forward_pre_hook(hook_for(site), with_kwargs=True).remove)
        yield


def _solved(work: _Work, site: Site, reads: Sequence[Read], targets: Sequence[torch.Tensor | None]) -> Solution:
    """Rows that read other inputs are solved by themselves; the error is then the mean of theirs."""
    weight, bias = site.weight(work.student), site.bias(work.student)
    parts: list[Solution] = []
    for read, target in zip(reads, targets, strict=True):
        sums = GramSums()
        sums.add(read.inputs, target)
        rows = None if bias is None else bias[read.rows]
        parts.append(solve_layer(weight[read.rows], rows, sums.moments(), work.options))
    biases, errors = [part.bias for part in parts], [part.error for part in parts]
    return Solution(
        weight=torch.cat([part.weight for part in parts]),
        bias=torch.cat([part for part in biases if part is not None]) if bias is not None else None,
        error=sum(error for error in errors if error is not None) / len(errors),
    )


def _without_data(work: _Work, layers: Sequence[str], images: torch.Tensor | None) -> None:
    """By magnitude: all layers where it is asked for, else those that no image reached."""
    note = None
    if images is not None and len(images):
        note = "the forward pass never calls the module, so no data reaches it: pruned by magnitude"
    elif work.options.method != "magnitude":
        raise GpusqError(f"the method {work.options.method} needs images", hint="give a folder with --data")
    by_magnitude = OneshotOptions(method="magnitude")
    for layer in layers:
        if layer in work.wanted:
            site = work.sites[layer]
            solution = solve_layer(site.weight(work.student), site.bias(work.student), None, by_magnitude)
            _store(work, layer, solution, note=note)


def _store(work: _Work, layer: str, solution: Solution, *, note: str | None = None) -> None:
    site = work.sites[layer]
    site.weight(work.student).copy_(solution.weight)
    bias = site.bias(work.student)
    if bias is not None and solution.bias is not None:
        bias.copy_(solution.bias)
    work.wanted.discard(layer)
    method = work.options.method if note is None else "magnitude"
    work.done[layer] = PrunedLayer(layer=layer, method=method, error=solution.error, note=note)
    if work.progress is not None:
        work.progress(len(work.done), len(work.done) + len(work.wanted))
