"""A bundle's layers, counted."""

from __future__ import annotations

from gpusq_deploy.artifacts import Precision, QuantPlan
from gpusq_deploy.numerics import CountedLayer, Counting, count

_BITS: dict[Precision, int] = {"int4": 4, "int8": 8, "fp8": 8, "fp16": 16, "bf16": 16, "fp32": 32}


def counting_of(plan: QuantPlan) -> Counting:
    """Of the products with weights alone: what else a model holds isn't in its plan."""
    layers = [CountedLayer(each.n, each.k, each.macs, _BITS[each.precision], each.sparse) for each in plan.layers]
    return count(layers, others=0, other_bits=32)
