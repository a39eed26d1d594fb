"""A file's weights, and what is recorded of their layers, under the names that the architecture has for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import torch

from gpusq_deploy.artifacts import ArchSpec
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.frontend.checkpoint.layer_names import layer_of
from gpusq_deploy.frontend.checkpoint.positions import resized_positions
from gpusq_deploy.frontend.checkpoint.transformers_models import is_part_of_config, whole_of
from gpusq_deploy.frontend.checkpoint.transformers_weights import weights_by_module_names
from gpusq_deploy.frontend.checkpoint.wrappers import Renamed, own_weights


def named_for(arch: ArchSpec, reading: Reading, expected: Mapping[str, torch.Tensor], *, place: str) -> Reading:
    """What was read, under the architecture's names and with its position tables; what doesn't fit stays as it is.

    Args:
        arch: The architecture.
        reading: The file's content, under the file's names.
        expected: The state dict of the architecture's module.
        place: The file, for errors.

    Raises:
        GpusqError: Several models are in the file, or see `weights_by_module_names`.
    """
    reading = _with_unnamed(reading, expected)
    part = is_part_of_config(arch)
    renamed = own_weights(expected, reading.state, place=place, part=part)
    whole = whole_of(arch) if part and not expected.keys() <= renamed.state.keys() else None
    if whole is not None:  # files keep older names of the whole, which only its own class renames
        first = weights_by_module_names(whole, reading.state)
        renamed = _after(first, own_weights(expected, first.state, place=place, part=True))
    if arch.source == "transformers":
        renamed = _after(renamed, weights_by_module_names(arch, renamed.state))
    state, resized = resized_positions(arch, renamed.state, expected)
    layers = {layer_of(old): layer_of(new) for old, new in renamed.names.items()}
    left = {layer_of(name) for name in reading.state if renamed.names.get(name, name) not in state}
    record = reading.sparsity
    if record is not None:
        kept = tuple(layers.get(layer, layer) for layer in record.layers if layer not in left)
        record = msgspec.structs.replace(record, layers=kept)
    return replace(
        reading,
        state=state,
        ranges={layers.get(layer, layer): amax for layer, amax in reading.ranges.items() if layer not in left},
        origins={layers.get(layer, layer): origin for layer, origin in reading.origins.items() if layer not in left},
        quantizers=reading.quantizers.renamed(layers, left),
        sparsity=record,
        remarks=(*reading.remarks, *renamed.remarks, *resized),
    )


def _with_unnamed(reading: Reading, expected: Mapping[str, torch.Tensor]) -> Reading:
    """Tensors without a name under that of the one thing that is missing of their shape, if they alone have it."""
    missing: dict[torch.Size, list[str]] = {}
    for name, tensor in expected.items():
        if name not in reading.state:
            missing.setdefault(tensor.shape, []).append(name)
    shapes = [tensor.shape for tensor in reading.unnamed]
    found = {
        names[0]: tensor
        for tensor in reading.unnamed
        if len(names := missing.get(tensor.shape, [])) == 1 and shapes.count(tensor.shape) == 1
    }
    said = tuple(
        f"{name} is the quantised constant without a name that has its shape, {list(tensor.shape)}"
        for name, tensor in found.items()
    )
    return replace(reading, state={**reading.state, **found}, remarks=(*reading.remarks, *said)) if found else reading


def _after(first: Renamed, second: Renamed) -> Renamed:
    """Both renamings as one."""
    names = {old: second.names.get(new, new) for old, new in first.names.items()}
    return Renamed(second.state, {**second.names, **names}, (*first.remarks, *second.remarks))
