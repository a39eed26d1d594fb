"""Engine options as a command is given them: `workspace=512`, `strip`, `strip=default`, `timing-cache=caches`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gpusq_deploy.artifacts import BatchRange, EngineOptions
from gpusq_deploy.errors import GpusqError

# Each option's name, its field, and how its value reads.
_FIELDS: Mapping[str, tuple[str, type[int] | type[str] | type[bool]]] = {
    "workspace": ("workspace_mib", int),
    "shared-memory": ("shared_memory_kib", int),
    "tactics": ("tactics", int),
    "level": ("level", int),
    "strip": ("strip", bool),
    "weight-streaming": ("weight_streaming", bool),
    "version-compatible": ("version_compatible", bool),
    "capturable": ("capturable", bool),
    "hardware": ("hardware", str),
    "timing-cache": ("timing_cache", str),
    "editable-cache": ("editable_cache", bool),
    "error-on-cache-miss": ("error_on_cache_miss", bool),
}

OPTION_NAMES = tuple(_FIELDS)

# Takes back what a bundle was made with. Timing caches are the machine's: `timing-cache=default` is a folder.
_DEFAULT = "default"

# More than any limit has, and fewer than Python refuses to read.
_DIGITS = 19


def options_from_text(
    texts: Sequence[str], *, profiles: Sequence[BatchRange] = (), base: EngineOptions | None = None
) -> EngineOptions:
    """Options from NAME or NAME=VALUE; NAME=default is as if nothing had ever been said.

    Args:
        texts: One option each.
        profiles: Batch ranges to tune for; none: one profile for the whole range.
        base: What holds where nothing is said.

    Raises:
        GpusqError: Unknown names, missing or wrong values; all of them at once.
    """
    fields: dict[str, Any] = {} if base is None else msgspec.structs.asdict(base)
    if profiles:
        fields["profiles"] = tuple(profiles)
    problems: list[str] = []
    for text in texts:
        name, _, value = text.partition("=")
        problem = _read(name, value if "=" in text else None, fields)
        if problem:
            problems.append(problem)
    try:
        found = msgspec.convert(fields, EngineOptions)
    except msgspec.ValidationError as error:
        problems.append(str(error))
        found = EngineOptions()
    if problems:
        raise GpusqError(
            "; ".join(problems), place="--engine-option", hint=f"the options are {', '.join(OPTION_NAMES)}"
        )
    return found


def texts_from_options(options: EngineOptions, *, base: EngineOptions) -> tuple[str, ...]:
    """The texts that make `options` of `base`: the inverse of `options_from_text`, but for what is the machine's."""
    ours, theirs = options.portable, base.portable
    return tuple(
        _text(name, getattr(ours, field))
        for name, (field, _) in _FIELDS.items()
        if getattr(ours, field) != getattr(theirs, field)
    )


def _text(name: str, value: int | str | bool | None) -> str:
    if value is True:
        return name
    return f"{name}={_DEFAULT if value is None or value is False else value}"


def _read(name: str, value: str | None, fields: dict[str, Any]) -> str | None:
    """Put one option among the fields, or say what is wrong with it."""
    if name not in _FIELDS:
        near = difflib.get_close_matches(name, _FIELDS, n=1)
        return f"there is no option {name!r}" + (f"; did you mean {near[0]}?" if near else "")
    field, kind = _FIELDS[name]
    if value == _DEFAULT and field != "timing_cache":
        fields.pop(field, None)
        return None
    if kind is bool:
        fields[field] = True
        return None if value is None else f"{name} takes no value but {_DEFAULT}"
    if not value:
        return f"{name} needs a value: {name}=..."
    problem = _number_problem(name, value) if kind is int else None
    if problem is None:
        fields[field] = int(value) if kind is int else value
    return problem


def _number_problem(name: str, value: str) -> str | None:
    if not value.isdecimal():
        return f"{name} needs a whole number, not {value!r}"
    return f"{name} needs a smaller number than one of {len(value)} digits" if len(value) > _DIGITS else None
