"""An engine's outputs beside the CPU's: no latency of wrong numbers is worth anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.engines.session import Session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import scratch_model
from gpusq_deploy.graph.mapped import map_model
from gpusq_deploy.graph.widened import widened
from gpusq_deploy.numerics.error import sqnr_db

# Rounding differs by a step here and there, and FP16 sums are taken in another order: about 40 dB. A hundredth of the
# signal is no rounding any more.
LEAST_DB = 20.0
# The CPU is slow: of a large batch it runs the first few samples.
_MOST_SAMPLES = 4

Arrays = Mapping[str, NDArray[Any]]


class CpuReference:
    """The model that an engine was built from, on ONNX Runtime; and what comparisons with it have found.

    Attributes:
        found: The lowest SQNR of all outputs, by batch size, in dB.
    """

    def __init__(self, model: Path) -> None:
        """Open the model; a BF16 one in float32, for ONNX Runtime's CPU provider has no BF16 kernels.

        Raises:
            GpusqError: ONNX Runtime can't run it: it is not a model, or has operators that it lacks.
        """
        graph = map_model(model)
        self._widened = widened(graph)
        if self._widened:
            with scratch_model(graph) as path:
                self._session: Session = open_onnx(path)
        else:
            self._session = open_onnx(model)
        self.found: dict[int, float] = {}

    def check(self, feeds: Arrays, outputs: Arrays, batch: int) -> None:
        """Compare an engine's outputs with the CPU's on the same inputs.

        Args:
            feeds: The engine's inputs, in the model's order, the batch first.
            outputs: What it answered, in the model's order.
            batch: Its batch size.

        Raises:
            GpusqError: Another number of outputs, another shape, or less than `LEAST_DB` in an output.
        """
        specs = self._session.inputs
        fixed = any(spec.shape[:1] != (-1,) for spec in specs)
        count = batch if fixed else min(batch, _MOST_SAMPLES)
        mine = {
            spec.name: np.ascontiguousarray(feed[:count].astype(spec.dtype))
            for spec, feed in zip(specs, feeds.values(), strict=True)
        }
        wanted = self._session.run(mine)
        if len(wanted) != len(outputs):
            raise self._wrong(f"it has {len(outputs)} outputs, the model {len(wanted)}", batch)
        decibels = [
            self._compared(name, reference, got[:count], batch)
            for (name, reference), got in zip(wanted.items(), outputs.values(), strict=True)
        ]
        self.found[batch] = min(decibels)

    def note(self) -> str:
        """What was found, for the record."""
        figures = ", ".join(f"{decibels:.1f} dB at batch {batch}" for batch, decibels in self.found.items())
        how = ", in float32 for BF16" if self._widened else ""
        return f"outputs compared with ONNX Runtime on the CPU{how} before timing: SQNR {figures}"

    def close(self) -> None:
        """Give the memory back."""
        self._session.close()

    def _compared(self, name: str, wanted: NDArray[Any], got: NDArray[Any], batch: int) -> float:
        if wanted.shape != got.shape:
            raise self._wrong(f"output {name!r} is {list(got.shape)}, not {list(wanted.shape)}", batch)
        decibels = sqnr_db(wanted.astype(np.float32), got.astype(np.float32))
        if not decibels >= LEAST_DB:
            raise self._wrong(f"output {name!r} agrees to {decibels:.1f} dB, less than {LEAST_DB:g}", batch)
        return decibels

    @staticmethod
    def _wrong(what: str, batch: int) -> GpusqError:
        return GpusqError(
            f"the engine answers something else than the CPU: {what}",
            place=f"batch {batch}",
            hint="its latency means nothing; build it again, or try --engine-option level=0 to see which kernels err",
        )
