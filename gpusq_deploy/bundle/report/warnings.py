"""The figures of a comparison, and warnings about it: for stderr, the table and JSON alike."""

from __future__ import annotations

from collections.abc import Iterator

from gpusq_deploy.artifacts import Manifest, ProducerComparison, PruningLoss, Receipt, TaskAccuracy, Verification
from gpusq_deploy.text import counted

# There the error has a tenth of the signal's energy, 32 % of its amplitude. Every shipped recipe, INT4's too, keeps
# more of DINOv2 (docs/recipes.md).
_LEAST_DB = 10.0
# Below a half, most samples get another answer.
_LEAST_AGREEMENT = 0.5
_POINTED_AT = 2
# Below so many samples, tenths of a decibel say nothing: from one sample to the next it differs by several.
_FEW = 16
NOISE = "calibrated on random data: its ranges mean nothing, don't deploy this"


def bundle_doubts(manifest: Manifest, receipt: Receipt) -> tuple[str, ...]:
    """Why a bundle's figures should not be trusted, or it should not be deployed; empty where nothing says so."""
    doubts = receipt_doubts(receipt)
    return (NOISE, *doubts) if manifest.synthetic_calibration else doubts


def receipt_doubts(receipt: Receipt) -> tuple[str, ...]:
    """Warnings about a bundle's figures, pruning first."""
    pruning = () if receipt.pruning is None else pruning_doubts(receipt.pruning)
    return (*pruning, *(() if receipt.verification is None else verification_warnings(receipt.verification)))


def verification_warnings(found: Verification) -> tuple[str, ...]:
    """Why a comparison should not be trusted, or what it found should not be deployed; empty where nothing says so.

    How large the figures are is judged on real samples alone.
    """
    return tuple(_doubts(found))


def pruning_doubts(found: PruningLoss) -> tuple[str, ...]:
    """As `verification_warnings`, of the pruned model beside the dense one."""
    weak = "" if found.constant or found.synthetic else _weak(found)
    if not weak:
        return ()
    remedy = "try --prune second-order, or " if found.method != "second-order" else ""
    return (
        f"pruning alone costs too much accuracy: {weak}, on {counted(found.images, 'sample')}; "
        f"{remedy}let gpusq-compress train or reconstruct the model",
    )


def constant_text(found: Verification) -> str:
    """Why figures of a constant output prove nothing; empty where the first output isn't one."""
    if not found.constant:
        return ""
    alike = "zeros for its one sample" if found.images == 1 else f"the same output for all {found.images} samples"
    return (
        f"the comparison proves nothing: the {found.reference} model gives {alike}; "
        "check that its head is trained and that the samples differ"
    )


def task_text(found: TaskAccuracy) -> str:
    """The task's measure of both models, and what was lost with its interval and its limit."""
    limit = "" if found.max_drop is None else f"; --max-drop {found.max_drop:g}"
    points, low, high = (100 * value for value in (found.built - found.given, found.low, found.high))
    return (
        f"{found.measure} {found.built:.2%}, the given model {found.given:.2%}: {points:+.2f} points "
        f"[{low:+.2f}, {high:+.2f}] on {counted(found.images, 'image')} of {found.data}{limit}"
    )


def figures_text(found: Verification | PruningLoss) -> str:
    """The figures of the first output, no more exact than the number of samples allows; or why there is none."""
    if found.constant:
        return "no figures: the output is the same for all samples"
    if found.synthetic:
        return "not measured: random samples prove nothing about real inputs"
    figures = ", ".join(filter(None, [_sqnr_text(found), _agreement_text(found)]))
    return figures or "no figures: the output is of rounding errors"


def compared_text(found: Verification | PruningLoss, *, calibrated: bool = True) -> str:
    """The figures of every output, against which model, and on how many samples.

    Args:
        found: The comparison.
        calibrated: Whether anything was calibrated, so that a sample can be held out of that.
    """
    figures, reference = (
        (figures_text(found), "dense") if isinstance(found, PruningLoss) else (outputs_text(found), found.reference)
    )
    if found.synthetic:
        return figures
    seen = "" if not calibrated else "held-out " if found.held_out else "calibration "
    return f"{figures}, against the {reference} model, on {counted(found.images, f'{seen}sample')}"


def producer_text(found: ProducerComparison) -> str:
    """The figures of every output beside the producer's."""
    first, *rest = (
        f"{decibels_text(output.sqnr_db, found.images)}"
        if output.sqnr_db is not None
        else f"{output.equal or 0:.1%} equal"
        for output in found.outputs
    )
    others = (f"{output.tensor} {figure}" for output, figure in zip(found.outputs[1:], rest, strict=True))
    agreement = [] if found.top1_agreement is None else [f"top-1 agreement {found.top1_agreement:.1%}"]
    figures = ", ".join([first, *agreement])
    return f"{'; '.join([figures, *others])}, against {found.source}, on {counted(found.images, 'sample')}"


def outputs_text(found: Verification) -> str:
    """The figures of every output."""
    if found.synthetic:
        return figures_text(found)
    floats = (f"{other.tensor} {decibels_text(other.sqnr_db, found.images)}" for other in found.others)
    integers = (f"{other.tensor} {other.share:.1%} equal" for other in found.agreements)
    return "; ".join([figures_text(found), *floats, *integers])


def decibels_text(decibels: float, images: int) -> str:
    """`35.2 dB`; of few samples `35 dB`."""
    return f"{decibels:.{0 if images < _FEW else 1}f} dB"


def noisiest_text(found: Verification) -> str:
    """The blocks that add most noise, with the SQNR behind each; empty where none adds any, or on random samples."""
    worst = () if found.synthetic else found.noisiest(_POINTED_AT)
    return ", ".join(f"{block.module} ({decibels_text(block.sqnr_db, found.images)})" for block in worst)


def _sqnr_text(found: Verification | PruningLoss) -> str:
    if found.sqnr_db is None:
        return ""
    return f"SQNR {decibels_text(found.sqnr_db, found.images)}{_samples_text(found)}"


def _samples_text(found: Verification | PruningLoss) -> str:
    """How far the samples are apart: of few the lowest and the highest, of many the median."""
    if found.images == 1:
        return " (one sample proves little)"
    low, high = found.lowest_sqnr_db, found.highest_sqnr_db
    if found.images < _FEW and low is not None and high is not None:
        return f" ({low:.0f} to {high:.0f})"
    return "" if found.median_sqnr_db is None else f" (median {found.median_sqnr_db:.1f})"


def _agreement_text(found: Verification | PruningLoss) -> str:
    if found.top1_agreement is None:
        return ""
    if found.sqnr_db is None:
        return f"{found.top1_agreement:.1%} of the values equal"
    if found.images < _FEW:
        return f"top-1 {round(found.top1_agreement * found.images)} of {found.images}"
    return f"top-1 {found.top1_agreement:.1%}"


def _doubts(found: Verification) -> Iterator[str]:
    if found.constant:
        yield constant_text(found)
    if found.constant_others:
        names = ", ".join(found.constant_others)
        yield f"the {found.reference} model gives every sample the same {names}: figures of it prove nothing"
    if found.rounding:
        names = ", ".join(found.rounding)
        yield (
            f"{names}: the {found.reference} model computes rounding errors alone there, as in the mean of normalised "
            "values: it isn't counted; leave it out, or take what it is computed from"
        )
    weak = "" if found.synthetic else ", ".join(_weak_outputs(found))
    if weak:
        worst = noisiest_text(found)
        where = f"; most noise: {worst}; a recipe can keep it float" if worst else ""
        yield (
            f"the built model is far from the {found.reference} model: {weak}, on "
            f"{counted(found.images, 'sample')}{where}"
        )


def _weak_outputs(found: Verification) -> Iterator[str]:
    if not found.constant and (weak := _weak(found)):
        yield weak
    for other in found.others:
        if other.tensor not in found.constant_others and other.sqnr_db < _LEAST_DB:
            yield f"{other.tensor} {decibels_text(other.sqnr_db, found.images)}"


def _weak(found: Verification | PruningLoss) -> str:
    """The first output's figures, where one of them is too low to be taken for the same model; else nothing."""
    few = found.top1_agreement is not None and found.top1_agreement < _LEAST_AGREEMENT
    if not few and (found.sqnr_db is None or found.sqnr_db >= _LEAST_DB):
        return ""
    decibels = "" if found.sqnr_db is None else f"SQNR {decibels_text(found.sqnr_db, found.images)}"
    return ", ".join(filter(None, [decibels, _agreement_text(found)]))
