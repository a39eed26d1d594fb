"""What is refused before anything is read or trained."""

from __future__ import annotations

import os

import torch

from gpusq_deploy.artifacts import (
    RECONSTRUCTIONS,
    Recipe,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import (
    Checkpoint,
    layer_weights,
    require_another_file,
    weights_file,
)
from gpusq_deploy.sparsity.check import require_sparse, sparsity_report
from gpusq_deploy.sparsity.compressing.request import CompressRequest, trains
from gpusq_deploy.sparsity.training.distributed import Ranks
from gpusq_deploy.sparsity.training.resume import require_no_state, was_done


def require_one_process(request: CompressRequest, processes: Ranks) -> None:
    """Only training is shared by processes."""
    if processes.world > 1 and not trains(request):
        raise GpusqError(
            f"only training runs in several processes, and here are {processes.world}: each would do all of it",
            place="torchrun",
            hint="run gpusq-compress without torchrun",
        )


def require_stage(request: CompressRequest) -> None:
    """What a stage takes, and what it doesn't."""
    if request.training.fsdp and not trains(request):
        raise GpusqError(
            "only training is sharded, and none is asked for", place="--fsdp", hint="leave it out, or give --epochs"
        )
    if request.resume and not trains(request):
        raise GpusqError(
            "only training can be resumed, and none is asked for",
            place="--resume",
            hint="leave it out, or give --epochs",
        )
    if request.stage not in RECONSTRUCTIONS:
        return
    if request.method != "second-order":
        raise GpusqError(
            f"reconstruction starts from the method second-order, not from {request.method}",
            place=f"--stage {request.stage}",
            hint="leave out --method, or take --stage prune",
        )
    if request.training.epochs:
        raise GpusqError(
            f"reconstruction trains no epochs, {request.training.epochs} are asked for",
            place=f"--stage {request.stage}",
            hint="leave out --epochs, or take --stage prune",
        )


def require_place(request: CompressRequest) -> None:
    """The output can be written, and replaces nothing unasked."""
    out = request.out
    if out.is_dir():
        raise GpusqError("the output is a folder", place=str(out), hint="give --out a file name, such as model-24.pt")
    if out.suffix == ".safetensors":
        raise GpusqError(
            "the result describes itself, which a .safetensors file doesn't",
            place=str(out),
            hint=f"name it {out.with_suffix('.pt').name}",
        )
    require_another_file(out, weights_file(request.model))
    if out.exists() and not request.force and not (request.resume and was_done(out)):
        raise GpusqError("the output exists", place=str(out), hint="choose another --out, or replace it with --force")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise GpusqError("the output can't be written there", place=str(parent), hint="choose another --out")
    if not request.resume and not request.force:
        require_no_state(out)


def is_headless(module: torch.nn.Module) -> bool:
    """Whether the model says that it has no classifier, as timm's do: its answer is an embedding."""
    return getattr(module, "num_classes", None) == 0


def require_classifier(checkpoint: Checkpoint, request: CompressRequest) -> None:
    """A model without a classifier answers an embedding, which has the shape of logits."""
    if trains(request) and is_headless(checkpoint.module):
        raise GpusqError(
            "training needs logits, and the model has no classifier: num_classes is 0",
            place=str(checkpoint.arch),
            hint="--epochs 0 prunes it; --method second-order loses least",
        )


def require_dense_model(checkpoint: Checkpoint, request: CompressRequest, recipe: Recipe) -> None:
    """A model that is 2:4 already is only trained on, by a teacher, and has to be what it says."""
    record = checkpoint.sparsity
    if record is None:
        return
    if request.teacher is None or not trains(request):
        raise GpusqError(
            f"the checkpoint says that {len(record.layers)} of its layers are {record.pattern} already",
            place=str(request.model),
            hint="to train it on, give the dense checkpoint that it was made from as --teacher",
        )
    require_sparse(
        sparsity_report(
            layer_weights(checkpoint.module),
            source=str(request.model),
            recipe=recipe,
            record=record,
        ),
        command="gpusq-compress of the dense checkpoint",
    )
