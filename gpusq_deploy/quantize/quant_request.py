"""What is to be quantised and how: what observing and planning start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpusq_deploy.artifacts import CalibrationTable, Calibrator, FloatPrecision, Recipe
from gpusq_deploy.graph import GraphLayer
from gpusq_deploy.quantize.int8_outputs import Int8Outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantRequest:
    """What is to be quantised and how.

    Attributes:
        layers: Of the float graph, those whose inputs need a range; empty where nothing is quantised.
        recipe: Its rules.
        calibrators: By tensor, where it isn't the largest magnitude.
        float_type: Of what stays in floating point.
        known: Ranges that were found before: with them nothing is smoothed, and no data says how weights are rounded.
        outputs: None leaves the outputs of layers alone, whatever the recipe says.
    """

    layers: tuple[GraphLayer, ...]
    recipe: Recipe
    calibrators: Mapping[str, Calibrator]
    float_type: FloatPrecision
    known: CalibrationTable | None = None
    outputs: Int8Outputs | None = None
