"""Masks of apex ASP: buffers `LAYER.__weight_mma_mask` beside the weights, and `LAYER.__in_proj_weight_mma_mask`.

The masks are applied: ASP's optimiser step does the same, but a checkpoint may be older than its last step. ASP's
initial mask is of ones alone. `__weight_mma_pruned_p`, which ASP keeps to restore a dense weight, is left out.
"""

from __future__ import annotations

import re

from gpusq_deploy.frontend.checkpoint.adapters.masks import Mask, apply_masks
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading

METHOD = "apex ASP"
_KEY = re.compile(r"(?P<prefix>(?:.+\.)?)__(?P<parameter>\w+)_mma_(?P<field>mask|pruned_p)")


def read_asp_masks(reading: Reading, *, place: str) -> Reading:
    """Apply the masks and take them out of the state dict.

    Raises:
        GpusqError: A mask fits no weight, or holds anything but 0 and 1.
    """
    found = {key: match for key in reading.state if (match := _KEY.fullmatch(key)) is not None}
    if not found:
        return reading
    named = {key: match["prefix"] + match["parameter"] for key, match in found.items() if match["field"] == "mask"}
    masks = [
        Mask(key=key, values=reading.state[key], parameter=parameter, source=parameter)
        for key, parameter in named.items()
    ]
    return apply_masks(reading, masks, producer=METHOD, place=place, gone=found, tied=True)
