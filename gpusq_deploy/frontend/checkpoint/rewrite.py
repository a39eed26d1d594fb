"""Write a checkpoint again with some of its weights changed, and everything else as it was."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch

from gpusq_deploy.artifacts import written_whole
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.files import read_checkpoint_file, state_dict_in, write_torch


def tensors_in_file(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint in their own types, by names without wrappers' prefixes.

    Raises:
        GpusqError: See `read_checkpoint_file`.
    """
    return state_dict_in(read_checkpoint_file(path), place=str(path))[0]


def rewrite_checkpoint(source: Path, out: Path, changed: Mapping[str, torch.Tensor]) -> None:
    """Write `source` to `out`, in its own format and layout, with some tensors replaced; whole or not at all.

    Args:
        source: The checkpoint; it is only read.
        out: Another file. What is there is replaced.
        changed: New tensors by names as `tensors_in_file` gives them.

    Raises:
        GpusqError: See `read_checkpoint_file`; or the disk refused.
    """
    content = read_checkpoint_file(source)
    state, _ = state_dict_in(content, place=str(source))
    fresh = {id(state[name]): tensor for name, tensor in changed.items()}
    try:
        with written_whole(out) as temporary:
            if source.suffix == ".safetensors":
                _write_safetensors(source, temporary, cast("dict[str, torch.Tensor]", _replaced(content, fresh)))
            else:
                write_torch(temporary, _replaced(content, fresh))
    except OSError as error:
        raise GpusqError(f"cannot write the checkpoint: {error.strerror}", place=str(out)) from error


def _replaced(content: Any, fresh: Mapping[int, torch.Tensor]) -> Any:
    """The same mappings and lists around the new tensors; anything else is handed on."""
    if isinstance(content, torch.Tensor):
        return fresh.get(id(content), content)
    held: Any = content
    if isinstance(content, Mapping):
        return {key: _replaced(value, fresh) for key, value in held.items()}
    return [_replaced(value, fresh) for value in held] if isinstance(content, list) else content


def _write_safetensors(source: Path, out: Path, tensors: dict[str, torch.Tensor]) -> None:
    untyped: Any = safetensors
    with untyped.safe_open(source, framework="pt") as opened:
        metadata: dict[str, str] | None = opened.metadata()
    try:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from error
