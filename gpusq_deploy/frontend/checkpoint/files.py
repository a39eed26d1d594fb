"""Read what a checkpoint file holds, without running anything that is in it."""

from __future__ import annotations

import argparse
import errno
import os
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch

from gpusq_deploy.artifacts import require_input
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.adapters.archive import require_intact, require_no_script, require_stored
from gpusq_deploy.frontend.checkpoint.adapters.class_hints import DEFAULTDICT, class_conversion
from gpusq_deploy.frontend.checkpoint.adapters.refusal import ForeignFormatError
from gpusq_deploy.frontend.checkpoint.adapters.semi_structured import SAFE_CLASSES
from gpusq_deploy.frontend.checkpoint.wrappers import by_plain_name, plain_name
from gpusq_deploy.text import with_article

SELF_DESCRIBING = "gpusq.checkpoint/1"
# `module` is DeepSpeed's.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "model_ema", "state_dict_ema")
# Beside `module.`: how many models torch's AveragedModel took the mean of.
_COUNT = "n_averaged"
# How a zip file begins; that it is one its end tells.
_ZIP = b"PK\x03\x04"
AVERAGED = "averaged"
# So many state dicts are named in a hint.
_SHOWN = 5
# Mappings within mappings: `model.state_dict` is two deep. A name that is asked for may lie deeper than those that are
# listed, for there are optimisers that keep a mapping of tensors for each weight.
_LISTED_DEPTH = 2
_NAMED_DEPTH = 4
_COPY_AGAIN = "copy or download the file again, and compare its size or digest with the original's"
_SAVE_AGAIN = "save the weights alone: torch.save(model.state_dict(), 'weights.pt'), or use safetensors"


class CodeRefusedError(GpusqError):
    """The file asks to import something."""


class ForeignCodeError(CodeRefusedError, ForeignFormatError):
    """The file asks to import a class of a library that is known."""


def read_checkpoint_file(path: Path) -> Mapping[str, Any]:
    """Everything in the file, as plain mappings and tensors on the CPU.

    Args:
        path: A `.safetensors` file, or whatever `torch.save` wrote.

    Raises:
        GpusqError: No such file, not a checkpoint, damaged, or it asks to run code.
    """
    _require_file(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _as_mapping(content, path)


def run_checkpoint_file(path: Path) -> Mapping[str, Any]:
    """As `read_checkpoint_file`, but code that the file names is run. Only for a user who asked for it by name.

    Raises:
        GpusqError: It can't be read even so, or holds no state dict and no module.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # the file's own code can raise anything
        raise GpusqError(
            f"not a PyTorch file, damaged, or of classes that aren't here: {error}", place=str(path), hint=_SAVE_AGAIN
        ) from error
    if isinstance(content, torch.nn.Module):
        return dict(content.state_dict())
    return _as_mapping(content, path)


def _as_mapping(content: object, path: Path) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise GpusqError(
            f"the file holds {with_article(type(content).__name__)}, not a state dict",
            place=str(path),
            hint=_SAVE_AGAIN,
        )
    return cast("dict[str, Any]", content)


def state_dict_in(
    content: Mapping[str, Any], *, place: str, key: str | None = None
) -> tuple[dict[str, torch.Tensor], str]:
    """The state dict, out of the layouts that training tools write.

    Args:
        content: The file's content.
        place: The file, for errors.
        key: Which of its state dicts, with dots between the keys that lead to it, such as `model.state_dict`, and
            behind those what names begin with, such as `teacher`; None for the first that there is of `state_dict`,
            `model`, `model_state_dict`, `module` and those that hold averages, and again within that one; or the
            content itself.

    Returns:
        Tensors by their plain names, see `plain_name`, or as they are where two would have one; and the layout found in
        words.

    Raises:
        GpusqError: There is no mapping from names to tensors, or none under `key`.
    """
    where, found = _unwrapped(content) if key is None else (key, _under(content, key, place))
    _require_tensors(found, where, place=place, hint=_choice_hint(content) or _SAVE_AGAIN)
    layout = f"state dict under {where!r}" if where else "state dict"
    count = next((name for name in found if _is_count(name, found)), None)
    plain = by_plain_name([name for name in found if name != count])
    return {name: found[old] for name, old in plain.items()}, f"{layout}, {AVERAGED}" if count else layout


def _require_tensors(found: Mapping[str, Any], where: str, *, place: str, hint: str) -> None:
    strangers = [repr(name) for name, value in found.items() if not _is_named_tensor(name, value)]
    if strangers or not found:
        raise GpusqError(
            f"no state dict in the file: beside or instead of named tensors it has "
            f"{', '.join(strangers[:5]) or 'nothing'}" + (f", under {where!r}" if where else ""),
            place=place,
            hint=hint,
        )


def innermost(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What lies in the innermost of the wrappers that training tools use, of whatever kind."""
    return _unwrapped(content)[1]


def _unwrapped(content: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """What lies in the innermost of the wrappers that training tools use, and their names with dots between."""
    path: list[str] = []
    for _ in range(_NAMED_DEPTH):  # a mapping may hold itself
        wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if wrapper is None:
            break
        path.append(wrapper)
        content = content[wrapper]
    return ".".join(path), content


def _under(content: Mapping[str, Any], key: str, place: str) -> Mapping[str, Any]:
    found = dict(_state_dicts(content, _NAMED_DEPTH))
    if key in found:
        return found[key]
    for where, state in ((_unwrapped(content)), *found.items()):
        prefix = plain_name(key.removeprefix(f"{where}.")) + "."
        named = [(plain_name(name), name) for name in state if _is_named_tensor(name, state[name])]
        inside = [(name[len(prefix) :], old) for name, old in named if name.startswith(prefix)]
        inner = {name: state[old] for name, old in inside}
        if len(inner) < len(inside):
            raise GpusqError(
                f"{key!r} names two state dicts: several of its tensors have one name once wrappers' names are dropped",
                place=place,
                hint="save the one that is meant: torch.save(model.state_dict(), ...)",
            )
        if inner:
            return inner
    alone = "the file is one state dict itself: leave out --state-dict" if _is_state_dict(content) else _SAVE_AGAIN
    raise GpusqError(f"the file has no state dict under {key!r}", place=place, hint=_choice_hint(content) or alone)


def _choice_hint(content: Mapping[str, Any]) -> str:
    """The option that takes a state dict of the file; empty where it holds none within."""
    names = state_dicts_in(content) or tuple(dict(_state_dicts(content, _NAMED_DEPTH)))
    more = f", or one of {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"--state-dict {' or '.join(names[:_SHOWN])}{more}" if names else ""


def require_no_choice(key: str | None, *, place: str) -> None:
    """Refuse to choose among the state dicts of a file that has one.

    Raises:
        GpusqError: One was named.
    """
    if key is not None:
        raise GpusqError(
            f"the file holds one state dict, and none is called {key!r}", place=place, hint="leave out --state-dict"
        )


def state_dicts_in(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the file has mappings from names to tensors, the weights and averages of them: keys with dots between."""
    return tuple(dict(_state_dicts(content, _LISTED_DEPTH)))


def _state_dicts(content: Mapping[Any, Any], depth: int, within: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Names and state dicts, those that lie nearest first at each key."""
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Mapping)):
            continue
        inner = cast("Mapping[object, object]", value)
        if _is_state_dict(inner):
            yield f"{within}{name}", cast("Mapping[str, Any]", value)
        elif depth > 1:
            yield from _state_dicts(inner, depth - 1, f"{within}{name}.")


def _is_count(name: str, names: Collection[str]) -> bool:
    """Whether it is that of an AveragedModel, whose `module` holds all others: a model may have one of that name."""
    within = f"{name.removesuffix(_COUNT)}module."
    return plain_name(name) == _COUNT and len(names) > 1 and all(n == name or n.startswith(within) for n in names)


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    entries = cast("Mapping[object, object]", value)
    return bool(entries) and all(_is_named_tensor(name, entry) for name, entry in entries.items())


def _is_named_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def _require_file(path: Path) -> None:
    require_input(path)
    if not path.is_file():
        raise GpusqError("not a file", place=str(path), hint="give the checkpoint file itself")
    if path.suffix == ".onnx":
        raise GpusqError(
            "an ONNX file is a graph, not a checkpoint with the weights of a module",
            place=str(path),
            hint="gpusq-build and gpusq-calibrate take it; here, give the checkpoint that it was exported from",
        )
    try:
        with path.open("rb") as stream:
            start = stream.read(1)
    except OSError as error:
        raise GpusqError(
            f"cannot read the file: {error.strerror}", place=str(path), hint="check its permissions and the disk"
        ) from error
    if not start:
        raise GpusqError(
            "the file is empty", place=str(path), hint="the download or the save was cut short: make it again"
        )


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise GpusqError(f"not a safetensors file, or damaged: {error}", place=str(path), hint=_COPY_AGAIN) from error


def _read_torch(path: Path) -> object:
    try:
        zipped = zipfile.is_zipfile(path)
        if not zipped:
            _require_pickle(path)
        else:
            require_no_script(path)
            require_stored(path)
            require_intact(path)
        # A Namespace is a bag of attributes, which training scripts keep their options in: making one runs nothing. No
        # more does making a slice, which ModelOpt keeps of weights in blocks.
        with torch.serialization.safe_globals([*SAFE_CLASSES, argparse.Namespace, slice]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except GpusqError:
        raise
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except Exception as error:  # a damaged file can make the unpickler raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GpusqError(f"not a PyTorch file, or damaged: {reason}", place=str(path), hint=_COPY_AGAIN) from error


def _refused(path: Path, message: str) -> GpusqError:
    wanted = [word.strip(" .`") for line in message.splitlines() for word in line.split("GLOBAL")[1:]]
    wanted = [word.split()[0] for word in wanted if word]
    if not wanted:
        return GpusqError("not a PyTorch file, or damaged: its pickle can't be read", place=str(path), hint=_SAVE_AGAIN)
    what = f"refused: the file asks to import {wanted[0]}, and loading it would run code"
    known = class_conversion(wanted[0])
    if known is None:
        hint = DEFAULTDICT if wanted[0] == "collections.defaultdict" else _SAVE_AGAIN
        return CodeRefusedError(what, place=str(path), hint=hint)
    producer, hint = known
    return ForeignCodeError(f"{what}; it is of {producer}", place=str(path), hint=hint, producer=producer)


def _require_pickle(path: Path) -> None:
    with path.open("rb") as stream:
        start = stream.read(16)
    if start.startswith(_ZIP):
        raise GpusqError("cut short: a torch archive without its end", place=str(path), hint=_COPY_AGAIN)
    if start[:1] != b"\x80":
        raise GpusqError(
            f"not a PyTorch file: it starts with {start!r}",
            place=str(path),
            hint="give a file that torch.save wrote, or a .safetensors file",
        )


def require_another_file(out: Path, model: Path) -> None:
    """Refuse to write over the checkpoint that is read, whoever forces it.

    Raises:
        GpusqError: They are one file.
    """
    if os.path.exists(out) and os.path.exists(model) and out.samefile(model):
        raise GpusqError("the old file is kept: it can't be the output", place=str(out), hint="name another file")


def write_torch(path: Path, content: object) -> None:
    """`torch.save` into a file.

    Raises:
        OSError: The disk refused; of a write that falls short, torch's writer says so with a RuntimeError.
    """
    with path.open("wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            said = str(error).splitlines()[0]
            raise OSError(errno.EIO, f"is the disk full? torch's writer stopped: {said}") from error
