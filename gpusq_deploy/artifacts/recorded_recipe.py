"""A recipe, but for what a model's producer made of layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from gpusq_deploy.artifacts.plan import LayerKind
from gpusq_deploy.artifacts.recipe import QuantizedPrecision, Recipe, Rule


class TrainedLayer(NamedTuple):
    """What a producer made of a layer: its precision, how many inputs share a scale of its INT4 weight, and why."""

    precision: QuantizedPrecision
    block: int | None
    reason: str


class RecordedRecipe(Recipe):
    """A recipe for a checkpoint whose producer quantised it. It is never written to a file.

    `why_float` says of a layer's name and the precision that a rule gives it why the layer stays float all the same;
    empty where the rule stands. `trained` says what the producer made of a layer: where the recipe makes that of any
    layer, it is made of this one too.
    """

    why_float: Callable[[str, str], str]
    trained: Callable[[str], TrainedLayer | None]

    @classmethod
    def of(
        cls, recipe: Recipe, why_float: Callable[[str, str], str], trained: Callable[[str], TrainedLayer | None]
    ) -> RecordedRecipe:
        """The recipe with that word on top."""
        own = {name: getattr(recipe, name) for name in Recipe.__struct_fields__}
        return cls(**own, why_float=why_float, trained=trained)

    def rule_for(self, layer: str, kind: LayerKind) -> Rule | None:
        """The first rule, or what is left of it where the producer made something else of the layer."""
        rule = self.first_rule(layer, kind)
        if rule is None:
            return None
        trained = self.trained(layer)
        if trained is not None and trained.precision in self.precisions:
            if trained.precision != "int4":
                return rule if rule.precision != "float" else _as_trained(rule, trained)
            if kind == "linear":
                return _as_trained(rule, trained)
        if rule.precision == "float":
            return rule
        reason = self.why_float(layer, rule.precision)
        return _left_float(rule, reason) if reason else rule

    def reason_of(self, rule: Rule) -> str:
        """Of a layer that the producer decided the bare reason: the recipe doesn't say so."""
        return super().reason_of(rule) if any(rule is own for own in self.rules) else rule.reason


@functools.cache
def _left_float(rule: Rule, reason: str) -> Rule:
    """One object for one reason, so that layers are seen to be decided alike."""
    return _plain(rule, precision="float", block=None, reason=reason)


@functools.cache
def _as_trained(rule: Rule, trained: TrainedLayer) -> Rule:
    """One object for one decision, as above."""
    return _plain(rule, precision=trained.precision, block=trained.block, reason=trained.reason)


def _plain(rule: Rule, **changes: object) -> Rule:
    """The rule with ranges as they are found and weights rounded to nearest, changed."""
    return msgspec.structs.replace(
        rule,
        **{
            "calibrator": None,
            "percentile": None,
            "smooth": False,
            "headroom": 0.0,
            "rounding": "nearest",
            "correct_bias": False,
            "output": None,
            **changes,
        },
    )
