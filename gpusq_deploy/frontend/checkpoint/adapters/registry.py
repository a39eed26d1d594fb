"""Every adapter of state dicts, in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpusq_deploy.frontend.checkpoint.adapters.asp_masks import read_asp_masks
from gpusq_deploy.frontend.checkpoint.adapters.modelopt import read_quantizers
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.frontend.checkpoint.adapters.semi_structured import read_semi_structured
from gpusq_deploy.frontend.checkpoint.files import AVERAGED, state_dict_in, state_dicts_in
from gpusq_deploy.text import some


def reading_of(content: Mapping[str, Any], *, place: str, key: str | None = None) -> Reading:
    """A file's state dict through every adapter. What no adapter knows stays as it is.

    Args:
        content: The file's content.
        place: The file, for errors.
        key: Which of its state dicts; see `state_dict_in`.

    Raises:
        GpusqError: There is no such state dict, or what an adapter recognises can't be used.
    """
    state, layout = state_dict_in(content, place=place, key=key)
    others = [name for name in state_dicts_in(content) if repr(name) not in layout]
    told: tuple[str, ...] = (
        (f"{layout}; not taken, though it is there: {some(others)} (--state-dict NAME takes it)",) if others else ()
    )
    if layout.endswith(AVERAGED):
        told += ("the weights are those of an AveragedModel, without its n_averaged",)
    reading = read_semi_structured(Reading(state=state, layout=layout, remarks=told), place=place)
    # Ranges of weights are those of the pruned ones.
    reading = read_asp_masks(reading, place=place)
    return read_quantizers(reading, content, place=place)
