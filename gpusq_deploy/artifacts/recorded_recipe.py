"""A recipe, but for the layers that a model's producer ran in floating point."""

from __future__ import annotations

import functools
from collections.abc import Callable

import msgspec

from gpusq_deploy.artifacts.plan import LayerKind
from gpusq_deploy.artifacts.recipe import Recipe, Rule


class RecordedRecipe(Recipe):
    """A recipe for a checkpoint whose producer quantised it. It is never written to a file.

    `why_float` says of a layer's name and the precision that a rule gives it why the layer stays float all the same;
    empty where the rule stands.
    """

    why_float: Callable[[str, str], str]

    @classmethod
    def of(cls, recipe: Recipe, why_float: Callable[[str, str], str]) -> RecordedRecipe:
        """The recipe with that word on top."""
        return cls(**{name: getattr(recipe, name) for name in Recipe.__struct_fields__}, why_float=why_float)

    def rule_for(self, layer: str, kind: LayerKind) -> Rule | None:
        """The first rule, or what is left of it where the layer stays float."""
        rule = self.first_rule(layer, kind)
        if rule is None or rule.precision == "float":
            return rule
        reason = self.why_float(layer, rule.precision)
        return _left_float(rule, reason) if reason else rule

    def reason_of(self, rule: Rule) -> str:
        """Of a layer that was left float the bare reason: the recipe doesn't say so."""
        return super().reason_of(rule) if any(rule is own for own in self.rules) else rule.reason


@functools.cache
def _left_float(rule: Rule, reason: str) -> Rule:
    """One object for one reason, so that layers are seen to be decided alike."""
    return msgspec.structs.replace(
        rule,
        precision="float",
        block=None,
        calibrator=None,
        percentile=None,
        smooth=False,
        headroom=0.0,
        rounding="nearest",
        correct_bias=False,
        output=None,
        reason=reason,
    )
