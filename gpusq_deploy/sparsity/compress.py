"""A dense checkpoint in, a 2:4 checkpoint and a report of what happened out."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from gpusq_deploy.artifacts import ArchSpec, Permuted, PruneMethod, SparsityRecord, Value, load_recipe
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import Checkpoint, load_checkpoint, require_another_file, save_checkpoint, weights_file
from gpusq_deploy.sparsity.permutation.arrange import arrange
from gpusq_deploy.sparsity.pruning.magnitude import (
    DenseLayer,
    LayerChoice,
    Masks,
    apply_masks,
    magnitude_masks,
    prunable_layers,
)
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions
from gpusq_deploy.sparsity.pruning.whole_model import OneshotReport, prune_oneshot
from gpusq_deploy.sparsity.reconstruction.one_block import Pair
from gpusq_deploy.sparsity.reconstruction.reconstruct import Data, Reconstruction, ReconstructOptions, reconstruct
from gpusq_deploy.sparsity.training.data import TrainingData, load_folder
from gpusq_deploy.sparsity.training.distill import (
    DistillOptions,
    EpochResult,
    LogitPair,
    Scores,
    count_classes,
    later_blocks,
    predict,
    recover,
    score,
)

Stage = Literal["prune", "reconstruct"]
"""What follows pruning: distillation of the whole model, or reconstruction block by block, without labels."""

# Held-out images on which reconstruction tells the error of each block.
_TOLD_IMAGES = 32
_CHANCE = 1.2  # times one over the number of classes


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressRequest:
    """What gpusq-compress is asked for.

    `recipe` says which layers are to be 2:4; None is the default one, as in a build.
    `dense` holds patterns of layers to leave alone beside those.
    `method` chooses the weights before any training; of the training images at most `prune_images` serve it.
    `permute` arranges channels first, so that 2:4 keeps more. `stage` `"reconstruct"` takes the method `second-order`,
    and no epochs of training.
    """

    model: Path
    arch: ArchSpec | None
    data: Path
    held_out: float
    dense: tuple[str, ...]
    convolutions: bool
    training: DistillOptions
    out: Path
    force: bool
    method: PruneMethod = "magnitude"
    prune_images: int = 128
    permute: bool = False
    state_dict: str | None = None
    recipe: Path | None = None
    stage: Stage = "prune"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressReporter:
    """Where remarks and progress go."""

    say: Callable[[str], None]
    epoch: Callable[[EpochResult], None]


class HeldOutScore(Value):
    """Share of held-out samples predicted right: the dense model, pruned, and recovered.

    Right is what the label says, or, where there are none, what the dense model predicts (then `dense` is 1). Of a
    model without logits it is the mean cosine of its output vectors with the dense model's.
    """

    measure: Literal["accuracy", "agreement", "cosine"]
    dense: float
    pruned: float
    recovered: float


class Compression(Value):
    """What gpusq-compress did."""

    schema: Literal["gpusq.compression/1"] = "gpusq.compression/1"
    file: str
    arch: str
    method: str
    pruned: tuple[str, ...]
    dense: tuple[DenseLayer, ...]
    classes: int
    train_images: int
    held_out_images: int
    skipped: tuple[str, ...]
    feature_blocks: int
    epochs: int
    held_out: HeldOutScore
    notes: tuple[str, ...]
    permuted: tuple[Permuted, ...] = ()
    reconstruction: Reconstruction | None = None


class _Recovered(NamedTuple):
    module: torch.nn.Module
    method: str
    reconstruction: Reconstruction | None


def compress_checkpoint(request: CompressRequest, reporter: CompressReporter) -> Compression:
    """Prune to 2:4, recover by distillation or reconstruction, save. Nothing is written before the last step.

    Raises:
        GpusqError: The output exists, a bad checkpoint or folder, labels that don't fit the model, or divergence.
    """
    checkpoint, choice = _opened(request)
    training = request.training
    data = load_folder(request.data, checkpoint.preprocessing, held_out=request.held_out, seed=training.seed)
    teacher = checkpoint.module.to("cuda" if torch.cuda.is_available() else "cpu")
    measured = _score_function(teacher, data, request)
    dense = measured(teacher)
    features = _only_features(teacher, data, request)
    notes = tuple(_notes(checkpoint, data, dense, features=features, trains=training.epochs > 0))
    for note in (*notes, *(f"skipped {name}" for name in data.skipped)):
        reporter.say(note)
    teacher, permuted, arranging = _arranged(teacher, choice.pruned, data, request)
    notes += arranging
    for note in arranging:
        reporter.say(note)
    student, masks, report = _pruned(teacher, choice.pruned, data, request)
    notes += tuple(_pruning_notes(report, reporter))
    pruned = measured(student)
    done = _recovered(LogitPair(student=student, teacher=teacher, masks=masks), data, request, reporter)
    recovered = pruned if done.method == request.method else measured(done.module)
    _save(request, checkpoint, done.module, SparsityRecord(method=done.method, layers=choice.pruned))
    return Compression(
        file=str(request.out),
        arch=str(checkpoint.arch),
        method=done.method,
        pruned=choice.pruned,
        dense=choice.dense,
        classes=len(data.classes),
        train_images=len(data.train),
        held_out_images=len(data.held_out),
        skipped=data.skipped,
        feature_blocks=len(later_blocks(student)),
        epochs=training.epochs,
        held_out=_held_out(dense, pruned, recovered, features=features),
        notes=notes,
        permuted=permuted,
        reconstruction=done.reconstruction,
    )


def _recovered(pair: LogitPair, data: TrainingData, request: CompressRequest, reporter: CompressReporter) -> _Recovered:
    """What follows pruning; where nothing does, the pruned student."""
    if request.stage == "reconstruct":
        return _reconstructed(pair, data, request, reporter)
    if not request.training.epochs:
        return _Recovered(pair.student, request.method, None)
    recover(pair, data, request.training, reporter.epoch)
    return _Recovered(pair.student, f"{request.method} + distillation", None)


def _reconstructed(
    pair: LogitPair, data: TrainingData, request: CompressRequest, reporter: CompressReporter
) -> _Recovered:
    """The best of the pruned student and the passes, by the score that is reported and then by the outputs' cosine."""
    size, device = request.training.batch_size, next(pair.teacher.parameters()).device
    measured = _score_function(pair.teacher, data, request)
    told = data.held_out.batch(range(min(len(data.held_out), _TOLD_IMAGES))).images.to(device)
    options = ReconstructOptions(prune=OneshotOptions(method=request.method, seed=request.training.seed))
    module, report = reconstruct(
        Pair(teacher=pair.teacher, student=pair.student),
        tuple(pair.masks),
        Data(
            images=_prune_images(pair.teacher, data, request),
            held_out=told,
            quality=lambda module: (_main(measured(module)), _cosine(module, pair.teacher, data, size)),
        ),
        options,
        reporter.say,
    )
    for note in report.notes:
        reporter.say(note)
    done = report.kept != report.passes[0].name
    return _Recovered(module, f"{request.method} + reconstruction" if done else request.method, report)


def _arranged(
    teacher: torch.nn.Module, layers: tuple[str, ...], data: TrainingData, request: CompressRequest
) -> tuple[torch.nn.Module, tuple[Permuted, ...], tuple[str, ...]]:
    """The dense model in the order in which 2:4 keeps most: it teaches too, for its blocks may be in another order."""
    if not request.permute:
        return teacher, (), ()
    images = _prune_images(teacher, data, request)
    learnt = None if request.method == "magnitude" else images
    arranged = arrange(teacher, layers, learnt, images, seed=request.training.seed)
    return arranged.module, arranged.permuted, arranged.lines()


def _prune_images(teacher: torch.nn.Module, data: TrainingData, request: CompressRequest) -> torch.Tensor:
    chosen = range(min(len(data.train), request.prune_images))
    return data.train.batch(chosen).images.to(next(teacher.parameters()).device)


def _opened(request: CompressRequest) -> tuple[Checkpoint, LayerChoice]:
    _require_place(request)
    _require_stage(request)
    recipe = load_recipe(request.recipe)
    checkpoint = load_checkpoint(request.model, arch=request.arch, state_dict=request.state_dict)
    _require_dense(checkpoint, request)
    return checkpoint, prunable_layers(checkpoint.module, recipe, request.dense, convolutions=request.convolutions)


def _pruned(
    teacher: torch.nn.Module, layers: tuple[str, ...], data: TrainingData, request: CompressRequest
) -> tuple[torch.nn.Module, Masks, OneshotReport | None]:
    """A pruned copy, its masks, and what was done; None where the masks by magnitude are all there is to it."""
    if request.method == "magnitude":
        student, masks = copy.deepcopy(teacher), magnitude_masks(teacher, layers)
        apply_masks(student, masks)
        return student, masks, None
    if request.convolutions:
        raise GpusqError(
            f"the method {request.method} prunes Linear layers only",
            place="--convolutions",
            hint="leave it out, or take --method magnitude",
        )
    options = OneshotOptions(method=request.method, seed=request.training.seed)
    pruned = prune_oneshot(teacher, layers, _prune_images(teacher, data, request), options)
    masks = _nonzero(pruned.module, layers)
    apply_masks(pruned.module, masks)
    return pruned.module, masks, pruned.report


def _nonzero(module: torch.nn.Module, layers: tuple[str, ...]) -> Masks:
    return {layer: module.get_parameter(f"{layer}.weight").detach() != 0 for layer in layers}


def _pruning_notes(report: OneshotReport | None, reporter: CompressReporter) -> Iterator[str]:
    if report is None:
        return
    lines = [f"pruned by {report.options.method} on {report.images} images, block by block ({report.blocks})"]
    lines += [f"{layer.layer}: {layer.note}" for layer in report.layers if layer.note is not None]
    for line in lines:
        reporter.say(line)
        yield line


def _only_features(teacher: torch.nn.Module, data: TrainingData, request: CompressRequest) -> bool:
    """True where nothing is trained and the model returns no logits [N, classes], but tokens or maps."""
    if request.training.epochs:
        return False
    images = data.held_out.batch([0]).images.to(next(teacher.parameters()).device)
    with torch.no_grad():
        output = teacher(images)
    return isinstance(output, torch.Tensor) and output.ndim > 2


def _score_function(
    teacher: torch.nn.Module, data: TrainingData, request: CompressRequest
) -> Callable[[torch.nn.Module], Scores]:
    size = request.training.batch_size
    if _only_features(teacher, data, request):
        return lambda module: Scores(None, _cosine(module, teacher, data, size))
    _require_classes(teacher, data, request)
    reference = predict(teacher, data.held_out, size)
    return lambda module: score(module, data.held_out, reference, size)


def _cosine(module: torch.nn.Module, teacher: torch.nn.Module, data: TrainingData, size: int) -> float:
    """Mean cosine of the two models' output vectors (last axis) on the held-out images."""
    device = next(teacher.parameters()).device
    cosines: list[torch.Tensor] = []
    with torch.no_grad():
        for start in range(0, len(data.held_out), size):
            images = data.held_out.batch(range(start, min(start + size, len(data.held_out)))).images.to(device)
            cosines.append(torch.nn.functional.cosine_similarity(module(images), teacher(images), dim=-1).flatten())
    return float(torch.cat(cosines).double().mean())


def _held_out(dense: Scores, pruned: Scores, recovered: Scores, *, features: bool) -> HeldOutScore:
    return HeldOutScore(
        measure="cosine" if features else "agreement" if dense.accuracy is None else "accuracy",
        dense=_main(dense),
        pruned=_main(pruned),
        recovered=_main(recovered),
    )


def _main(scores: Scores) -> float:
    return scores.agreement if scores.accuracy is None else scores.accuracy


def _notes(checkpoint: Checkpoint, data: TrainingData, dense: Scores, *, features: bool, trains: bool) -> Iterator[str]:
    if features:
        yield "the model returns no logits: scored by the cosine of its output vectors with the dense model's"
    elif not data.classes:
        yield "no class folders: the dense model's predictions serve as labels"
    elif dense.accuracy is not None and dense.accuracy < _CHANCE / len(data.classes):
        yield (
            f"the dense model is right on only {dense.accuracy:.1%} of the held-out images, no more than chance: are "
            "the class folders, sorted by name, in the order of the model's classes? a flat folder needs no labels"
        )
    if trains and not later_blocks(checkpoint.module):
        yield "the model has no container `blocks`: distilling without the feature term"
    if checkpoint.ranges:
        yield f"the {len(checkpoint.ranges)} activation ranges of the dense model no longer hold and are left out"


def _require_place(request: CompressRequest) -> None:
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
    if out.exists() and not request.force:
        raise GpusqError("the output exists", place=str(out), hint="choose another --out, or replace it with --force")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise GpusqError("the output can't be written there", place=str(parent), hint="choose another --out")


def _require_stage(request: CompressRequest) -> None:
    if request.stage != "reconstruct":
        return
    if request.method != "second-order":
        raise GpusqError(
            f"reconstruction starts from the method second-order, not from {request.method}",
            place="--stage reconstruct",
            hint="leave out --method, or take --stage prune",
        )
    if request.training.epochs:
        raise GpusqError(
            f"reconstruction trains no epochs, {request.training.epochs} are asked for",
            place="--stage reconstruct",
            hint="leave out --epochs, or take --stage prune",
        )


def _require_dense(checkpoint: Checkpoint, request: CompressRequest) -> None:
    record = checkpoint.sparsity
    if record is not None:
        raise GpusqError(
            f"the checkpoint says that {len(record.layers)} of its layers are {record.pattern} already",
            place=str(request.model),
            hint="give the dense checkpoint that it was made from: it teaches the pruned one",
        )


def _require_classes(teacher: torch.nn.Module, data: TrainingData, request: CompressRequest) -> None:
    outputs = count_classes(teacher, data.held_out)
    if len(data.classes) > outputs:
        raise GpusqError(
            f"the folder has {len(data.classes)} classes, the model has only {outputs}",
            place=str(request.data),
            hint="one sub-folder per class of the model; a flat folder trains without labels",
        )


def _save(request: CompressRequest, checkpoint: Checkpoint, student: torch.nn.Module, sparsity: SparsityRecord) -> None:
    try:
        save_checkpoint(
            request.out, student, arch=checkpoint.arch, preprocessing=checkpoint.preprocessing, sparsity=sparsity
        )
    except OSError as error:
        raise GpusqError(f"cannot write the checkpoint: {error.strerror}", place=str(request.out)) from error
