"""Every adapter of state dicts, in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpusq_deploy.checkpoint.adapters.masks import read_asp_masks
from gpusq_deploy.checkpoint.adapters.quantizers import read_quantizers
from gpusq_deploy.checkpoint.adapters.reading import Reading
from gpusq_deploy.checkpoint.adapters.semi_structured import read_semi_structured
from gpusq_deploy.checkpoint.files import state_dict_in


def reading_of(content: Mapping[str, Any], *, place: str) -> Reading:
    """A file's state dict through every adapter. What no adapter knows stays as it is.

    Raises:
        GpusqError: There is no state dict, or what an adapter recognises can't be used.
    """
    state, layout = state_dict_in(content, place=place)
    reading = read_semi_structured(Reading(state=state, layout=layout), place=place)
    # Ranges of weights are those of the pruned ones.
    reading = read_asp_masks(reading, place=place)
    return read_quantizers(reading, content, place=place)
