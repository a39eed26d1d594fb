"""Whether 2:4 weights in INT8 are worth it, from predicted times, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from gpusq_deploy.engines.prediction.constants import Spread
from gpusq_deploy.engines.prediction.values import VariantTime

# What is saved below this share of the time can't be told from nothing.
_LEAST = 0.05
_WORDS = {"tensor cores": "products", "memory": "moving data", "launch": "launches"}


def verdict(times: Sequence[VariantTime], saves: float | None, ratio: Spread) -> str:
    """The sentence.

    Args:
        times: Of each form on one device.
        saves: The most that 2:4 saves of the dense time, 0 to 1; None where no product can be sparse.
        ratio: Errors of INT8's time over FP16's.
    """
    by = {time.variant: time for time in times}
    plain = next((time for time in times if time.variant not in {"int8", "2:4"}), None)
    dense = by.get("int8") or plain
    if saves is None or dense is None:
        return "no product has sizes that 2:4 sparse kernels take"
    alone = "" if plain is None or dense is plain else f"; {_gain(dense, plain, ratio)}"
    bound = max(dense.shares, key=lambda name: dense.shares[name])
    most = f"it saves at most {saves:.0%}, and {_WORDS[bound]} take {dense.shares[bound]:.0%} of the dense time"
    if saves < _LEAST:
        return f"2:4 isn't worth it: {most}{alone}"
    if plain is not None and by["2:4"].milliseconds > plain.milliseconds:
        return f"2:4 isn't worth it with INT8: {most}; FP16 is predicted to be as fast{alone}"
    return f"2:4 may be worth it: {most}{alone}"


def _gain(dense: VariantTime, plain: VariantTime, ratio: Spread) -> str:
    change = dense.milliseconds / plain.milliseconds
    said = f"INT8 without it is predicted at {change:.2f} of {plain.variant.upper()}'s time"
    if change * ratio.low < 1 < change * ratio.high:
        return f"{said}, which is within the error of {ratio.median_error:g} %"
    return said
