"""The 2:4 check of a whole model, against what the recipe or the checkpoint expects."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy.typing as npt

from gpusq_deploy.artifacts import (
    Diagnosis,
    GroupViolation,
    LayerSparsity,
    Recipe,
    SparsityRecord,
    SparsityReport,
    WorstGroup,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.numerics import (
    GROUP,
    GroupCensus,
    LayerWeight,
    Offender,
    census,
    is_matrix,
    worst_offender,
    zero_fraction,
)
from gpusq_deploy.text import some

# Unstructured pruning to a half breaks 5 of 16 groups (Binomial(4, 1/2) > 2); one lost update breaks far fewer.
_DAMAGED_SHARE = 0.05
# A third value below a thousandth of its row's largest was meant to be zero.
_TINY = 1e-3
# A weight that was never pruned has hardly any exact zeros.
_SOME_ZEROS = 0.1
# Last words of parameters' names that multiply no activation: tables, tokens, masks, norms and statistics.
_NO_WEIGHT = re.compile(
    r"pos(?!t)|token|mask|bias|table|embed|quer|latent|prompt|anchor|freq|norm|scale|gamma|beta|zero|index|queue|running|"
    r"mean|std|var|prototype|centroid|cache|amax|min_val|max_val|eps|buffer"
)
_BY_RECORD = "the checkpoint's record"


def unread_tensors(shapes: Mapping[str, Sequence[int]], read: Container[str]) -> tuple[str, ...]:
    """Tensors of a checkpoint that look like weights and weren't read, the largest first.

    Args:
        shapes: Of the tensors that may be weights, by name.
        read: Names of those that were.
    """
    found = [
        name
        for name, shape in shapes.items()
        if name not in read and is_matrix(shape) and not _NO_WEIGHT.search(name.rpartition(".")[2])
    ]
    return tuple(sorted(found, key=lambda name: -math.prod(shapes[name])))


def sparsity_report(
    weights: Iterable[LayerWeight], *, source: str, recipe: Recipe, record: SparsityRecord | None
) -> SparsityReport:
    """Check every layer.

    Args:
        weights: The model's weighted layers.
        source: What was checked, for the report.
        recipe: Which layers are expected to be 2:4 where the checkpoint doesn't say.
        record: What the checkpoint says was pruned; it beats the recipe.
    """
    checked = tuple(_checked(weight, *_expectation(weight, recipe, record)) for weight in weights)
    report = SparsityReport(source=source, layers=checked)
    return report if record is not None else without_lost_masks(report)


def without_lost_masks(report: SparsityReport) -> SparsityReport:
    """The report of a model that nobody pruned: its dense layers are called dense, for no mask was lost.

    Pruned is a model whose record says so, or one with zeros in a tenth of a layer that should be 2:4.
    """
    if any(_recorded(layer) or (layer.expected and layer.zero_fraction >= _SOME_ZEROS) for layer in report.layers):
        return report
    layers = tuple(
        msgspec.structs.replace(layer, diagnosis="dense") if layer.diagnosis == "mask lost" else layer
        for layer in report.layers
    )
    return msgspec.structs.replace(report, layers=layers)


def _recorded(layer: LayerSparsity) -> bool:
    return layer.expected and layer.reason.startswith(_BY_RECORD)


def require_known_layers(record: SparsityRecord | None, report: SparsityReport) -> None:
    """Refuse a record that names layers which the model doesn't have.

    Raises:
        GpusqError: Names them.
    """
    strangers = sorted(set(record.layers if record else ()) - {layer.layer for layer in report.layers})
    if strangers:
        raise GpusqError(
            f"the sparsity record names layers that the model doesn't have: {', '.join(strangers[:3])}",
            place=report.source,
            hint="the checkpoint was edited by hand; make it again with gpusq-compress",
        )


def require_sparse(report: SparsityReport, *, command: str, pruned_here: bool = True) -> None:
    """Refuse a model that should be 2:4 and is not.

    Args:
        report: Its 2:4 state.
        command: What makes it 2:4.
        pruned_here: Whether a build can prune it.

    Raises:
        GpusqError: Names the layers and the first violating group, and the command that mends it.
    """
    if not any(layer.expected for layer in report.layers):
        raise GpusqError("no layer of the model is expected to be 2:4", place=report.source, hint="leave out --sparse")
    broken = report.broken
    if not broken:
        return
    first = broken[0]
    expected = sum(layer.expected for layer in report.layers)
    names = some([layer.layer for layer in broken], 5)
    here = "add --prune second-order with --calib to prune it in the build, or "
    raise GpusqError(
        f"{len(broken)} of {expected} layers that should be 2:4 are not: {names}",
        place=f"{report.source}, {first.layer}: {violation_text(first)}",
        hint=f"{here if pruned_here else ''}make it 2:4 with: {command}",
    )


def violation_text(layer: LayerSparsity) -> str:
    """The first thing wrong with a layer, in words."""
    if layer.first is None:
        return f"K = {layer.k} is not a multiple of 4"
    values = ", ".join(f"{value:.4g}" for value in layer.first.values)
    start = layer.first.index * GROUP
    return (
        f"{layer.violations} of {layer.groups} groups have more than two non-zeros, the first at row "
        f"{layer.first.row}, columns {start} to {start + GROUP - 1}: [{values}]"
    )


def worst_text(layer: LayerSparsity) -> str:
    """The violation that rounding explains least, in words; empty where there is none."""
    if layer.worst is None:
        return ""
    row, group, value = layer.worst.row, layer.worst.index, layer.worst.value
    place = f"row {row}, columns {group * GROUP} to {group * GROUP + GROUP - 1}"
    return f"the worst, at {place}, has a third value of {value:.4g}, {layer.worst.ratio:.2g} of its row's largest"


def _expectation(weight: LayerWeight, recipe: Recipe, record: SparsityRecord | None) -> tuple[bool, str]:
    if record is not None:
        # A module that is called several times has one entry in the record and several layers in the graph.
        named = weight.layer.partition("/")[0] in record.layers
        return named, f"{_BY_RECORD} ({record.method}) {'names it' if named else 'leaves it dense'}"
    return recipe.expects_sparse(weight.layer, weight.kind, weight.rows.shape[1])


def _checked(weight: LayerWeight, expected: bool, reason: str) -> LayerSparsity:
    rows = weight.rows
    found = census(rows) if rows.shape[1] % GROUP == 0 else None
    zeros = zero_fraction(rows) if found is None else found.zeros / max(rows.size, 1)
    worst = worst_offender(rows) if found is not None and found.violations else None
    return LayerSparsity(
        layer=weight.layer,
        tensor=weight.tensor,
        n=rows.shape[0],
        k=rows.shape[1],
        groups=rows.size // GROUP,
        violations=0 if found is None else found.violations,
        first=_first(rows, found),
        zero_fraction=zeros,
        expected=expected,
        reason=reason,
        places=() if found is None else found.places,
        worst=_worst(worst),
        diagnosis="unaligned" if found is None else _diagnosis(weight, found, worst, expected=expected),
        dtype=rows.dtype.name,
        positions=weight.positions,
        macs=weight.macs,
    )


def _first(rows: npt.NDArray[Any], found: GroupCensus | None) -> GroupViolation | None:
    if found is None or not found.places:
        return None
    row, index = found.places[0]
    group = rows[row, index * GROUP : (index + 1) * GROUP]
    return GroupViolation(row=row, index=index, values=tuple(float(value) for value in group))


def _worst(found: Offender | None) -> WorstGroup | None:
    return None if found is None else WorstGroup(row=found.row, index=found.group, value=found.value, ratio=found.ratio)


def _diagnosis(weight: LayerWeight, found: GroupCensus, worst: Offender | None, *, expected: bool) -> Diagnosis:
    """What a weight looks like; the first that applies. The table is in docs/sparsity.md."""
    if worst is None:
        return "valid"
    zeros = found.zeros / weight.rows.size
    if worst.ratio <= _TINY:
        return "near misses"
    if found.violations <= _DAMAGED_SHARE * found.groups:
        return "damaged"
    if zeros >= 0.4 and _valid_elsewhere(weight):
        return "wrong axis"
    if zeros >= _SOME_ZEROS:
        return "unstructured"
    return "mask lost" if expected else "dense"


def _valid_elsewhere(weight: LayerWeight) -> bool:
    """True where the groups run along the output channels, or along a Conv's kernel as if it were one long row."""
    rows, positions = weight.rows, weight.positions
    kernels = rows.reshape(-1, positions, rows.shape[1])
    along_channels = kernels.reshape(len(kernels), -1).T
    others = [along_channels]
    if positions > 1:
        others.append(kernels.transpose(0, 2, 1).reshape(len(kernels), -1))
    return any(other.shape[1] % GROUP == 0 and census(other).violations == 0 for other in others)
