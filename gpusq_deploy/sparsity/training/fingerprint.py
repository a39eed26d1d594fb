"""What a training was asked, in short: enough to tell that it isn't what another one was asked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch

from gpusq_deploy.calibration import spread_indices
from gpusq_deploy.sparsity.training.samples import Samples, TrainingData

# Samples of each part of the data that are looked at.
_LOOKED_AT = 16


def digest_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names, shapes, types and values."""
    return _digest(piece for name, tensor in tensors.items() for piece in (name.encode(), *_bytes(tensor)))


def digest_of_data(data: TrainingData) -> str:
    """Of the sizes of its parts, its classes, and sixteen samples of each part, evenly spread, with their targets."""
    parts = (data.train, data.validation, data.held_out)
    return _digest(
        piece for part in parts for piece in (repr((len(part), data.classes)).encode(), *_bytes(_some(part)))
    )


def differences(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """In words, what differs: `--epochs 10, not 5`, `another model`."""
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return [
        f"{name} {was.get(name, 'none')}, not {now.get(name, 'none')}" if name.startswith("-") else f"another {name}"
        for name in names
    ]


def _some(samples: Samples) -> list[Any]:
    return list(samples.batch(spread_indices(len(samples), _LOOKED_AT)))


def _digest(pieces: Iterator[bytes]) -> str:
    total = hashlib.sha256()
    for piece in pieces:
        total.update(len(piece).to_bytes(8, "little") + piece)
    return total.hexdigest()


def _bytes(value: Any) -> Iterator[bytes]:
    """Of tensors, and of what holds them."""
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        for name, entry in sorted(cast("Mapping[str, Any]", value).items()):
            yield str(name).encode()
            yield from _bytes(entry)
    elif isinstance(value, (list, tuple)):
        for entry in cast("Sequence[Any]", value):
            yield from _bytes(entry)
    else:
        yield repr(value).encode()
