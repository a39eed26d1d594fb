"""Per-channel ranges, means and second moments of activations, in one pass over the data."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.calibration.instrument import VALUES_SUFFIX, instrumented
from gpusq_deploy.calibration.observe import Runner, require_finite
from gpusq_deploy.calibration.sources import Batches, DataSource, evenly_filled
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.values import static_batch, value_name

_BATCH = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelMoments:
    """Of one activation [..., K] over all samples and positions.

    Attributes:
        low: Smallest value of each channel [K]; high: the largest.
        mean: [K], float64.
        covariance: Σ (x - mean)(x - mean)ᵀ / n [K, K], float64; None where it wasn't wanted.
    """

    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64] | None


class _Sums:
    """Sums about the first batch's mean, so that a large mean doesn't drown the variance."""

    def __init__(self, first: npt.NDArray[np.float32], *, squares: bool) -> None:
        width = first.shape[1]
        self._about = first.mean(axis=0)
        self._low = np.full(width, np.inf, np.float32)
        self._high = np.full(width, -np.inf, np.float32)
        self._count = 0.0
        self._total = np.zeros(width)
        self._squares = np.zeros((width, width)) if squares else None

    def add(self, rows: npt.NDArray[np.float32], *, copies: int) -> None:
        np.minimum(self._low, rows.min(axis=0), out=self._low)
        np.maximum(self._high, rows.max(axis=0), out=self._high)
        centred = rows - self._about
        self._count += len(rows) / copies
        self._total += centred.sum(axis=0, dtype=np.float64) / copies
        if self._squares is not None:
            self._squares += (centred.T @ centred) / np.float64(copies)

    def moments(self) -> ChannelMoments:
        shift = self._total / self._count
        covariance = None
        if self._squares is not None:
            covariance = self._squares / self._count - np.outer(shift, shift)
        return ChannelMoments(low=self._low, high=self._high, mean=self._about + shift, covariance=covariance)


def collect_moments(
    model: ir.Model,
    tensors: Sequence[str],
    source: DataSource,
    *,
    covariance_of: Collection[str],
    open_model: Callable[[Path], Runner],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, ChannelMoments]:
    """Observe activations by their last axis.

    State: K numbers for each tensor, and K² for those in `covariance_of`.

    Args:
        model: Float32 graph with one image input; left as it is.
        tensors: Names of activations.
        source: Samples; each is seen once.
        covariance_of: Tensors whose second moments are wanted.
        open_model: Opens an ONNX file for running.
        progress: Called with the samples done and their number.

    Raises:
        GpusqError: No readable sample, or too many unreadable ones, or the model computes NaN or infinity.
    """
    if not tensors:
        return {}
    sums: dict[str, _Sums] = {}
    static = static_batch(model.graph)
    batches = Batches(source=source, size=static or _BATCH)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observed.onnx"
        save_model(instrumented(model, tensors, whole=set(tensors)), path)
        runner = open_model(path)
        try:
            for batch in batches:
                for group, copies in evenly_filled(batch, static):
                    outputs = runner.run({value_name(model.graph.inputs[0]): group})
                    for tensor in tensors:
                        rows = _rows(outputs[f"{tensor}{VALUES_SUFFIX}"], tensor)
                        if tensor not in sums:
                            sums[tensor] = _Sums(rows, squares=tensor in covariance_of)
                        sums[tensor].add(rows, copies=copies)
                if progress is not None:
                    progress(batches.count, len(source))
        finally:
            runner.close()
    return {tensor: found.moments() for tensor, found in sums.items()}


def _rows(values: npt.NDArray[Any], tensor: str) -> npt.NDArray[np.float32]:
    rows = np.asarray(values, np.float32).reshape(-1, values.shape[-1])
    require_finite(rows, tensor)
    return rows
