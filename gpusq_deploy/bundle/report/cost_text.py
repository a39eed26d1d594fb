"""Predicted cost in words."""

from __future__ import annotations

from collections import Counter
from typing import Literal, get_args

from gpusq_deploy.artifacts import (
    CostEstimate,
    GraphCost,
    LayerCost,
    LayerShare,
    Payoff,
    PredictedTimes,
)
from gpusq_deploy.text import counted, some

Outlook = Literal["predicted to pay", "may not pay", "unclear", "unknown"]

# The shipped recipe that trades INT8 for fewer kernels.
_FUSED = "fused_wi8_ai8"


def cost_text(cost: CostEstimate) -> str:
    """The quantised graph beside the one without Q/DQ; in a second line how that is known."""
    built, other = cost.built, cost.unquantised
    if built is None or other is None:
        return cost.note
    shares = ", ".join(f"{count / 1e9:.2f} GFLOP {name}" for name, count in built.flops.items())
    return (
        f"built for batch {built.batch} alone, {built.kernels} kernels and {built.bytes_moved / 1e6:.1f} MB moved "
        f"({shares}), without {cost.what} {other.kernels} and {other.bytes_moved / 1e6:.1f} MB\n  {cost.note}"
    )


def cost_outlook(cost: CostEstimate) -> Outlook:
    """Whether quantising is predicted to pay: by predicted times where there are any, else by counts.

    Neither where the prediction's error leaves that open.
    """
    built, other = cost.built, cost.unquantised
    if built is None or other is None:
        return "unknown"
    mostly = 2 * _faster(cost) > len(cost.layers)
    no_more = built.kernels <= other.kernels and built.bytes_moved <= other.bytes_moved
    pays, loses = no_more and (mostly or not cost.layers), cost.worse and not mostly
    if cost.times is not None:
        pays, loses = cost.times.ratio * cost.times.high < 1, cost.times.ratio * cost.times.low > 1
    return "predicted to pay" if pays else "may not pay" if loses else "unclear"


def cost_verdict(cost: CostEstimate, recipe: str) -> str:
    """`cost_outlook` in one sentence, with its figures: predicted times where there are any, else counts.

    Args:
        cost: The two graphs.
        recipe: Name of the recipe that made one of them, so that it isn't advised again.
    """
    built, other = cost.built, cost.unquantised
    if built is None or other is None:
        return cost.note
    graph = _times_text(cost.times) if cost.times is not None else _counts_text(cost, built, other)
    outlook = cost_outlook(cost)
    if outlook == "predicted to pay":
        return f"{cost.what} is predicted to pay: {graph}"
    verdict = f"{cost.what} may not pay" if outlook == "may not pay" else f"unclear whether {cost.what} pays"
    advice = f"; --recipe {_FUSED} or a larger batch may help" if _fusable(cost, recipe) else ""
    return f"{verdict}: {graph}; gpusq-bench on the GPU decides{advice if cost.worse else ''}"


def _faster(cost: CostEstimate) -> int:
    return sum(layer.pays == "yes" for layer in cost.layers)


def _times_text(times: PredictedTimes) -> str:
    return (
        f"{times.ratio:.2f} of the time without it on {times.device} "
        f"({times.built:.3g} and {times.unquantised:.3g} ms; median error {times.error:g} %)"
    )


def _counts_text(cost: CostEstimate, built: GraphCost, other: GraphCost) -> str:
    layers = f"faster in {_faster(cost)} of {len(cost.layers)} layers, " if cost.layers else ""
    return (
        f"{layers}{built.kernels} kernels instead of {other.kernels}, "
        f"{built.bytes_moved / 1e6:.1f} MB moved instead of {other.bytes_moved / 1e6:.1f}"
    )


def _fusable(cost: CostEstimate, recipe: str) -> bool:
    return cost.what == "INT8" and recipe != _FUSED


def layer_cost_text(cost: LayerCost) -> str:
    """One layer in INT8 beside itself without, in one line to print."""
    verdicts: dict[Payoff, str] = {
        "yes": "INT8 is predicted to pay",
        "no": "INT8 is predicted not to pay",
        "no difference": "no difference is predicted",
        "unknown": "whether INT8 pays isn't predicted",
    }
    return f"{verdicts[cost.pays]}: {_share_text(cost.built)} with INT8; {_share_text(cost.unquantised)} without"


def _share_text(share: LayerShare) -> str:
    bound = "" if share.microseconds is None else f", at least {share.microseconds:.1f} µs"
    return f"{counted(share.kernels, 'kernel')}, {share.bytes_moved / 1e6:.2f} MB{bound}"


def layer_costs_line(cost: CostEstimate) -> str:
    """How many INT8 layers are predicted to pay, by what, and which aren't; empty where nothing is known by layer."""
    if not cost.layers:
        return ""
    counts = Counter(layer.pays for layer in cost.layers)
    parts = [f"{pays} {counts[pays]}" for pays in get_args(Payoff) if counts[pays]]
    losing = [layer.layer for layer in cost.layers if layer.pays == "no"]
    timed = all(layer.built.microseconds is not None for layer in cost.layers)
    by = "the least time that bytes and FLOPs take, launches not counted" if timed else "kernels and bytes"
    said = f"INT8 predicted to pay layer by layer, by {by}, of {len(cost.layers)} layers: {', '.join(parts)}"
    return said + (f": {some(losing, 4)}" if losing else "")
