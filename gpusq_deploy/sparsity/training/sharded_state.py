"""A state of which each process writes and reads its part, by torch.distributed.checkpoint.

Tensors lie in a folder; plain values, and tensors of the meta device in the places of those, in what the folder's owner
keeps. The folder's `.metadata` is a pickle: it is read by an unpickler that knows only what such metadata hold.
"""

from __future__ import annotations

import errno
import pickle
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch.distributed import tensor as distributed_tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load  # pyright: ignore[reportUnknownVariableType] # of a path
from torch.distributed.checkpoint.state_dict_saver import save  # pyright: ignore[reportUnknownVariableType] # the same

from gpusq_deploy.sparsity.parts import is_shared_out
from gpusq_deploy.sparsity.training.distributed import Ranks, device
from gpusq_deploy.sparsity.training.sharding import mesh_of

_METADATA = "torch.distributed.checkpoint.metadata"
# No BytesStorageMetadata: what is stored as bytes is unpickled by torch.
_NAMES = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "TensorProperties", "_MEM_FORMAT_ENCODING")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "ChunkStorageMetadata")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
}


class Outline(NamedTuple):
    """A state with tensors of the meta device in the places of those in the folder, and which of these are sharded."""

    state: dict[str, Any]
    sharded: list[str]


def save_parts(folder: Path, state: Mapping[str, Any]) -> Outline:
    """Write the tensors of a state into a folder that isn't there yet; in all processes, which may see one folder.

    Raises:
        OSError: The disk refused, in any of them.
    """
    tensors: dict[str, torch.Tensor] = {}

    def outlined(name: str, value: torch.Tensor) -> torch.Tensor:
        tensors[name] = value
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    outline = _with_tensors(outlined, state)
    try:
        with _one_cause(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated")  # torch 2.9 uses it here
            save(tensors, storage_writer=_Writer(folder))
    except RuntimeError as error:
        raise OSError(errno.EIO, f"is the disk full? torch's writer stopped: {error}") from error
    return Outline(outline, [name for name, value in tensors.items() if is_shared_out(value)])


def load_parts(folder: Path, outline: Outline, ranks: Ranks) -> dict[str, Any]:
    """The state that was saved, sharded over the present processes, however many saved it.

    Raises:
        UnpicklingError: The metadata name what they have no need of, or aren't of such a state.
        Exception: Whatever torch makes of a damaged file.
    """
    tensors: dict[str, torch.Tensor] = {}
    mesh = mesh_of(device(), ranks)

    def empty(name: str, like: torch.Tensor) -> torch.Tensor:
        if name not in outline.sharded:
            tensors[name] = torch.empty(like.shape, dtype=like.dtype, device=device())
        else:
            shards = [distributed_tensor.Shard(0)]
            tensors[name] = distributed_tensor.empty(*like.shape, dtype=like.dtype, device_mesh=mesh, placements=shards)
        return tensors[name]

    state: dict[str, Any] = _with_tensors(empty, outline.state)
    reader = _Reader(folder, _metadata(folder / ".metadata"))
    with _one_cause():
        load(tensors, storage_reader=reader)
    return state


def _with_tensors(change: Callable[[str, torch.Tensor], torch.Tensor], value: Any, name: str = "") -> Any:
    """A structure of dicts, lists and tuples with other tensors; each has a name by its place."""
    if isinstance(value, torch.Tensor):
        return change(name, value)
    if isinstance(value, Mapping):
        held = cast("Mapping[object, Any]", value)
        return {key: _with_tensors(change, entry, f"{name}.{key}") for key, entry in held.items()}
    if isinstance(value, (list, tuple)):
        entries = cast("list[Any]", value)
        return type(entries)(_with_tensors(change, entry, f"{name}.{at}") for at, entry in enumerate(entries))
    return value


class _Writer(FileSystemWriter):
    """Without a record of where and when it wrote."""

    def storage_meta(self) -> None:
        """Nothing."""


class _Reader(FileSystemReader):
    """Of a folder whose metadata were read, and nothing else unpickles them."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self) -> Metadata:  # torch looks for others where it takes arguments
        """Those."""
        return self._metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """A class or function that metadata hold."""
        if (module, name) in _NAMES or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it would run {module}.{name}, which no such state needs")


def _metadata(path: Path) -> Metadata:
    with path.open("rb") as stream:
        found = _Unpickler(stream).load()
    if not isinstance(found, Metadata):
        raise pickle.UnpicklingError(f"{path.name} holds a {type(found).__name__}")
    return found


@contextmanager
def _one_cause() -> Generator[None]:
    """Of what failed in some of the processes, the first one's error: torch's own is no Exception."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
