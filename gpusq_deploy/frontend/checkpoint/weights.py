"""The weighted layers of a torch module, as the 2:4 check sees them."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy.typing as npt
import torch

from gpusq_deploy.artifacts import ArchSpec, FileAccount, LayerKind, SparsityRecord
from gpusq_deploy.frontend.checkpoint.account import account_of
from gpusq_deploy.frontend.checkpoint.adapters.exported_program import is_exported_program, read_exported_program
from gpusq_deploy.frontend.checkpoint.adapters.registry import reading_of, require_readable
from gpusq_deploy.frontend.checkpoint.files import SELF_DESCRIBING, read_checkpoint_file, require_no_choice
from gpusq_deploy.frontend.checkpoint.layer_names import is_layer_weight, layer_of, weighted_layers
from gpusq_deploy.frontend.checkpoint.load import StoredWeights, load_checkpoint, stored_weights
from gpusq_deploy.frontend.checkpoint.macs import count_macs
from gpusq_deploy.frontend.checkpoint.modules import named_modules
from gpusq_deploy.frontend.checkpoint.pretrained_folder import saved_folder, weights_file
from gpusq_deploy.frontend.checkpoint.state_dict_fit import require_finite
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor, release
from gpusq_deploy.numerics import LayerWeight, rows_from_conv

# Types that codes of quantised weights have, and hardly anything else.
_CODES = frozenset({torch.int8, torch.uint8})
_PLAIN = frozenset({torch.float16, torch.float32, torch.float64, torch.int8})


class FileWeights(NamedTuple):
    """Weighted layers of a checkpoint, to be read once and one after another, and what its file says beside them.

    `remarks` tell what was changed or left out while reading; `shapes` are those of all tensors that may be weights;
    `account` says what the file is and what of it is read.
    """

    layers: Iterable[LayerWeight]
    sparsity: SparsityRecord | None
    remarks: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    account: FileAccount | None = None


def layer_weights(module: torch.nn.Module, state: Mapping[str, torch.Tensor] | None = None) -> Iterator[LayerWeight]:
    """Linear and Conv2d weights in the module's order, as rows along the contracted axis; and input projections.

    A nn.MultiheadAttention holds its input projections itself: its `in_proj_weight` is the Linear layer `in_proj`.

    Args:
        module: The model.
        state: Tensors to look at instead of the module's own, by the names of its state dict.
    """
    for tensor, child in weighted_layers(module):
        kind = _conv_kind(child) if isinstance(child, torch.nn.Conv2d) else "linear"
        weight = getattr(child, tensor.rpartition(".")[2]) if state is None else state[tensor]
        yield _layer_weight(tensor, kind, weight)


def counted_weights(module: torch.nn.Module, shape: tuple[int, ...]) -> Iterator[LayerWeight]:
    """As `layer_weights`, with the multiply-accumulates of one sample of this shape."""
    skeleton = copy.deepcopy(module)
    macs = count_macs(skeleton, dict(weighted_layers(skeleton)), shape)
    for weight in layer_weights(module):
        yield replace(weight, macs=macs[weight.tensor])


def rows_of(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """A 2-D or 4-D weight as rows along the contracted axis: [N, K], or [N · kernel positions, channels]."""
    values = _array(tensor)
    return values if values.ndim == 2 else rows_from_conv(values)


def weights_in_file(path: Path, arch: ArchSpec | None, *, state_dict: str | None = None) -> FileWeights:
    """Weighted layers of a checkpoint, its sparsity record, and remarks.

    A state dict without an architecture still has names and shapes: each 2-D `*.weight` is taken for a Linear, each
    2-D `*in_proj_weight` for the input projections of an attention, each 4-D `*.weight` for a Conv2d whose stride
    isn't known (a patch embedding by its name alone).

    Raises:
        GpusqError: See `load_checkpoint`.
    """
    described = arch is not None or saved_folder(path) is not None
    file = weights_file(path)
    if arch is None and is_exported_program(file):
        require_no_choice(state_dict, place=str(file))
        program = read_exported_program(file)
        state = dict(program.state)
        return FileWeights(_guessed(state), None, program.remarks, _shapes(state), account_of(file, program))
    content = None if described else read_checkpoint_file(file)
    if content is None or content.get("format") == SELF_DESCRIBING:
        stored = stored_weights(path, arch=arch, state_dict=state_dict, content=content)
        if all(name in stored.state for name, _ in weighted_layers(stored.skeleton)):
            shapes = _shapes(stored.state, but=_tables(stored.skeleton))
            return FileWeights(
                _finite(stored, place=str(path)), stored.sparsity, stored.remarks, shapes, stored.account
            )
        # A parametrised weight: only the module can compute it.
        checkpoint = load_checkpoint(path, arch=arch, state_dict=state_dict)
        module, layers = checkpoint.module, tuple(layer_weights(checkpoint.module))
        shapes = _shapes(module.state_dict(), but=_tables(module))
        return FileWeights(layers, checkpoint.sparsity, checkpoint.remarks, shapes, stored.account)
    reading = reading_of(content, place=str(file), key=state_dict)
    require_readable(reading)
    state = dict(reading.state)
    return FileWeights(_guessed(state), reading.sparsity, reading.remarks, _shapes(state), account_of(file, reading))


def _shapes(state: Mapping[str, torch.Tensor], *, but: Container[str] = ()) -> dict[str, tuple[int, ...]]:
    """Float tensors, and codes; what a parametrisation computes from is left out."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if (tensor.is_floating_point() or tensor.dtype in _CODES or "weight" in name)
        and name not in but
        and ".parametrizations." not in name
    }


def _tables(module: torch.nn.Module) -> set[str]:
    """Names of the embedding tables, which multiply nothing."""
    return {f"{name}.weight" for name, child in named_modules(module) if isinstance(child, torch.nn.Embedding)}


def _finite(stored: StoredWeights, *, place: str) -> Iterator[LayerWeight]:
    """The layers' weights; every tensor is looked at as soon as it is read, and let go."""
    rest, how = dict(stored.state), stored.preprocessing
    shape = () if how is None else how.sample_shape
    macs = count_macs(stored.skeleton, dict(weighted_layers(stored.skeleton)), shape)
    for weight in _released(layer_weights(stored.skeleton, stored.state), stored.state):
        require_finite({weight.tensor: rest.pop(weight.tensor)}, place=place)
        yield replace(weight, macs=macs[weight.tensor])
    require_finite(rest, place=place)


def _guessed(state: Mapping[str, torch.Tensor]) -> Iterator[LayerWeight]:
    return _released(_guesses(state), state)


def _guesses(state: Mapping[str, torch.Tensor]) -> Iterator[LayerWeight]:
    for name, tensor in state.items():
        if not is_layer_weight(name, tensor.shape):
            continue
        conv: LayerKind = "patch_embed" if "patch_embed" in name else "conv"
        kind = "linear" if tensor.ndim == 2 else conv
        yield _layer_weight(name, kind, tensor)


def _layer_weight(tensor: str, kind: LayerKind, weight: torch.Tensor) -> LayerWeight:
    layer, rows = layer_of(tensor), rows_of(weight)
    return LayerWeight(layer=layer, tensor=tensor, kind=kind, rows=rows, positions=len(rows) // max(len(weight), 1))


def _released(weights: Iterable[LayerWeight], state: Mapping[str, torch.Tensor]) -> Iterator[LayerWeight]:
    """One after another: once the caller has read it, a mapped file's pages would stay counted as our memory."""
    for weight in weights:
        yield weight
        release(state[weight.tensor])


def _array(weight: torch.Tensor) -> npt.NDArray[Any]:
    """The stored values where they are: of a mapped file nothing is copied. Numpy's BF16 is ml_dtypes'."""
    values = weight.detach()
    if values.dtype == torch.bfloat16:
        return array_from_tensor(values.view(torch.int16)).view(ml_dtypes.bfloat16)
    return array_from_tensor(values if values.dtype in _PLAIN else values.float())


def _conv_kind(conv: torch.nn.Conv2d) -> LayerKind:
    patches = tuple(conv.kernel_size) == tuple(conv.stride) and conv.groups == 1 and max(conv.kernel_size) > 1
    return "patch_embed" if patches else "conv"
