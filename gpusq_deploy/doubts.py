"""What speaks against a comparison, in sentences: for stderr, the table, JSON and the receipt's readers alike."""

from __future__ import annotations

from collections.abc import Iterator

from gpusq_deploy.artifacts.receipt import PruningLoss, Receipt, Verification
from gpusq_deploy.wording import counted

# There the error has a tenth of the signal's energy, 32 % of its amplitude. Every shipped recipe, INT4's too, keeps
# more of DINOv2 (docs/recipes.md).
_LEAST_DB = 10.0
# Below a half, most samples get another answer.
_LEAST_AGREEMENT = 0.5
_POINTED_AT = 3


def receipt_doubts(receipt: Receipt) -> tuple[str, ...]:
    """All that speaks against a bundle's figures, pruning first."""
    pruning = () if receipt.pruning is None else pruning_doubts(receipt.pruning)
    return (*pruning, *(() if receipt.verification is None else doubts(receipt.verification)))


def doubts(found: Verification) -> tuple[str, ...]:
    """Why a comparison should not be trusted, or what it found should not be deployed; empty where nothing says so.

    How large the figures are is judged on real samples alone.
    """
    return tuple(_doubts(found))


def pruning_doubts(found: PruningLoss) -> tuple[str, ...]:
    """As `doubts`, of the pruned model beside the dense one."""
    weak = "" if found.constant or found.synthetic else _weak("", found.sqnr_db, found.top1_agreement)
    if not weak:
        return ()
    return (
        f"pruning alone changes the answers of the dense model too much: {weak}, on {counted(found.images, 'sample')}; "
        "second-order keeps most of the three methods of --prune, and gpusq-compress trains the pruned model",
    )


def constant_text(found: Verification) -> str:
    """Why figures of a constant output prove nothing; empty where the first output isn't one."""
    if not found.constant:
        return ""
    alike = "answers its one sample with zeros" if found.images == 1 else f"answers all {found.images} samples alike"
    return (
        f"the {found.reference} graph {alike}, so the comparison proves nothing: the head may be zero-initialised or "
        "untrained, or the samples one and the same"
    )


def noisiest_text(found: Verification) -> str:
    """Where most noise is added; empty where no block adds any."""
    return ", ".join(f"{block.module} ({block.sqnr_db:.1f} dB behind it)" for block in found.noisiest(_POINTED_AT))


def _doubts(found: Verification) -> Iterator[str]:
    if found.constant:
        yield constant_text(found)
    if found.constant_others:
        names = ", ".join(found.constant_others)
        yield f"the {found.reference} graph gives every sample the same {names}: what is said of it proves nothing"
    weak = "" if found.synthetic else ", ".join(_weak_outputs(found))
    if weak:
        worst = noisiest_text(found)
        where = f"; most noise is added in {worst}: a recipe can leave layers there float" if worst else ""
        yield (
            f"the built graph's answers are far from those of the {found.reference} graph: {weak}, on {found.images} "
            f"samples{where}; --min-sqnr and --min-agreement refuse such a build"
        )


def _weak_outputs(found: Verification) -> Iterator[str]:
    if not found.constant and (weak := _weak("", found.sqnr_db, found.top1_agreement)):
        yield weak
    for other in found.others:
        if other.tensor not in found.constant_others and (weak := _weak(f" of {other.tensor}", other.sqnr_db, None)):
            yield weak


def _weak(which: str, decibels: float, agreement: float | None) -> str:
    """The figures, where one of them is too low to be taken for the same model; else nothing."""
    few = agreement is not None and agreement < _LEAST_AGREEMENT
    if decibels >= _LEAST_DB and not few:
        return ""
    said = f"SQNR{which} {decibels:.1f} dB"
    return said if agreement is None else f"{said} and top-1 agreement {agreement:.1%}"
