"""A dense checkpoint in, a 2:4 checkpoint and a report of what happened out."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import torch

from gpusq_deploy.artifacts import (
    SparsityRecord,
    json_from_value,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import (
    Checkpoint,
    counted_weights,
    save_checkpoint,
)
from gpusq_deploy.numerics import CountedLayer, Counting, count
from gpusq_deploy.sparsity.compressing.int8_step import quantized_of
from gpusq_deploy.sparsity.compressing.judging import (
    answer_of,
    labels_of,
    only_features,
    scored_by,
)
from gpusq_deploy.sparsity.compressing.opening import fingerprint, open_request
from gpusq_deploy.sparsity.compressing.pruning_step import prune_images, start_of
from gpusq_deploy.sparsity.compressing.recovery_step import recovered_of
from gpusq_deploy.sparsity.compressing.report import Compression, HeldOutScore
from gpusq_deploy.sparsity.compressing.request import SILENT, CompressReporter, CompressRequest, trains
from gpusq_deploy.sparsity.compressing.run import Quantized, Recovered, Run, pair_of
from gpusq_deploy.sparsity.training.data.label_maps import has_maps
from gpusq_deploy.sparsity.training.data.load import Labels, load_data
from gpusq_deploy.sparsity.training.distill import later_blocks
from gpusq_deploy.sparsity.training.distributed import Ranks, device, process_group
from gpusq_deploy.sparsity.training.keeping import Start
from gpusq_deploy.sparsity.training.resume import ResumeFolder
from gpusq_deploy.sparsity.training.scoring import Scores
from gpusq_deploy.sparsity.training.tasks.choose import task_of

_FLOAT_BITS = 16
_CHANCE = 1.2  # times one over the number of classes


def compress_checkpoint(request: CompressRequest, reporter: CompressReporter) -> Compression:
    """Prune to 2:4, recover by distillation or reconstruction, train in INT8 where asked, save: nothing before that.

    In each process of torchrun: all train, and the first one writes and speaks.

    Raises:
        GpusqError: The output exists, a bad checkpoint or folder, labels that don't fit the model, divergence, or an
            interrupted run of another request.
    """
    with process_group(even_alone=request.training.fsdp) as processes:
        return _compressed(request, reporter if processes.first else SILENT, processes)


def _compressed(request: CompressRequest, reporter: CompressReporter, processes: Ranks) -> Compression:
    opened = open_request(request, processes)
    teacher = opened.teacher.module.to(device())
    answer = answer_of(teacher, opened.checkpoint.preprocessing)
    task = task_of(teacher, answer, maps=has_maps(Path(request.data.data)))
    features = only_features(teacher, task, answer, request)
    labels = Labels(sys.maxsize, {}) if features else labels_of(teacher, task, answer)
    data = load_data(request.data, opened.checkpoint.preprocessing, task.measure, labels)
    asked = fingerprint(request, opened, data) if trains(request) else {}
    state = ResumeFolder(request.out, asked, request.every, processes)
    goes_on = state.begin(resume=request.resume)
    report = state.report()
    if report is not None:
        return msgspec.json.decode(report, type=Compression)
    if request.resume:
        reporter.say("goes on from the state of the interrupted run" if goes_on else "nothing to resume: begins anew")
    if request.training.fsdp and processes.world == 1:
        reporter.say("--fsdp shards nothing: one process holds all of the model")
    scored = scored_by(teacher, task, data, request, features=features)
    run = Run(
        request=request,
        reporter=reporter,
        processes=processes,
        opened=opened,
        task=task,
        data=data,
        images=functools.cache(functools.partial(prune_images, data, request)),
        measured=scored.measured,
        features=features,
        state=state,
    )
    return _trained(run, teacher, scored.dense)


def _trained(run: Run, teacher: torch.nn.Module, dense: Scores) -> Compression:
    """Everything after what can be refused: the output is in its place."""
    run.say(*_notes(run, dense), *run.data.remarks)
    for name in run.data.skipped:
        run.reporter.say(f"skipped {name}")
    start = start_of(run, teacher)
    pruned = run.measured(start.student)
    done = recovered_of(run, start)
    recovered = pruned if done.method == run.method else run.measured(done.module)
    quantized = quantized_of(run, replace(pair_of(run, start), student=done.module), done.training)
    report = _report(run, start, done, quantized, (dense, pruned, recovered))
    _save(run, done.module, report.method, quantized, json_from_value(report))
    return report


def _report(
    run: Run, start: Start, done: Recovered, quantized: Quantized | None, floats: tuple[Scores, Scores, Scores]
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


def _held_out(run: Run, floats: tuple[Scores, Scores, Scores], quantized: Quantized | None) -> HeldOutScore:
    dense, pruned, recovered = floats
    return HeldOutScore(
        measure="cosine" if run.features else "agreement" if dense.labelled is None else run.task.measure,
        dense=dense.main,
        pruned=pruned.main,
        recovered=recovered.main,
        quantized=None if quantized is None else quantized.before,
        trained=None if quantized is None else quantized.after,
    )


def _notes(run: Run, dense: Scores) -> Iterator[str]:
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


def _counted(
    checkpoint: Checkpoint, module: torch.nn.Module, pruned: tuple[str, ...], quantized: Quantized | None
) -> Counting:
    """The saved model, what isn't INT8 in FP16 as gpusq-build has it."""
    int8 = set(quantized.layers.calibrators) if quantized else set[str]()
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


def _save(run: Run, student: torch.nn.Module, method: str, quantized: Quantized | None, report: bytes) -> None:
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

    if trains(request):
        run.state.finish(save, report)
        return
    try:
        save(request.out)
    except OSError as error:
        raise GpusqError(f"cannot write the checkpoint: {error.strerror}", place=str(request.out)) from error
