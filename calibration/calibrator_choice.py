"""Which calibrator each tensor gets, from the recipe."""

from __future__ import annotations

from collections.abc import Sequence

from gpusq_deploy.artifacts import AMAX, Calibrator, Recipe
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import GraphLayer

_FOR_FP8 = ("amax", "percentile")


def calibrators_for(layers: Sequence[GraphLayer], recipe: Recipe, *, usual: Calibrator = AMAX) -> dict[str, Calibrator]:
    """Calibrators by tensor; FP8 has few, because the others weigh INT8's even steps.

    Args:
        layers: The layers whose inputs need a range.
        recipe: The rule that decides a layer decides its calibrator too.
        usual: For rules that name none.

    Raises:
        GpusqError: An FP8 layer gets a calibrator for INT8.
            Two layers read one tensor and their rules name different calibrators: a tensor has one range.
    """
    chosen: dict[str, Calibrator] = {}
    reader: dict[str, str] = {}
    for layer in layers:
        rule = recipe.rule_for(layer.layer, layer.kind)
        wanted = usual if rule is None else rule.calibrator_or(usual)
        if rule is not None and rule.precision == "fp8":
            _require_fp8(wanted, recipe)
        known = chosen.setdefault(layer.input, wanted)
        if known != wanted:
            raise GpusqError(
                f"{reader[layer.input]} and {layer.layer} read one tensor, with the calibrators {known} and {wanted}",
                place=f"recipe {recipe.name}, tensor {layer.input}",
                hint="let one rule decide both, or name the same calibrator in both rules",
            )
        reader.setdefault(layer.input, layer.layer)
    return chosen


def _require_fp8(wanted: Calibrator, recipe: Recipe) -> None:
    if wanted.name not in _FOR_FP8:
        raise GpusqError(
            f"the calibrator {wanted} weighs the steps of INT8, and recipe {recipe.name} has FP8 layers",
            place="--calibrator",
            hint=f"for FP8: {' or '.join(_FOR_FP8)}",
        )
