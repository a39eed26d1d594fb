"""An engine's outputs beside the CPU's: no latency of wrong numbers is worth anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_deploy.engines import Session, open_onnx
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import map_model, sample_axes, scratch_model, widened
from gpusq_deploy.numerics import equal_share, is_floating, sqnr_db

# Rounding differs by a step here and there, and FP16 sums are taken in another order: about 40 dB. A hundredth of the
# signal is no rounding any more.
LEAST_DB = 20.0
# The CPU is slow: of a large batch it runs the first few samples.
_MOST_SAMPLES = 4
_LEAST_EQUAL = 0.5

Arrays = Mapping[str, NDArray[Any]]


class CpuReference:
    """The model that an engine was built from, on ONNX Runtime; and what comparisons with it have found.

    Attributes:
        found: The lowest SQNR of all outputs of floats, by batch size, in dB.
        equal: The lowest share of equal values of all outputs of integers and booleans, by batch size.
    """

    def __init__(self, model: Path) -> None:
        """Open the model; a BF16 one in float32, for ONNX Runtime's CPU provider has no BF16 kernels.

        Raises:
            GpusqError: ONNX Runtime can't run it: it is not a model, or has operators that it lacks.
        """
        graph = map_model(model)
        self._widened = widened(graph)
        self._axes = sample_axes(graph.graph)
        if self._widened:
            with scratch_model(graph) as path:
                self._session: Session = open_onnx(path)
        else:
            self._session = open_onnx(model)
        self.found: dict[int, float] = {}
        self.equal: dict[int, float] = {}

    def check(self, feeds: Arrays, outputs: Arrays, batch: int) -> None:
        """Compare an engine's outputs with the CPU's on the same inputs.

        Args:
            feeds: The engine's inputs, in the model's order, the batch first.
            outputs: What it answered, in the model's order.
            batch: Its batch size.

        Raises:
            GpusqError: Another number of outputs, another shape, less than `LEAST_DB` in an output of floats, or where
                there are none, less than half of the values equal.
        """
        specs = self._session.inputs
        fixed = any(spec.shape[:1] != (-1,) for spec in specs)
        # What no axis of samples is known of depends on the whole batch.
        whole = fixed or self._axes.open or None in self._axes.known.values()
        count = batch if whole else min(batch, _MOST_SAMPLES)
        mine = {
            spec.name: np.ascontiguousarray(feed[:count].astype(spec.dtype))
            for spec, feed in zip(specs, feeds.values(), strict=True)
        }
        wanted = self._session.run(mine)
        if len(wanted) != len(outputs):
            raise self._wrong(f"it has {len(outputs)} outputs, the model {len(wanted)}", batch)
        if self._axes.open:
            rolled = self._session.run({name: np.roll(feed, -1, axis=0) for name, feed in mine.items()})
            self._axes = self._axes.found(wanted, rolled, count)
        got = dict(zip(wanted, outputs.values(), strict=True))
        self._require_shapes(wanted, got, count, batch)
        self._compare(self._axes.by_sample(wanted, count), self._axes.by_sample(got, count), batch)

    def note(self) -> str:
        """What was found, for the record."""
        figures = [f"SQNR {decibels:.1f} dB at batch {batch}" for batch, decibels in self.found.items()]
        figures += [f"{share:.1%} of the values equal at batch {batch}" for batch, share in self.equal.items()]
        how = ", in float32 for BF16" if self._widened else ""
        return f"outputs compared with ONNX Runtime on the CPU{how} before timing: {', '.join(figures)}"

    def close(self) -> None:
        """Give the memory back."""
        self._session.close()

    def _require_shapes(self, wanted: Arrays, got: Arrays, count: int, batch: int) -> None:
        for name, answer in wanted.items():
            shape, where = list(answer.shape), self._axes.known[name]
            if where is not None:
                shape[where.axis] = shape[where.axis] // count * batch
            if list(got[name].shape) != shape:
                raise self._wrong(f"output {name!r} is {list(got[name].shape)}, not {shape}", batch)

    def _compare(self, wanted: Arrays, got: Arrays, batch: int) -> None:
        floats = [name for name, answer in wanted.items() if is_floating(answer)]
        for name in floats:
            decibels = sqnr_db(wanted[name].astype(np.float32), got[name].astype(np.float32))
            if not decibels >= LEAST_DB:
                raise self._wrong(f"output {name!r} agrees to {decibels:.1f} dB, less than {LEAST_DB:g}", batch)
            self.found[batch] = min(self.found.get(batch, decibels), decibels)
        for name in wanted.keys() - floats:
            share = equal_share(wanted[name], got[name])
            # Beside floats they are told alone: of sorted indices, few keep their places.
            if not floats and share < _LEAST_EQUAL:
                raise self._wrong(f"of output {name!r}, {share:.1%} of the values are equal", batch)
            self.equal[batch] = min(self.equal.get(batch, share), share)

    @staticmethod
    def _wrong(what: str, batch: int) -> GpusqError:
        return GpusqError(
            f"the engine answers something else than the CPU: {what}",
            place=f"batch {batch}",
            hint="its latency means nothing; build it again, or try --engine-option level=0 to see which kernels err",
        )
