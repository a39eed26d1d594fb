"""2:4 masks of apex ASP: buffers `LAYER.__weight_mma_mask` beside the weights.

1. The mask must be 2:4 along the input channels of its weight, and is then applied to it. ASP's optimiser step does the
   same, but a checkpoint may be older than its last step.
2. A mask of ones alone is ASP's initial one: it prunes nothing, and the layer counts as dense.
3. `__weight_mma_pruned_p`, the values that ASP keeps to restore a dense weight, is left out.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import torch

from gpusq_deploy.artifacts import SparsityRecord
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.numerics import GROUP, census, rows_from_conv
from gpusq_deploy.text import some

METHOD = "apex ASP"
_KEY = re.compile(r"(?P<layer>.+)\.__(?P<parameter>\w+)_mma_(?P<field>mask|pruned_p)")


def read_asp_masks(reading: Reading, *, place: str) -> Reading:
    """Apply the masks and take them out of the state dict; see the module's rules.

    Raises:
        GpusqError: A mask fits no weight, holds anything but 0 and 1, or isn't 2:4.
    """
    found = {key: match for key in reading.state if (match := _KEY.fullmatch(key)) is not None}
    if not found:
        return reading
    state = {name: tensor for name, tensor in reading.state.items() if name not in found}
    pruned: list[str] = []
    dense: list[str] = []
    late: list[str] = []
    for key, match in found.items():
        if match["field"] != "mask":
            continue
        name = f"{match['layer']}.{match['parameter']}"
        mask = _mask(reading.state[key], state.get(name), place=f"{place}, {key}")
        if bool(mask.all()):
            dense.append(match["layer"])
            continue
        pruned.append(match["layer"])
        if bool((state[name][~mask] != 0).any()):
            late.append(match["layer"])
        state[name] = state[name] * mask.to(state[name].dtype)
    remarks = [
        f"{METHOD}'s masks had yet to be applied, and are now: {some(late)}" if late else "",
        f"{METHOD}'s masks prune nothing, and the layers count as dense: {some(dense)}" if dense else "",
    ]
    return replace(
        reading,
        state=state,
        sparsity=SparsityRecord(method=METHOD, layers=tuple(pruned)) if pruned else reading.sparsity,
        remarks=(*reading.remarks, *(remark for remark in remarks if remark)),
    )


def _mask(stored: torch.Tensor, weight: torch.Tensor | None, *, place: str) -> torch.Tensor:
    if weight is None or weight.shape != stored.shape or weight.ndim not in (2, 4):
        shape = "no weight" if weight is None else f"a weight of {list(weight.shape)}"
        raise GpusqError(
            f"a mask of {list(stored.shape)} belongs to {shape}", place=place, hint="save the whole state dict again"
        )
    mask = stored.bool()
    if not bool((mask.to(stored.dtype) == stored).all()):
        raise GpusqError("the mask holds other values than 0 and 1", place=place, hint="save the checkpoint again")
    array = array_from_tensor(mask.to(torch.uint8))
    rows = rows_from_conv(array) if array.ndim == 4 else array
    # census counts non-zeros of floats; a mask of ones is dense on purpose, and no violation.
    aligned = rows.shape[1] % GROUP == 0
    if not bool(mask.all()) and (not aligned or census(rows.astype(np.float32)).violations):
        raise GpusqError(
            "the mask isn't 2:4 along the input channels",
            place=place,
            hint='prune with ASP\'s mask_calculator="m4n2_1d"',
        )
    return mask
