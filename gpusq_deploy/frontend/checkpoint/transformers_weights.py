"""Weights of saved folders under the names that transformers' modules have for them now."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from gpusq_deploy.artifacts import ArchSpec
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.fit_hints import fit_hint
from gpusq_deploy.frontend.checkpoint.transformers_models import class_of_images, config_of, offline, refusals
from gpusq_deploy.frontend.checkpoint.wrappers import Renamed
from gpusq_deploy.text import counted, some


def weights_by_module_names(spec: ArchSpec, state: Mapping[str, torch.Tensor]) -> Renamed:
    """A state dict under the module's own names: files that transformers wrote keep the names of its earlier releases.

    The library itself loads them. A tensor that lies in the module where it lay in the file was renamed, no more: it is
    the file's. What the library computed (a split or joined weight) is float32.

    Args:
        spec: The architecture.
        state: As the file has it.

    Raises:
        GpusqError: Tensors of another shape than the module's, or of no float type, or twice under several names; or
            the library refuses the config.
    """
    _require_floats(spec, [f"{name} ({tensor.dtype})" for name, tensor in state.items() if tensor.is_complex()])
    _require_stored(spec, state)
    with offline(), refusals(spec):
        build: Any = class_of_images(spec)
        config = config_of(spec)
        with torch.device("meta"):
            if set(build(config).state_dict()) == set(state):
                return Renamed(state, {}, ())
        given = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        loaded, found = build.from_pretrained(
            None,
            config=config,
            state_dict=given,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    _require_shapes(spec, found["mismatched_keys"], fit_hint(_shapes(found, 2), _shapes(found, 1), spec))
    missing = set(found["missing_keys"])
    fitting = {name: tensor for name, tensor in loaded.state_dict().items() if name not in missing}
    return _accounted(spec, state, _sources(given, fitting), fitting, _ignored_by(loaded))


def _sources(given: Mapping[str, torch.Tensor], fitting: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The file's name of every tensor of the module that is one of the file's."""
    places: dict[object, str] = {}
    for name, tensor in given.items():
        places.setdefault(_place(tensor), name)
    found = {name: places.get(_place(tensor)) for name, tensor in fitting.items()}
    # Of tensors that share their memory, each has its own name.
    return {name: name if name in given else source for name, source in found.items() if source is not None}


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _accounted(
    spec: ArchSpec,
    state: Mapping[str, torch.Tensor],
    sources: Mapping[str, str],
    fitting: Mapping[str, torch.Tensor],
    ignored: re.Pattern[str],
) -> Renamed:
    """Every tensor of the file is the module's, was computed into one, is told, or stays for the caller to refuse."""
    spare = _spare(state, sources)
    left = [name for name in spare if ignored.search(name)]
    rest = [name for name in spare if name not in left]
    _require_floats(spec, _other_types(state, rest))
    computed = {name: tensor for name, tensor in fitting.items() if name not in sources}
    by_name = {**computed, **{name: state[source] for name, source in sources.items()}}
    if _numbers(state[name] for name in rest) != _numbers(computed.values()):
        _require_one_name(spec, [name for name in rest if name in by_name])
        by_name.update({name: state[name] for name in rest})
    remarks = (f"left out, as transformers does: {some(left)}",) if left else ()
    return Renamed(by_name, _renamed(sources), remarks)


def _spare(state: Mapping[str, torch.Tensor], sources: Mapping[str, str]) -> list[str]:
    """Tensors of the file that none of the module's is."""
    taken = {_place(state[source]) for source in sources.values()}
    return [name for name, tensor in state.items() if _place(tensor) not in taken]


def _other_types(state: Mapping[str, torch.Tensor], names: Iterable[str]) -> list[str]:
    return [f"{name} ({state[name].dtype})" for name in names if not state[name].is_floating_point()]


def _numbers(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _renamed(sources: Mapping[str, str]) -> dict[str, str]:
    return {source: name for name, source in sources.items() if source != name}


def _require_one_name(spec: ArchSpec, twice: Sequence[str]) -> None:
    if twice:
        raise GpusqError(
            f"there under an older name too: {counted(len(twice), 'tensor')} of the file, {some(twice)}",
            place=str(spec),
            hint="save the model again with save_pretrained, under one set of names",
        )


def _ignored_by(loaded: Any) -> re.Pattern[str]:
    """Buffers of earlier releases that the class names as of no use any more."""
    patterns = (r"(^|\.)position_ids$", *(loaded._keys_to_ignore_on_load_unexpected or ()))
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


def _require_stored(spec: ArchSpec, state: Mapping[str, torch.Tensor]) -> None:
    """Before anything is converted: a few stored bytes can claim to be any number of weights."""
    for name, tensor in state.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise GpusqError(
                f"{name} is {list(tensor.shape)}, of which the file doesn't hold every number",
                place=str(spec),
                hint="save dense float weights: tensor.contiguous()",
            )


def _require_floats(spec: ArchSpec, strangers: list[str]) -> None:
    if strangers:
        raise GpusqError(
            f"{counted(len(strangers), 'tensor')} of the file, and no float weights: {some(strangers)}",
            place=str(spec),
            hint="save dense float weights",
        )


def _shapes(found: Any, which: int) -> dict[str, torch.Tensor]:
    """Tensors without values, of the shapes that the file (1) or the module (2) has where they differ."""
    return {entry[0]: torch.empty(tuple(entry[which]), device="meta") for entry in found["mismatched_keys"]}


def _require_shapes(spec: ArchSpec, mismatched: Any, hint: str) -> None:
    if mismatched:
        listed = "; ".join(f"{name} is {list(got)}, expected {list(asked)}" for name, got, asked in sorted(mismatched))
        raise GpusqError(
            f"the weights don't fit {spec}: {len(mismatched)} of another shape: {listed[:600]}",
            place=str(spec),
            hint=hint or "check the config (image_size, num_labels, hidden_size are the usual ones)",
        )
