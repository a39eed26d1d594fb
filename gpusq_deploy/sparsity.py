"""The 2:4 check of a whole model, against what the recipe or the checkpoint expects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from gpusq_deploy.artifacts.plan import LayerKind
from gpusq_deploy.artifacts.sparsity import GroupViolation, LayerSparsity, SparsityRecord, SparsityReport
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.numerics.sparsity import GROUP, violating_groups, zero_fraction
from gpusq_deploy.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerWeight:
    """One weight as rows along the contracted axis: [N, K], or [N · kernel positions, channels] for a Conv."""

    layer: str
    tensor: str
    kind: LayerKind
    rows: npt.NDArray[Any]


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
    return SparsityReport(source=source, layers=checked)


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


def require_sparse(report: SparsityReport, *, command: str) -> None:
    """Refuse a model that should be 2:4 and is not.

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
    names = ", ".join(layer.layer for layer in broken[:5]) + (f" and {len(broken) - 5} more" if len(broken) > 5 else "")
    raise GpusqError(
        f"{len(broken)} of {expected} layers that should be 2:4 are not: {names}",
        place=f"{report.source}, {first.layer}: {violation_text(first)}",
        hint=f"make it 2:4 with: {command}",
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


def _expectation(weight: LayerWeight, recipe: Recipe, record: SparsityRecord | None) -> tuple[bool, str]:
    if record is not None:
        # A module that is called several times has one entry in the record and several layers in the graph.
        named = weight.layer.partition("/")[0] in record.layers
        return named, f"the checkpoint's record ({record.method}) {'names it' if named else 'leaves it dense'}"
    rule = recipe.rule_for(weight.layer, weight.kind)
    if rule is None:
        return False, f"no rule of recipe {recipe.name} matches it"
    return rule.sparse, f"recipe {recipe.name}: {rule.reason}"


def _checked(weight: LayerWeight, expected: bool, reason: str) -> LayerSparsity:
    rows = weight.rows
    aligned = rows.shape[1] % GROUP == 0
    bad = violating_groups(rows) if aligned else None
    first = None
    if bad is not None and len(bad):
        row, index = (int(place) for place in bad[0])
        group = rows[row, index * GROUP : (index + 1) * GROUP]
        first = GroupViolation(row=row, index=index, values=tuple(float(value) for value in group))
    return LayerSparsity(
        layer=weight.layer,
        tensor=weight.tensor,
        n=rows.shape[0],
        k=rows.shape[1],
        groups=rows.size // GROUP,
        violations=0 if bad is None else len(bad),
        first=first,
        zero_fraction=zero_fraction(rows),
        expected=expected,
        reason=reason,
    )
