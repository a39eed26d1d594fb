"""2:4 of NVIDIA ModelOpt (`modelopt.torch.sparsity`), before and after its export.

1. Before `mts.export`, `LAYER.weight` is dense and `LAYER._weight_mask` says what is kept: the mask is applied.
2. After it, the weights have their zeros and there is no mask. Where `modelopt_state` says that it was exported, the
   layers that are listed there and whose weights are 2:4 are recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch

from gpusq_deploy.artifacts import SparsityRecord
from gpusq_deploy.frontend.checkpoint.adapters.masks import Mask, apply_masks, is_24
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.frontend.checkpoint.mappings import mapping_of

METHOD = "NVIDIA ModelOpt sparsity"
_MASK = "._weight_mask"
_LISTED = ".is_sparse"


def read_modelopt_sparsity(reading: Reading, content: Mapping[str, Any], *, place: str) -> Reading:
    """Apply ModelOpt's masks, or record the layers that it exported; see the module's rules.

    Raises:
        GpusqError: A mask fits no weight, or holds anything but 0 and 1.
    """
    found = [key for key in reading.state if key.endswith(_MASK)]
    masks = [
        Mask(key=key, values=reading.state[key], parameter=name, source=name)
        for key in found
        for name in [f"{key.removesuffix(_MASK)}.weight"]
    ]
    if masks:
        return apply_masks(reading, masks, producer=METHOD, place=place)
    layers = tuple(layer for layer in _exported(content) if _is_pruned(reading.state.get(f"{layer}.weight")))
    if not layers or reading.sparsity is not None:
        return reading
    return replace(
        reading,
        sparsity=SparsityRecord(method=METHOD, layers=layers),
        producers=(*reading.producers, METHOD),
    )


def _exported(content: Mapping[str, Any]) -> Iterator[str]:
    """Layers that ModelOpt's state lists as sparsified."""
    modes: object = mapping_of(content.get("modelopt_state")).get("modelopt_state_dict")
    for mode in cast("list[object]", modes) if isinstance(modes, list) else ():
        if isinstance(mode, tuple) and mode[:1] == ("export_sparse",):
            listed = mapping_of(
                mapping_of(mapping_of(cast("tuple[object, ...]", mode)[-1]).get("metadata")).get("subnet_config")
            )
            yield from (name.removesuffix(_LISTED) for name in listed if name.endswith(_LISTED))


def _is_pruned(weight: torch.Tensor | None) -> bool:
    if weight is None or weight.ndim not in (2, 4) or not weight.is_floating_point():
        return False
    return is_24(weight != 0)
