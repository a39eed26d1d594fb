"""Every adapter of state dicts, in order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.adapters.asp_masks import read_asp_masks
from gpusq_deploy.frontend.checkpoint.adapters.deepspeed import deepspeed_problem
from gpusq_deploy.frontend.checkpoint.adapters.foreign import foreign_names, foreign_problem, scaled_codes
from gpusq_deploy.frontend.checkpoint.adapters.loralib import read_loralib
from gpusq_deploy.frontend.checkpoint.adapters.modelopt import read_quantizers
from gpusq_deploy.frontend.checkpoint.adapters.modelopt_sparsity import read_modelopt_sparsity
from gpusq_deploy.frontend.checkpoint.adapters.peft import read_peft
from gpusq_deploy.frontend.checkpoint.adapters.quantizer_states import read_quantizer_states
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.frontend.checkpoint.adapters.semi_structured import read_semi_structured
from gpusq_deploy.frontend.checkpoint.adapters.tensor_subclasses import read_tensor_subclasses
from gpusq_deploy.frontend.checkpoint.adapters.torch_prune import read_torch_masks
from gpusq_deploy.frontend.checkpoint.adapters.weight_norm import read_weight_norm
from gpusq_deploy.frontend.checkpoint.adapters.writers import writers_of
from gpusq_deploy.frontend.checkpoint.files import AVERAGED, innermost, state_dict_in, state_dicts_in
from gpusq_deploy.frontend.checkpoint.state_dict_fit import require_plain
from gpusq_deploy.text import some


def reading_of(
    content: Mapping[str, Any], *, place: str, key: str | None = None, keep: Collection[str] = ()
) -> Reading:
    """A file's state dict through every adapter. What no adapter knows stays as it is.

    Args:
        content: The file's content.
        place: The file, for errors.
        key: Which of its state dicts; see `state_dict_in`.
        keep: Names of the state dict that are the architecture's own, which no adapter sees.

    Returns:
        With a `problem` where the weights are of a form that can't be read, unless an architecture has its names.

    Raises:
        GpusqError: There is no such state dict, or what an adapter recognises can't be used.
    """
    problem, names = deepspeed_problem(content, place=place), tuple(innermost(content))
    try:
        state, layout = state_dict_in(content, place=place, key=key)
    except GpusqError as error:  # some forms hold other things than tensors beside them
        raise problem or foreign_problem(map(str, names), place=place) or error from error
    start = Reading(state=state, layout=layout, remarks=_remarks(content, layout), problem=problem)
    hidden = {name: state[name] for name in keep if name in state}
    seen = {name: tensor for name, tensor in state.items() if name not in hidden}
    reading = _through_adapters(replace(start, state=seen), content, place=place)
    whole = _in_order(state, {**reading.state, **hidden}) if hidden else reading.state
    evidence = foreign_names(whole) if reading.problem is not None else ()
    return replace(
        reading,
        state=whole,
        producers=tuple(dict.fromkeys([*writers_of(content, names), *reading.producers])),
        taken=frozenset((*(name for name in state if name not in whole), *evidence)),
    )


def require_readable(reading: Reading) -> None:
    """Refuse weights of a form that can't be read.

    Raises:
        GpusqError: They are.
    """
    if reading.problem is not None:
        raise reading.problem


def _through_adapters(reading: Reading, content: Mapping[str, Any], *, place: str) -> Reading:
    reading = read_tensor_subclasses(read_semi_structured(reading, place=place), place=place)
    if reading.problem is None:
        require_plain(reading.state, place=place)
    # What a weight is made from comes first, what restricts it next: ranges of weights are those of the pruned ones.
    reading = read_loralib(read_weight_norm(reading), place=place)
    reading = read_peft(reading, content, place=place)
    reading = read_asp_masks(reading, place=place)
    reading = read_modelopt_sparsity(reading, content, place=place)
    reading = read_torch_masks(reading, content, place=place)
    problem = reading.problem or foreign_problem(reading.state, place=place) or scaled_codes(reading.state, place=place)
    if problem is not None:
        return replace(reading, problem=problem, producers=(*reading.producers, problem.producer))
    return read_quantizers(read_quantizer_states(reading), content, place=place)


def _remarks(content: Mapping[str, Any], layout: str) -> tuple[str, ...]:
    others = [name for name in state_dicts_in(content) if repr(name) not in layout]
    told: tuple[str, ...] = (
        (f"{layout}; not taken, though it is there: {some(others)} (--state-dict NAME takes it)",) if others else ()
    )
    if layout.endswith(AVERAGED):
        told += ("the weights are those of an AveragedModel, without its n_averaged",)
    return told


def _in_order(state: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The file's order, and behind it what has a new name."""
    names = [name for name in state if name in found]
    return {name: found[name] for name in (*names, *(name for name in found if name not in state))}
