"""The recovered student in INT8."""

from __future__ import annotations

import copy
from dataclasses import replace

import msgspec
import torch

from gpusq_deploy.sparsity.compressing.recovery_step import fitted_on, kept_notes
from gpusq_deploy.sparsity.compressing.run import Quantized, Run, trained_by
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions
from gpusq_deploy.sparsity.reconstruction.int8 import reconstruct_int8
from gpusq_deploy.sparsity.reconstruction.one_block import Pair
from gpusq_deploy.sparsity.reconstruction.plan import ReconstructOptions
from gpusq_deploy.sparsity.training.distill import Recovery
from gpusq_deploy.sparsity.training.losses import block_weights
from gpusq_deploy.sparsity.training.pair import Distilled
from gpusq_deploy.sparsity.training.qat import (
    InputScales,
    Int8Layers,
    fake_quantized,
    observed_scales,
)
from gpusq_deploy.text import counted

# Of the first stage's peak learning rate: the weights are trained already, and are to stay near.
_QAT_RATE = 0.1


def quantized_of(run: Run, pair: Distilled, recovery: Recovery | None) -> Quantized | None:
    """The sparse model in INT8, in place: trained with itself as it is now for its teacher, or reconstructed."""
    layers = run.opened.int8
    if layers is None:
        return None
    student = pair.student
    images = torch.split(run.images(), run.request.training.batch_size)
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
        found = trained_by(run, trained, options, "qat")
        run.say(*kept_notes(found, epochs))
        after = run.measured(student)
    method = "quantisation-aware training" if found.epoch else ""
    return Quantized(layers, scales, before.main, after.main, method)


def _reconstructed_int8(run: Run, pair: Distilled, layers: Int8Layers, scales: InputScales) -> Quantized:
    """Blocks are fitted in INT8 to the dense ones, or stay where that scores no better."""
    request = run.request
    module, report = reconstruct_int8(
        Pair(teacher=pair.teacher, student=pair.student),
        scales,
        fitted_on(run, pair.teacher),
        ReconstructOptions(prune=OneshotOptions(method=request.method, seed=request.training.seed)),
        run.reporter.say,
    )
    pair.student.load_state_dict(module.state_dict())
    told = f"in INT8 {report.rounded[0]:.4f} of the held-out score rounded to nearest, {report.reconstructed[0]:.4f} "
    run.say(f"{told}reconstructed{'' if report.kept else ': the former is kept'}")
    best = report.reconstructed if report.kept else report.rounded
    return Quantized(layers, scales, report.rounded[0], best[0], "INT8 reconstruction" if report.kept else "")
