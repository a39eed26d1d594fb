"""Which axis of each of a graph's outputs holds the samples, as far as shapes tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.graph.values import value_name
from gpusq_deploy.numerics import SampleAxis, by_sample, find_sample_axis


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleAxes:
    """Of outputs by name.

    Attributes:
        known: Their axis; None for one without, such as a table of positions.
        open: Those whose shape doesn't tell, and the axes that may be meant, None for any: where the batch is fixed its
            name is gone, and in `4*batch` the samples stand in front or behind.
    """

    known: Mapping[str, SampleAxis | None]
    open: Mapping[str, frozenset[int] | None]

    def found(
        self, plain: Mapping[str, npt.NDArray[Any]], rolled: Mapping[str, npt.NDArray[Any]], batch: int
    ) -> SampleAxes:
        """The open ones closed by the answers to a batch, and to the same batch turned by one sample; in order."""
        closed = {name: find_sample_axis(plain[name], rolled[name], batch, axes) for name, axes in self.open.items()}
        # In the order of the answers, which is the graph's: the first is the one that is judged.
        return SampleAxes(known={name: {**self.known, **closed}[name] for name in plain}, open={})

    def by_sample(self, answers: Mapping[str, npt.NDArray[Any]], count: int) -> dict[str, npt.NDArray[Any]]:
        """Each output as [N, ...], of the first `count` samples; [1, ...] of one without an axis of samples."""
        return {name: by_sample(answer, self.known[name])[:count] for name, answer in answers.items()}


def sample_axes(graph: ir.Graph) -> SampleAxes:
    """What the shapes of the outputs tell: of a dimension that is the first input's first, by its name."""
    shape = graph.inputs[0].shape if graph.inputs else None
    batch = shape[0] if shape else None
    name = batch.value if isinstance(batch, ir.SymbolicDim) else None
    known: dict[str, SampleAxis | None] = {}
    unclear: dict[str, frozenset[int] | None] = {}
    for value in graph.outputs:
        sizes = None if value.shape is None else [_text(dimension) for dimension in value.shape]
        if name is None or sizes is None or "" in sizes:
            unclear[value_name(value)] = None
        elif name in sizes:
            known[value_name(value)] = SampleAxis(axis=sizes.index(name))
        elif symbolic := frozenset(axis for axis, size in enumerate(sizes) if not size.isdecimal()):
            unclear[value_name(value)] = symbolic
        else:
            known[value_name(value)] = None
    return SampleAxes(known=known, open=unclear)


def _text(dimension: int | ir.SymbolicDim) -> str:
    """A dimension's size or its name; empty where it has neither."""
    return str(dimension) if isinstance(dimension, int) else dimension.value or ""
