"""Which calibrator each tensor gets, from the recipe."""

from __future__ import annotations

from collections.abc import Sequence

from gpusq_deploy.artifacts.calibration import AMAX, Calibrator
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.layers import GraphLayer
from gpusq_deploy.recipe import Recipe


def calibrators_for(layers: Sequence[GraphLayer], recipe: Recipe, *, usual: Calibrator = AMAX) -> dict[str, Calibrator]:
    """Calibrators by tensor.

    Args:
        layers: The layers whose inputs need a range.
        recipe: The rule that decides a layer decides its calibrator too.
        usual: For rules that name none.

    Raises:
        GpusqError: Two layers read one tensor and their rules name different calibrators: a tensor has one range.
    """
    chosen: dict[str, Calibrator] = {}
    reader: dict[str, str] = {}
    for layer in layers:
        rule = recipe.rule_for(layer.layer, layer.kind)
        wanted = usual if rule is None else rule.calibrator_or(usual)
        known = chosen.setdefault(layer.input, wanted)
        if known != wanted:
            raise GpusqError(
                f"{reader[layer.input]} and {layer.layer} read one tensor, with the calibrators {known} and {wanted}",
                place=f"recipe {recipe.name}, tensor {layer.input}",
                hint="let one rule decide both, or name the same calibrator in both rules",
            )
        reader.setdefault(layer.input, layer.layer)
    return chosen
