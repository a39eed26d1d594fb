"""Which of a file's tensors are the model's, under whatever wrapped the model while it was trained.

1. Names that torch and its trainers put between a module and its tensors (`module`, `_orig_mod`, …) count for nothing,
   wherever they stand: DDP around torch.compile, torch.compile of each block, FSDP.
2. The model is the prefix under which every name of the architecture is there, whatever it is called: `model.`,
   `net.`, `student.backbone.`. What lies beside it is left out, and told.
3. Of several such prefixes, the empty one is taken, else the only one of the usual words; copies of one another count
   as one. Anything else is refused.
4. An architecture that is itself a wrapper of one module takes that module's weights too.
5. What lies under the prefix and isn't the architecture's stays, and is refused later; a criterion, a metric, a
   teacher or an average is left out by its name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import counted, some

_NOTHING = frozenset(
    {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)  # DDP and AveragedModel, torch.compile, Lightning's Fabric and DeepSpeed, FSDP, activation checkpointing
_USUAL = frozenset({"model", "net", "network"})
# `n_averaged` is how many models torch's AveragedModel took the mean of.
_BESIDE = re.compile(r"n_averaged|(?:.*_)?(?:criterion|criteria|loss|losses|metrics?|acc|accuracy|teacher|ema)(?:_.*)?")


class Renamed(NamedTuple):
    """A state dict under the module's own names.

    Attributes:
        state: What fits, by the module's names, in the types of the file; the rest as it is.
        names: Tensors' names in `state` by the file's, where those differ.
        remarks: What was left out.
    """

    state: Mapping[str, torch.Tensor]
    names: Mapping[str, str]
    remarks: tuple[str, ...]


def own_weights(
    expected: Collection[str], state: Mapping[str, torch.Tensor], *, place: str, part: bool = False
) -> Renamed:
    """The tensors that belong to an architecture, by its names; see the module's rules.

    Args:
        expected: Names of the architecture's tensors.
        state: The file's tensors.
        place: The file, for errors.
        part: The architecture is a part of what was saved, such as the vision tower of CLIP: what lies beside the
            modules that it names is another part's, and is left out.

    Raises:
        GpusqError: Several different models of the architecture are in the file.
    """
    plain, wanted = by_plain_name(state), by_plain_name(expected)
    found = _prefixes(plain, wanted)
    bare = _within_one(wanted)
    if len(wanted) not in found.values() and bare.keys() <= plain.keys():
        wanted, found = bare, _prefixes(plain, bare)
    whole = sorted((prefix for prefix, count in found.items() if count == len(wanted)), key=lambda name: len(name))
    distinct = _distinct(whole, wanted, {name: state[key] for name, key in plain.items()})
    prefix = _chosen(distinct, place) if whole else _likeliest(found, anything=part)
    names = _names_below(prefix, plain, wanted, part=part, whole=whole)
    left = [key for key in plain.values() if key not in names]
    others = [other for other in distinct if other != prefix]
    return Renamed(
        {new: state[key] for key, new in names.items()},
        {key: new for key, new in names.items() if key != new},
        tuple(_remarks(prefix, len(names), left, others)),
    )


def _names_below(
    prefix: str, plain: Mapping[str, str], wanted: Mapping[str, str], *, part: bool, whole: Sequence[str]
) -> dict[str, str]:
    """The architecture's names of what lies below the prefix, by the file's; what lies beside it is left out."""
    tops = {name.partition(".")[0] for name in wanted}
    others = [other for other in whole if other != prefix]
    names: dict[str, str] = {}
    for name, key in plain.items():
        inner = _inner(name, prefix)
        if inner is not None and (inner in wanted or not _is_beside(inner, tops, part, others)):
            names[key] = wanted.get(inner, inner)
    return names


def plain_name(name: str) -> str:
    """The name without the parts that count for nothing."""
    return ".".join(part for part in name.split(".") if part not in _NOTHING)


def by_plain_name(names: Collection[str]) -> dict[str, str]:
    """Names by their plain ones; by themselves where two would be one."""
    plain = {plain_name(name): name for name in names}
    return plain if len(plain) == len(names) else {name: name for name in names}


def _within_one(wanted: Mapping[str, str]) -> dict[str, str]:
    """Names within the only module that the architecture has, a wrapper that the file was saved without."""
    tops = {name.partition(".")[0] for name in wanted}
    return {name.partition(".")[2]: own for name, own in wanted.items()} if len(tops) == 1 else dict(wanted)


def _prefixes(names: Collection[str], wanted: Collection[str]) -> Counter[str]:
    """How many of the wanted names there are under each prefix, without its last dot."""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        found.update(".".join(parts[:at]) for at in range(len(parts)) if ".".join(parts[at:]) in wanted)
    return found


def _distinct(prefixes: Sequence[str], wanted: Collection[str], state: Mapping[str, torch.Tensor]) -> list[str]:
    """Without prefixes that hold the same numbers as an earlier one: one module that was saved under two names."""
    kept: list[str] = []
    for prefix in prefixes:
        if not any(all(_same(state[_under(old, n)], state[_under(prefix, n)]) for n in wanted) for old in kept):
            kept.append(prefix)
    return kept


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def _under(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _inner(name: str, prefix: str) -> str | None:
    """The name under a prefix; None where it lies elsewhere."""
    if not prefix:
        return name
    return name[len(prefix) + 1 :] if name.startswith(f"{prefix}.") else None


def _chosen(whole: Sequence[str], place: str) -> str:
    usual = [prefix for prefix in whole if _is_usual(prefix)]
    if len(whole) == 1 or "" in whole:
        return whole[0]
    if len(usual) == 1:
        return usual[0]
    raise GpusqError(
        f"the file holds {len(whole)} whole models of the architecture: {some(whole)}",
        place=place,
        hint=f"choose one: --state-dict {' or --state-dict '.join(whole[:3])}",
    )


def _likeliest(found: Mapping[str, int], *, anything: bool) -> str:
    """Where no model is whole, the usual words (or anything) that most names stand under."""
    usual = {prefix: count for prefix, count in found.items() if anything or _is_usual(prefix)}
    return max(usual, key=lambda prefix: (usual[prefix], -len(prefix)), default="")


def _is_usual(prefix: str) -> bool:
    return not prefix or set(prefix.split(".")) <= _USUAL


def _is_beside(inner: str, tops: Collection[str], part: bool, copies: Sequence[str]) -> bool:
    """Whether a name that the architecture lacks is of something else than the model."""
    if any(_inner(inner, copy) is not None for copy in copies if copy):
        return True
    top = inner.partition(".")[0]
    return top not in tops and (part or _BESIDE.fullmatch(top) is not None)


def _remarks(prefix: str, taken: int, left: Sequence[str], others: Sequence[str]) -> list[str]:
    under = f" under '{prefix}.'" if prefix else ""
    remarks: list[str] = []
    if left:
        beside = f"left out {counted(len(left), 'tensor')} that the architecture lacks: {some(left)}"
        remarks.append(f"took {counted(taken, 'tensor')}{under}; {beside}")
    elif not _is_usual(prefix):
        remarks.append(f"took {counted(taken, 'tensor')}{under}")
    if others:
        remarks.append(f"another whole model is there, and not taken: {some(others)} (--state-dict NAME takes it)")
    return remarks
