"""torch's SparseSemiStructuredTensor: 2:4 weights that a state dict holds packed.

CUTLASS's layout is undone by torch's own conversion, on the CPU. cuSPARSELt's metadata has no public layout: refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
)

from gpusq_deploy.artifacts import SparsityRecord
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.text import counted

METHOD = "torch SparseSemiStructuredTensor"
# Loading rebuilds them by torch's own constructors; nothing of the file is run.
SAFE_CLASSES: tuple[type, ...] = (SparseSemiStructuredTensorCUTLASS, SparseSemiStructuredTensorCUSPARSELT)


def read_semi_structured(reading: Reading, *, place: str) -> Reading:
    """Unpack the packed weights, and record their layers as 2:4.

    Raises:
        GpusqError: A weight in cuSPARSELt's layout, or a damaged one.
    """
    packed = {name: value for name, value in reading.state.items() if isinstance(value, SparseSemiStructuredTensor)}
    if not packed:
        return reading
    dense = {name: _dense(value, place=f"{place}, tensor {name}") for name, value in packed.items()}
    layers = tuple(name.removesuffix(".weight") for name in packed)
    return replace(
        reading,
        state={name: dense.get(name, value) for name, value in reading.state.items()},
        sparsity=SparsityRecord(method=METHOD, layers=layers),
        remarks=(*reading.remarks, f"unpacked {counted(len(layers), 'weight')} from torch's semi-structured layout"),
    )


def _dense(value: SparseSemiStructuredTensor, *, place: str) -> torch.Tensor:
    hint = "on the GPU that made it: weight.to_dense(), and save that"
    values, meta = getattr(value, "packed", None), getattr(value, "meta", None)
    if values is None or meta is None:
        raise GpusqError("cuSPARSELt's layout of 2:4 weights isn't public", place=place, hint=hint)
    conversions: Any = torch.sparse.semi_structured  # its conversions have no types
    try:
        unpacked: torch.Tensor = conversions.sparse_semi_structured_to_dense_cutlass(values, meta)
    except Exception as error:  # torch's conversion checks by indexing: a damaged file can make it raise anything
        raise GpusqError(f"the packed weight is damaged: {error}", place=place, hint=hint) from error
    if unpacked.shape != value.shape:
        raise GpusqError(
            f"the packed weight unpacks to {list(unpacked.shape)}, not {list(value.shape)}", place=place, hint=hint
        )
    return unpacked.detach()
