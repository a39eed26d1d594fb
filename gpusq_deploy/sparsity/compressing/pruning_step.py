"""The dense model to a pruned student."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch

from gpusq_deploy.artifacts import (
    Permuted,
)
from gpusq_deploy.calibration import spread_indices
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import (
    weight_of,
)
from gpusq_deploy.sparsity.compressing.request import CompressRequest, trains
from gpusq_deploy.sparsity.compressing.run import Run
from gpusq_deploy.sparsity.permutation.arrange import arrange
from gpusq_deploy.sparsity.pruning.magnitude import (
    Masks,
    apply_masks,
    magnitude_masks,
)
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions
from gpusq_deploy.sparsity.pruning.whole_model import OneshotReport, prune_oneshot
from gpusq_deploy.sparsity.training.distributed import device
from gpusq_deploy.sparsity.training.keeping import Start, start_from
from gpusq_deploy.sparsity.training.samples import TrainingData


def start_of(run: Run, teacher: torch.nn.Module) -> Start:
    """The pruned student and its teacher: made, or as the interrupted run made them."""
    kept = run.state.read("start")
    if kept is not None:
        start = start_from(kept, teacher, copy.deepcopy(teacher))
        run.say(*start.notes)
    else:
        said = len(run.notes)
        start = _pruned_before(run, teacher) or _pruned_now(run, teacher)
        start = replace(start, notes=tuple(run.notes[said:]))
        if trains(run.request):
            run.state.write("start", start.kept())
    start.same_everywhere(run.processes)
    return start


def _pruned_before(run: Run, teacher: torch.nn.Module) -> Start | None:
    """The student as its checkpoint has it, where that is 2:4 already."""
    record, checkpoint = run.opened.pruned_before, run.opened.checkpoint
    if record is None:
        return None
    student = checkpoint.module.to(next(teacher.parameters()).device)
    return Start(teacher=teacher, student=student, masks=_nonzero(student, record.layers), permuted=(), notes=())


def _pruned_now(run: Run, teacher: torch.nn.Module) -> Start:
    """A pruned copy of the model, and the teacher in its order."""
    layers = run.opened.choice.pruned
    if run.request.teacher is None:
        teacher, permuted = _arranged(run, teacher, layers)
        student, masks = _pruned(run, teacher, layers)
        return Start(teacher=teacher, student=student, masks=masks, permuted=permuted, notes=())
    dense = run.opened.checkpoint.module.to(next(teacher.parameters()).device)
    student, masks = _pruned(run, dense, layers)
    return Start(teacher=teacher, student=student, masks=masks, permuted=(), notes=())


def _arranged(
    run: Run, teacher: torch.nn.Module, layers: tuple[str, ...]
) -> tuple[torch.nn.Module, tuple[Permuted, ...]]:
    """The dense model in the order in which 2:4 keeps most: it teaches too, for its blocks may be in another order."""
    request = run.request
    if not request.permute:
        return teacher, ()
    images = run.images()
    learnt = None if request.method == "magnitude" else images
    arranged = arrange(teacher, layers, learnt, images, seed=request.training.seed)
    run.say(*arranged.lines())
    return arranged.module, arranged.permuted


def prune_images(data: TrainingData, request: CompressRequest) -> torch.Tensor:
    """The images that prune and calibrate, spread over the training images, on this process's device."""
    # Files are sorted by class: the first of them would be of one.
    chosen = spread_indices(len(data.train), request.prune_images)
    return data.declared.batch(chosen).images.to(device())


def _pruned(run: Run, teacher: torch.nn.Module, layers: tuple[str, ...]) -> tuple[torch.nn.Module, Masks]:
    """A pruned copy, and its masks."""
    request = run.request
    if request.method == "magnitude":
        student, masks = copy.deepcopy(teacher), magnitude_masks(teacher, layers)
        apply_masks(student, masks)
        return student, masks
    if request.convolutions:
        raise GpusqError(
            f"the method {request.method} prunes Linear layers only",
            place="--convolutions",
            hint="leave it out, or take --method magnitude",
        )
    options = OneshotOptions(method=request.method, seed=request.training.seed)
    pruned = prune_oneshot(teacher, layers, run.images(), options)
    masks = _nonzero(pruned.module, layers)
    apply_masks(pruned.module, masks)
    run.say(*_pruning_notes(pruned.report))
    return pruned.module, masks


def _nonzero(module: torch.nn.Module, layers: tuple[str, ...]) -> Masks:
    return {layer: weight_of(module, layer).detach() != 0 for layer in layers}


def _pruning_notes(report: OneshotReport) -> Iterator[str]:
    yield f"pruned by {report.options.method} on {report.images} images, block by block ({report.blocks})"
    yield from (f"{layer.layer}: {layer.note}" for layer in report.layers if layer.note is not None)
