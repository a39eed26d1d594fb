"""A dense checkpoint in, a 2:4 checkpoint and a report of what happened out."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import msgspec
import torch

from gpusq_deploy.artifacts import (
    RECONSTRUCTIONS,
    ArchSpec,
    CompressStage,
    Permuted,
    Preprocessing,
    PruneMethod,
    Recipe,
    SparsityRecord,
    Value,
    builtins_from_value,
    digest_of_bytes,
    json_from_value,
    load_recipe,
)
from gpusq_deploy.calibration import spread_indices
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import (
    Checkpoint,
    counted_weights,
    layer_weights,
    load_checkpoint,
    require_another_file,
    save_checkpoint,
    weight_of,
    weights_file,
)
from gpusq_deploy.numerics import CountedLayer, Counting, count
from gpusq_deploy.sparsity.check import require_sparse, sparsity_report
from gpusq_deploy.sparsity.permutation.arrange import arrange
from gpusq_deploy.sparsity.pruning.magnitude import (
    DenseLayer,
    LayerChoice,
    Masks,
    apply_masks,
    magnitude_masks,
    prunable_layers,
    recorded_choice,
)
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions
from gpusq_deploy.sparsity.pruning.whole_model import OneshotReport, prune_oneshot
from gpusq_deploy.sparsity.reconstruction.int8 import reconstruct_int8
from gpusq_deploy.sparsity.reconstruction.one_block import Pair
from gpusq_deploy.sparsity.reconstruction.plan import Data, ReconstructOptions
from gpusq_deploy.sparsity.reconstruction.reconstruct import Reconstruction, reconstruct
from gpusq_deploy.sparsity.training.data.class_order import other_order
from gpusq_deploy.sparsity.training.data.label_maps import has_maps
from gpusq_deploy.sparsity.training.data.load import DataRequest, Labels, load_data
from gpusq_deploy.sparsity.training.distill import Recovery, feature_errors, later_blocks, recover
from gpusq_deploy.sparsity.training.distributed import Ranks, device, process_group
from gpusq_deploy.sparsity.training.fingerprint import digest_of_data, digest_of_tensors
from gpusq_deploy.sparsity.training.keeping import Start, start_from
from gpusq_deploy.sparsity.training.losses import block_weights
from gpusq_deploy.sparsity.training.options import DistillOptions, EpochResult, StepResult
from gpusq_deploy.sparsity.training.pair import Distilled
from gpusq_deploy.sparsity.training.qat import (
    FloatLayer,
    InputScales,
    Int8Layers,
    fake_quantized,
    int8_layers,
    observed_scales,
)
from gpusq_deploy.sparsity.training.resume import Every, ResumeFolder, require_no_state, was_done
from gpusq_deploy.sparsity.training.samples import TrainingData
from gpusq_deploy.sparsity.training.scoring import Scores, predict, score
from gpusq_deploy.sparsity.training.tasks.choose import task_of
from gpusq_deploy.sparsity.training.tasks.classification import require_logits
from gpusq_deploy.sparsity.training.tasks.task import Measure, Task
from gpusq_deploy.text import counted

# Held-out images on which reconstruction tells the error of each block.
_TOLD_IMAGES = 32
# Of the first stage's peak learning rate: the weights are trained already, and are to stay near.
_QAT_RATE = 0.1
_FLOAT_BITS = 16
_TEACHER = "give the dense checkpoint that the model was made from"
_CHANCE = 1.2  # times one over the number of classes


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressRequest:
    """What gpusq-compress is asked for.

    `recipe` says which layers are to be 2:4; None is the default one, as in a build.
    `dense` holds patterns of layers to leave alone beside those.
    `method` chooses the weights before any training; of the training images at most `prune_images` serve it.
    `permute` arranges channels first, so that 2:4 keeps more. Reconstruction takes the method `second-order`, and no
    epochs of training. `qat_epochs` of training in INT8 follow those of `training`; None: there are none.
    `teacher` is the dense checkpoint that teaches, None: `model` itself. With `resume` an interrupted run of the same
    request goes on; its state is kept `every` so often.
    """

    model: Path
    arch: ArchSpec | None
    data: DataRequest
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
    stage: CompressStage = "prune"
    qat_epochs: int | None = None
    teacher: Path | None = None
    resume: bool = False
    every: Every = field(default_factory=Every)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressReporter:
    """Where remarks and progress go."""

    say: Callable[[str], None]
    epoch: Callable[[EpochResult], None]
    step: Callable[[StepResult], None]


def _untold(_news: object) -> None:
    """Nobody listens."""


_SILENT = CompressReporter(say=_untold, epoch=_untold, step=_untold)


class HeldOutScore(Value):
    """Share of held-out samples predicted right: the dense model, pruned, recovered, and in INT8.

    `quantized` is in INT8 by the ranges that were observed, `trained` after training or reconstruction with them; None
    where there is none.

    Right is what the label says, or, where there are none, what the dense model predicts (then `dense` is 1). Of a
    model without logits it is the mean cosine of its output vectors with the dense model's.
    """

    measure: Measure | Literal["agreement", "cosine"]
    dense: float
    pruned: float
    recovered: float
    quantized: float | None = None
    trained: float | None = None


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
    qat_epochs: int | None = None
    int8: tuple[str, ...] = ()
    float_layers: tuple[FloatLayer, ...] = ()
    reconstruction: Reconstruction | None = None
    counting: Counting | None = None


class _Recovered(NamedTuple):
    """The sparse model, how it came about, and what its recovery tells."""

    module: torch.nn.Module
    method: str
    training: Recovery | None = None
    reconstruction: Reconstruction | None = None


class _Quantized(NamedTuple):
    """What was made in INT8: the layers, their inputs' scales, the scores before and after, and how, if at all."""

    layers: Int8Layers
    scales: InputScales
    before: float
    after: float
    method: str


class _Opened(NamedTuple):
    """What a request names, read: the model, who teaches it, what is pruned, and what is trained in INT8."""

    checkpoint: Checkpoint
    teacher: Checkpoint
    choice: LayerChoice
    int8: Int8Layers | None
    recipe: Recipe

    @property
    def pruned_before(self) -> SparsityRecord | None:
        """Where the model is 2:4 already and keeps its pattern."""
        return self.checkpoint.sparsity


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What all steps of one compression share; `notes` grows.

    `features` where the model returns no logits.
    """

    request: CompressRequest
    reporter: CompressReporter
    processes: Ranks
    opened: _Opened
    task: Task
    data: TrainingData
    measured: Callable[[torch.nn.Module], Scores]
    features: bool
    state: ResumeFolder
    notes: list[str] = field(default_factory=list[str])

    def say(self, *lines: str) -> None:
        """Tell, and keep for the record."""
        for line in lines:
            self.reporter.say(line)
        self.notes.extend(lines)

    @property
    def method(self) -> str:
        """How the weights were chosen."""
        before = self.opened.pruned_before
        return self.request.method if before is None else before.method


def compress_checkpoint(request: CompressRequest, reporter: CompressReporter) -> Compression:
    """Prune to 2:4, recover by distillation or reconstruction, train in INT8 where asked, save: nothing before that.

    In each process of torchrun: all train, and the first one writes and speaks.

    Raises:
        GpusqError: The output exists, a bad checkpoint or folder, labels that don't fit the model, divergence, or an
            interrupted run of another request.
    """
    with process_group() as processes:
        return _compressed(request, reporter if processes.first else _SILENT, processes)


def _compressed(request: CompressRequest, reporter: CompressReporter, processes: Ranks) -> Compression:
    opened = _opened(request, processes)
    teacher = opened.teacher.module.to(device())
    answer = _answer(teacher, opened.checkpoint.preprocessing)
    task = task_of(teacher, answer, maps=has_maps(Path(request.data.data)))
    features = _only_features(teacher, task, answer, request)
    labels = Labels(sys.maxsize, {}) if features else _labels(teacher, task, answer)
    data = load_data(request.data, opened.checkpoint.preprocessing, task.measure, labels)
    state = ResumeFolder(request.out, _fingerprint(request, opened, data), request.every, processes)
    goes_on = state.begin(resume=request.resume)
    report = state.report()
    if report is not None:
        return msgspec.json.decode(report, type=Compression)
    if request.resume:
        reporter.say("goes on from the state of the interrupted run" if goes_on else "nothing to resume: begins anew")
    run = _Run(
        request=request,
        reporter=reporter,
        processes=processes,
        opened=opened,
        task=task,
        data=data,
        measured=_score_function(teacher, task, data, request, features=features),
        features=features,
        state=state,
    )
    _require_order(run, teacher)
    return _trained(run, teacher)


def _trained(run: _Run, teacher: torch.nn.Module) -> Compression:
    """Everything after what can be refused: the output is in its place."""
    dense = run.measured(teacher)
    run.say(*_notes(run, dense), *run.data.remarks)
    for name in run.data.skipped:
        run.reporter.say(f"skipped {name}")
    start = _start(run, teacher)
    pruned = run.measured(start.student)
    done = _recovered(run, start)
    recovered = pruned if done.method == run.method else run.measured(done.module)
    quantized = _quantized(run, replace(_pair(run, start), student=done.module), done.training)
    report = _report(run, start, done, quantized, (dense, pruned, recovered))
    _save(run, done.module, report.method, quantized, json_from_value(report))
    return report


def _report(
    run: _Run, start: Start, done: _Recovered, quantized: _Quantized | None, floats: tuple[Scores, Scores, Scores]
) -> Compression:
    choice, data = run.opened.choice, run.data
    return Compression(
        file=str(run.request.out),
        arch=str(run.opened.checkpoint.arch),
        method=" + ".join(filter(None, (done.method, quantized.method if quantized else ""))),
        pruned=choice.pruned,
        dense=choice.dense,
        classes=len(data.classes),
        train_images=len(data.train),
        held_out_images=len(data.held_out),
        skipped=data.skipped,
        feature_blocks=len(later_blocks(done.module)),
        epochs=run.request.training.epochs,
        qat_epochs=run.request.qat_epochs,
        held_out=_held_out(run, floats, quantized),
        notes=tuple(run.notes),
        permuted=start.permuted,
        int8=tuple(quantized.layers.calibrators) if quantized else (),
        float_layers=quantized.layers.kept_float if quantized else (),
        reconstruction=done.reconstruction,
        counting=_counted(run.opened.checkpoint, done.module, choice.pruned, quantized),
    )


def _start(run: _Run, teacher: torch.nn.Module) -> Start:
    """The pruned student and its teacher: made, or as the interrupted run made them."""
    kept = run.state.read("start")
    if kept is not None:
        start = start_from(kept, teacher, copy.deepcopy(teacher))
        run.say(*start.notes)
    else:
        said = len(run.notes)
        start = _pruned_before(run, teacher) or _pruned_now(run, teacher)
        start = replace(start, notes=tuple(run.notes[said:]))
        if _trains(run.request):
            run.state.write("start", start.kept())
    start.same_everywhere(run.processes)
    return start


def _pruned_before(run: _Run, teacher: torch.nn.Module) -> Start | None:
    """The student as its checkpoint has it, where that is 2:4 already."""
    record, checkpoint = run.opened.pruned_before, run.opened.checkpoint
    if record is None:
        return None
    student = checkpoint.module.to(next(teacher.parameters()).device)
    return Start(teacher=teacher, student=student, masks=_nonzero(student, record.layers), permuted=(), notes=())


def _pruned_now(run: _Run, teacher: torch.nn.Module) -> Start:
    """A pruned copy of the model, and the teacher in its order."""
    layers = run.opened.choice.pruned
    if run.request.teacher is None:
        teacher, permuted = _arranged(run, teacher, layers)
        student, masks = _pruned(run, teacher, layers)
        return Start(teacher=teacher, student=student, masks=masks, permuted=permuted, notes=())
    dense = run.opened.checkpoint.module.to(next(teacher.parameters()).device)
    student, masks = _pruned(run, dense, layers)
    return Start(teacher=teacher, student=student, masks=masks, permuted=(), notes=())


def _pair(run: _Run, start: Start) -> Distilled:
    return Distilled(student=start.student, teacher=start.teacher, masks=start.masks, task=run.task)


def _recovered(run: _Run, start: Start) -> _Recovered:
    """What follows pruning; where nothing does, the pruned student."""
    request, options = run.request, run.request.training
    pair = _with_comparable_features(run, _pair(run, start))
    if request.stage in RECONSTRUCTIONS:
        return _reconstructed(run, pair)
    if not options.epochs:
        return _Recovered(pair.student, run.method)
    kept = run.state.read("sparse")
    if kept is None:
        found = recover(
            pair,
            run.data,
            options,
            run.reporter.epoch,
            told=run.reporter.step,
            keeper=run.state.keeper("prune"),
        )
        if request.qat_epochs is not None:
            run.state.write("sparse", {"student": pair.student.state_dict(), "found": list(found)})
    else:
        pair.student.load_state_dict(kept["student"])
        pair.student.requires_grad_(requires_grad=False).eval()
        found = Recovery(*kept["found"])
    run.say(*_kept(found, options.epochs))
    method = f"{run.method} + distillation" if found.epoch else run.method
    return _Recovered(pair.student, method, found)


def _with_comparable_features(run: _Run, pair: Distilled) -> Distilled:
    """Without the feature term where another checkpoint teaches whose blocks' channels are in another order."""
    if run.request.teacher is None or not run.request.training.epochs:
        return pair
    some = run.data.train.batch(spread_indices(len(run.data.train), _TOLD_IMAGES)).images
    errors = feature_errors(pair, some)
    if not errors or min(errors) < 1:
        return pair
    run.say(
        f"the blocks' outputs differ from the teacher's by {min(errors):.2g} of their variance: distilling without the "
        "feature term (a model that was permuted has its channels in another order)"
    )
    return replace(pair, weights=(0.0,) * len(errors))


def _reconstructed(run: _Run, pair: Distilled) -> _Recovered:
    """The best of the pruned student and the passes, by the score that is reported and then by the outputs' cosine."""
    request = run.request
    module, report = reconstruct(
        Pair(teacher=pair.teacher, student=pair.student),
        tuple(pair.masks),
        _fitted_on(run, pair.teacher),
        ReconstructOptions(prune=OneshotOptions(method=request.method, seed=request.training.seed)),
        run.reporter.say,
    )
    run.say(*report.notes)
    done = report.kept != report.passes[0].name
    method = f"{request.method} + reconstruction" if done else request.method
    return _Recovered(module, method, reconstruction=report)


def _fitted_on(run: _Run, teacher: torch.nn.Module) -> Data:
    """What reconstruction uses, and how it scores: as is reported, then by the outputs' cosine."""
    data, size = run.data, run.request.training.batch_size

    def quality(module: torch.nn.Module) -> tuple[float, ...]:
        score = run.measured(module).main
        return (score,) if run.features else (score, _cosine(module, teacher, data, size))

    told = data.held_out.batch(spread_indices(len(data.held_out), _TOLD_IMAGES)).images
    return Data(
        images=_prune_images(teacher, data, run.request),
        held_out=told.to(next(teacher.parameters()).device),
        quality=quality,
    )


def _kept(found: Recovery, epochs: int) -> Iterator[str]:
    """Where another epoch than the last was best."""
    if found.epoch < epochs:
        which = f"epoch {found.epoch}" if found.epoch else "the start"
        yield f"kept {which}: {found.kept:.2%} of the validation images, the last epoch {found.last:.2%}"


def _quantized(run: _Run, pair: Distilled, recovery: Recovery | None) -> _Quantized | None:
    """The sparse model in INT8, in place: trained with itself as it is now for its teacher, or reconstructed."""
    layers = run.opened.int8
    if layers is None:
        return None
    student = pair.student
    images = torch.split(_prune_images(student, run.data, run.request), run.request.training.batch_size)
    scales = observed_scales(student, layers.calibrators, images)
    run.processes.same([scale.detach() for scale in scales.parameters()])
    if run.request.qat_epochs is None:
        return _reconstructed_int8(run, pair, layers, scales)
    run.say(f"trains {counted(len(layers.calibrators), 'layer')} in INT8, {len(layers.kept_float)} stay float")
    teacher = copy.deepcopy(student).requires_grad_(requires_grad=False).eval()
    training, epochs = run.request.training, run.request.qat_epochs
    options = msgspec.structs.replace(training, epochs=epochs, learning_rate=_QAT_RATE * training.learning_rate)
    weights = block_weights(recovery.block_losses) if recovery is not None and recovery.block_losses else None
    trained = replace(pair, teacher=teacher, scales=scales.parameters(), weights=weights)
    with fake_quantized(student, scales):
        before = run.measured(student)
        found = recover(
            trained,
            run.data,
            options,
            run.reporter.epoch,
            told=run.reporter.step,
            keeper=run.state.keeper("qat"),
        )
        run.say(*_kept(found, epochs))
        after = run.measured(student)
    method = "quantisation-aware training" if found.epoch else ""
    return _Quantized(layers, scales, before.main, after.main, method)


def _reconstructed_int8(run: _Run, pair: Distilled, layers: Int8Layers, scales: InputScales) -> _Quantized:
    """Blocks are fitted in INT8 to the dense ones, or stay where that scores no better."""
    request = run.request
    module, report = reconstruct_int8(
        Pair(teacher=pair.teacher, student=pair.student),
        scales,
        _fitted_on(run, pair.teacher),
        ReconstructOptions(prune=OneshotOptions(method=request.method, seed=request.training.seed)),
        run.reporter.say,
    )
    pair.student.load_state_dict(module.state_dict())
    told = f"in INT8 {report.rounded[0]:.4f} of the held-out score rounded to nearest, {report.reconstructed[0]:.4f} "
    run.say(f"{told}reconstructed{'' if report.kept else ': the former is kept'}")
    best = report.reconstructed if report.kept else report.rounded
    return _Quantized(layers, scales, report.rounded[0], best[0], "INT8 reconstruction" if report.kept else "")


def _arranged(
    run: _Run, teacher: torch.nn.Module, layers: tuple[str, ...]
) -> tuple[torch.nn.Module, tuple[Permuted, ...]]:
    """The dense model in the order in which 2:4 keeps most: it teaches too, for its blocks may be in another order."""
    request = run.request
    if not request.permute:
        return teacher, ()
    images = _prune_images(teacher, run.data, request)
    learnt = None if request.method == "magnitude" else images
    arranged = arrange(teacher, layers, learnt, images, seed=request.training.seed)
    run.say(*arranged.lines())
    return arranged.module, arranged.permuted


def _prune_images(teacher: torch.nn.Module, data: TrainingData, request: CompressRequest) -> torch.Tensor:
    # Files are sorted by class: the first of them would be of one.
    chosen = spread_indices(len(data.train), request.prune_images)
    return data.train.batch(chosen).images.to(next(teacher.parameters()).device)


def _opened(request: CompressRequest, processes: Ranks) -> _Opened:
    """What the request names: refused before anything is trained."""
    _require_one_process(request, processes)
    _require_place(request)
    _require_stage(request)
    recipe = load_recipe(request.recipe)
    checkpoint = load_checkpoint(request.model, arch=request.arch, state_dict=request.state_dict)
    teacher = _teacher(checkpoint, request)
    _require_dense(checkpoint, request)
    _require_logits(checkpoint, request)
    wanted = request.qat_epochs is not None or request.stage == "reconstruct,int8"
    int8 = int8_layers(checkpoint.module, recipe) if wanted else None
    if checkpoint.sparsity is None:
        choice = prunable_layers(checkpoint.module, recipe, request.dense, convolutions=request.convolutions)
    else:
        choice = recorded_choice(checkpoint.module, checkpoint.sparsity.layers)
    return _Opened(checkpoint, teacher, choice, int8, recipe)


def _teacher(checkpoint: Checkpoint, request: CompressRequest) -> Checkpoint:
    """Who teaches: the model itself as it is, or another checkpoint of it."""
    if request.teacher is None:
        return checkpoint
    if request.permute:
        raise GpusqError(
            "permuted, the student's channels are in another order than the teacher's, and features can't be compared",
            place="--teacher",
            hint="leave out --permute",
        )
    try:
        teacher = load_checkpoint(request.teacher, arch=request.arch or checkpoint.arch)
    except GpusqError as error:
        raise GpusqError(
            f"the teacher can't be read as the model's architecture: {error.what}",
            place=str(request.teacher),
            hint=_TEACHER,
        ) from error
    shapes, others = (
        {name: tuple(tensor.shape) for name, tensor in each.module.state_dict().items()}
        for each in (checkpoint, teacher)
    )
    other = next((name for name in {**shapes, **others} if shapes.get(name) != others.get(name)), None)
    if other is not None:
        raise GpusqError(
            f"the teacher isn't of the model's architecture: its {other} is {others.get(other, 'missing')}, the "
            f"model's {shapes.get(other, 'missing')}",
            place=str(request.teacher),
            hint=_TEACHER,
        )
    return teacher


def _fingerprint(request: CompressRequest, opened: _Opened, data: TrainingData) -> dict[str, str]:
    """What decides the result, but for the learning rate: after a divergence a run goes on with another one."""
    training = builtins_from_value(request.training)
    asked = {
        "--stage": request.stage,
        "--method": request.method,
        "--prune-images": request.prune_images,
        "--permute": request.permute,
        "--dense": list(request.dense),
        "--convolutions": request.convolutions,
        "--held-out": request.data.split.held_out,
        "--annotations": request.data.annotations,
        "--reduce-labels": request.data.reduce_labels,
        "--augment": request.data.augment,
        "--mixup": request.data.mixup,
        "--cutmix": request.data.cutmix,
        "--epochs": [training.pop("epochs"), request.qat_epochs],
        "--loss": [training.pop(name) for name in ("alpha", "beta", "gamma")],
    }
    del training["learning_rate"]
    asked |= {f"--{name.replace('_', '-')}": value for name, value in training.items()}
    return {
        "model": digest_of_tensors(opened.checkpoint.module.state_dict()),
        "teacher": digest_of_tensors(opened.teacher.module.state_dict()),
        "data": digest_of_data(data),
        "recipe": digest_of_bytes(json_from_value(opened.recipe)),
        **{name: str(value) for name, value in asked.items()},
    }


def _pruned(run: _Run, teacher: torch.nn.Module, layers: tuple[str, ...]) -> tuple[torch.nn.Module, Masks]:
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
    pruned = prune_oneshot(teacher, layers, _prune_images(teacher, run.data, request), options)
    masks = _nonzero(pruned.module, layers)
    apply_masks(pruned.module, masks)
    run.say(*_pruning_notes(pruned.report))
    return pruned.module, masks


def _nonzero(module: torch.nn.Module, layers: tuple[str, ...]) -> Masks:
    return {layer: weight_of(module, layer).detach() != 0 for layer in layers}


def _pruning_notes(report: OneshotReport) -> Iterator[str]:
    yield f"pruned by {report.options.method} on {report.images} images, block by block ({report.blocks})"
    yield from (f"{layer.layer}: {layer.note}" for layer in report.layers if layer.note is not None)


def _answer(teacher: torch.nn.Module, preprocessing: Preprocessing) -> Any:
    """What the model answers to one image of zeros."""
    device = next(teacher.parameters()).device
    with torch.no_grad():
        return teacher(torch.zeros(1, *preprocessing.sample_shape, device=device))


def _require_order(run: _Run, teacher: torch.nn.Module) -> None:
    """Labels in another order would teach the model that what it knows is wrong."""
    samples, classes, size = run.data.held_out, run.data.classes, run.request.training.batch_size
    if run.features or not samples.labelled or run.task.measure != "accuracy":
        return
    targets = [target for index in range(len(samples)) for target in samples.batch([index]).targets or ()]
    order = other_order(predict(run.task, teacher, samples, size), targets)
    if order:
        wrong, right = next(pair for pair in order.items() if pair[0] != pair[1])
        name = f"{classes[wrong]!r} ({wrong})" if classes else str(wrong)
        raise GpusqError(
            f"the data's classes are in another order than the model's: of class {name} it predicts {right}",
            place=run.request.data.data,
            hint="name the class folders so that they sort in the model's order; a flat folder needs no labels",
        )


def _only_features(teacher: torch.nn.Module, task: Task, answer: Any, request: CompressRequest) -> bool:
    """True where nothing is trained and the model answers neither classes, boxes nor label maps, but tokens or maps."""
    if _trains(request) or task.measure != "accuracy":
        return False
    first = _first(answer)
    return first is not None and (first is not answer or first.ndim > 2 or _headless(teacher))


def _first(answer: Any) -> torch.Tensor | None:
    """An answer, or the first of several; None where that is no tensor."""
    while isinstance(answer, (tuple, list)) and answer:
        answer = cast("Sequence[Any]", answer)[0]
    return answer if isinstance(answer, torch.Tensor) else None


def _labels(teacher: torch.nn.Module, task: Task, answer: Any) -> Labels:
    """The model's labels, by its answer to zeros and by the config of a transformers model."""
    if task.measure == "accuracy":
        return Labels(require_logits(answer).shape[1], {})
    config: Any = getattr(teacher, "config", None)
    count = answer.shape[1] if isinstance(answer, torch.Tensor) else answer[0].shape[-1]
    return Labels(getattr(config, "num_labels", count), getattr(config, "id2label", {}))


def _score_function(
    teacher: torch.nn.Module, task: Task, data: TrainingData, request: CompressRequest, *, features: bool
) -> Callable[[torch.nn.Module], Scores]:
    size = request.training.batch_size
    if features:
        return lambda module: Scores(None, _cosine(module, teacher, data, size))
    reference = predict(task, teacher, data.held_out, size)
    return lambda module: score(task, module, data.held_out, reference, size)


def _cosine(module: torch.nn.Module, teacher: torch.nn.Module, data: TrainingData, size: int) -> float:
    """Mean cosine of the two models' output vectors (last axis) on the held-out images."""
    device = next(teacher.parameters()).device
    cosines: list[torch.Tensor] = []
    with torch.no_grad():
        for start in range(0, len(data.held_out), size):
            images = data.held_out.batch(range(start, min(start + size, len(data.held_out)))).images.to(device)
            ours, theirs = _first(module(images)), _first(teacher(images))
            assert ours is not None and theirs is not None, "found before"  # noqa: PT018 - no test
            cosines.append(torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).flatten())
    return float(torch.cat(cosines).double().mean())


def _held_out(run: _Run, floats: tuple[Scores, Scores, Scores], quantized: _Quantized | None) -> HeldOutScore:
    dense, pruned, recovered = floats
    return HeldOutScore(
        measure="cosine" if run.features else "agreement" if dense.labelled is None else run.task.measure,
        dense=dense.main,
        pruned=pruned.main,
        recovered=recovered.main,
        quantized=None if quantized is None else quantized.before,
        trained=None if quantized is None else quantized.after,
    )


def _notes(run: _Run, dense: Scores) -> Iterator[str]:
    checkpoint, data = run.opened.checkpoint, run.data
    if run.features:
        yield "the model returns no logits: scored by the cosine of its output vectors with the dense model's"
    elif not data.classes:
        yield "no class folders: the dense model's predictions serve as labels"
    elif dense.labelled is not None and dense.labelled < _CHANCE / len(data.classes):
        yield (
            f"the dense model is right on only {dense.labelled:.1%} of the held-out images, no more than chance: are "
            "the class folders, sorted by name, in the order of the model's classes? a flat folder needs no labels"
        )
    if run.request.training.epochs > 0 and not later_blocks(checkpoint.module):
        yield "the model has no repeated blocks: distilling without the feature term"
    if checkpoint.ranges:
        yield f"the {len(checkpoint.ranges)} activation ranges of the dense model no longer hold and are left out"


def _trains(request: CompressRequest) -> bool:
    return bool(request.training.epochs or request.qat_epochs is not None)


def _require_one_process(request: CompressRequest, processes: Ranks) -> None:
    if processes.world > 1 and not _trains(request):
        raise GpusqError(
            f"only training runs in several processes, and here are {processes.world}: each would do all of it",
            place="torchrun",
            hint="run gpusq-compress without torchrun",
        )


def _headless(module: torch.nn.Module) -> bool:
    """Whether the model says that it has no classifier, as timm's do: its answer is an embedding."""
    return getattr(module, "num_classes", None) == 0


def _require_logits(checkpoint: Checkpoint, request: CompressRequest) -> None:
    """A model without a classifier answers an embedding, which has the shape of logits."""
    if _trains(request) and _headless(checkpoint.module):
        raise GpusqError(
            "training needs logits, and the model has no classifier: num_classes is 0",
            place=str(checkpoint.arch),
            hint="--epochs 0 prunes it; --method second-order loses least",
        )


def _require_stage(request: CompressRequest) -> None:
    if request.resume and not _trains(request):
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
    if out.exists() and not request.force and not (request.resume and was_done(out)):
        raise GpusqError("the output exists", place=str(out), hint="choose another --out, or replace it with --force")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise GpusqError("the output can't be written there", place=str(parent), hint="choose another --out")
    if not request.resume and not request.force:
        require_no_state(out)


def _require_dense(checkpoint: Checkpoint, request: CompressRequest) -> None:
    record = checkpoint.sparsity
    if record is None:
        return
    if request.teacher is None or not _trains(request):
        raise GpusqError(
            f"the checkpoint says that {len(record.layers)} of its layers are {record.pattern} already",
            place=str(request.model),
            hint="to train it on, give the dense checkpoint that it was made from as --teacher",
        )
    require_sparse(
        sparsity_report(
            layer_weights(checkpoint.module),
            source=str(request.model),
            recipe=load_recipe(request.recipe),
            record=record,
        ),
        command="gpusq-compress of the dense checkpoint",
    )


def _counted(
    checkpoint: Checkpoint, module: torch.nn.Module, pruned: tuple[str, ...], quantized: _Quantized | None
) -> Counting:
    """The saved model, what isn't INT8 in FP16 as gpusq-build has it."""
    int8 = quantized.layers.calibrators if quantized else {}
    layers = [
        CountedLayer(
            len(each.rows),
            each.rows.shape[1],
            each.macs,
            8 if each.layer in int8 else _FLOAT_BITS,
            each.layer in pruned,
        )
        for each in counted_weights(module, checkpoint.preprocessing.sample_shape)
    ]
    whole = sum(parameter.numel() for parameter in module.parameters())
    return count(layers, others=whole - sum(each.n * each.k for each in layers), other_bits=_FLOAT_BITS)


def _save(run: _Run, student: torch.nn.Module, method: str, quantized: _Quantized | None, report: bytes) -> None:
    request, checkpoint = run.request, run.opened.checkpoint

    def save(path: Path) -> None:
        save_checkpoint(
            path,
            student,
            arch=checkpoint.arch,
            preprocessing=checkpoint.preprocessing,
            sparsity=SparsityRecord(method=method, layers=run.opened.choice.pruned),
            ranges=None if quantized is None else quantized.scales.ranges(),
            floats=None if quantized is None else {kept.layer: kept.reason for kept in quantized.layers.kept_float},
        )

    if _trains(request):
        run.state.finish(save, report)
        return
    try:
        save(request.out)
    except OSError as error:
        raise GpusqError(f"cannot write the checkpoint: {error.strerror}", place=str(request.out)) from error
