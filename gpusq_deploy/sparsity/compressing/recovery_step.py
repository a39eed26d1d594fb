"""The pruned student recovered: by distillation, or block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from gpusq_deploy.artifacts import (
    RECONSTRUCTIONS,
)
from gpusq_deploy.calibration import spread_indices
from gpusq_deploy.sparsity.compressing.judging import cosine
from gpusq_deploy.sparsity.compressing.run import Recovered, Run, pair_of, trained_by
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions
from gpusq_deploy.sparsity.reconstruction.one_block import Pair
from gpusq_deploy.sparsity.reconstruction.plan import Data, ReconstructOptions
from gpusq_deploy.sparsity.reconstruction.reconstruct import reconstruct
from gpusq_deploy.sparsity.training.distill import Recovery, feature_errors
from gpusq_deploy.sparsity.training.keeping import Start
from gpusq_deploy.sparsity.training.pair import Distilled

# Held-out images on which reconstruction tells the error of each block.
_TOLD_IMAGES = 32


def recovered_of(run: Run, start: Start) -> Recovered:
    """What follows pruning; where nothing does, the pruned student."""
    request, options = run.request, run.request.training
    pair = _with_comparable_features(run, pair_of(run, start))
    if request.stage in RECONSTRUCTIONS:
        return _reconstructed(run, pair)
    if not options.epochs:
        return Recovered(pair.student, run.method)
    kept = run.state.read("sparse")
    if kept is None:
        found = trained_by(run, pair, options, "prune")
        if request.qat_epochs is not None:
            run.state.write("sparse", {"student": pair.student.state_dict(), "found": list(found)})
    else:
        pair.student.load_state_dict(kept["student"])
        pair.student.requires_grad_(requires_grad=False).eval()
        found = Recovery(*kept["found"])
    run.say(*kept_notes(found, options.epochs))
    method = f"{run.method} + distillation" if found.epoch else run.method
    return Recovered(pair.student, method, found)


def _with_comparable_features(run: Run, pair: Distilled) -> Distilled:
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


def _reconstructed(run: Run, pair: Distilled) -> Recovered:
    """The best of the pruned student and the passes, by the score that is reported and then by the outputs' cosine."""
    request = run.request
    module, report = reconstruct(
        Pair(teacher=pair.teacher, student=pair.student),
        tuple(pair.masks),
        fitted_on(run, pair.teacher),
        ReconstructOptions(prune=OneshotOptions(method=request.method, seed=request.training.seed)),
        run.reporter.say,
    )
    run.say(*report.notes)
    if report.images < len(run.data.train):
        run.say(f"fitted on {report.images} of {len(run.data.train)} images: --prune-images takes more of them")
    done = report.kept != report.passes[0].name
    method = f"{request.method} + reconstruction" if done else request.method
    return Recovered(module, method, reconstruction=report)


def fitted_on(run: Run, teacher: torch.nn.Module) -> Data:
    """What reconstruction uses, and how it scores: as is reported, then by the outputs' cosine."""
    data, size = run.data, run.request.training.batch_size

    def quality(module: torch.nn.Module) -> tuple[float, ...]:
        score = run.measured(module).main
        return (score,) if run.features else (score, cosine(module, teacher, data, size))

    told = data.held_out.batch(spread_indices(len(data.held_out), _TOLD_IMAGES)).images
    return Data(
        images=run.images(),
        held_out=told.to(next(teacher.parameters()).device),
        quality=quality,
    )


def kept_notes(found: Recovery, epochs: int) -> Iterator[str]:
    """Where another epoch than the last was best."""
    if found.epoch < epochs:
        which = f"epoch {found.epoch}" if found.epoch else "the start"
        yield f"kept {which}: {found.kept:.2%} of the validation images, the last epoch {found.last:.2%}"
