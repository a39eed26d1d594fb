"""A session as a torch module: how an ONNX file, an engine or a bundle takes a checkpoint's place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gpusq_deploy.artifacts import BatchRange
from gpusq_deploy.calibration.data import filled
from gpusq_deploy.engines import Session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import array_from_tensor


class SessionModule(torch.nn.Module):
    """A session as a module: images float32 [N, ...] in, a tensor out, or a tuple of several, float32.

    Images are run in pieces of the batch sizes that the model takes; too few are filled up with the last.
    """

    def __init__(self, session: Session, config: Any, batch: BatchRange | None, place: str) -> None:
        super().__init__()
        self.here = torch.nn.Parameter(torch.zeros(0), requires_grad=False)
        self.config = config
        self._session, self._place = session, place
        fixed = session.inputs[0].shape[0]
        self._least = fixed if fixed > 0 else 1 if batch is None else batch.minimum
        self._most = fixed if fixed > 0 else None if batch is None else batch.maximum

    def forward(self, images: torch.Tensor) -> Any:
        """See the class."""
        samples = array_from_tensor(images)
        most = self._most or len(samples)
        pieces = [self._run(samples[start : start + most]) for start in range(0, len(samples), most)]
        whole = tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))
        return whole[0] if len(whole) == 1 else whole

    def close(self) -> None:
        """Give back memory and device."""
        self._session.close()

    def _run(self, samples: Any) -> list[torch.Tensor]:
        taken = self._session.inputs[0]
        count = len(samples)
        fed = filled(samples, self._least) if count < self._least else samples
        found = self._session.run({taken.name: np.ascontiguousarray(fed, dtype=taken.dtype)})
        wrong = [name for name, value in found.items() if value.shape[:1] != (len(fed),)]
        if wrong:
            raise GpusqError(
                f"the first axis of {wrong[0]} isn't that of the images",
                place=self._place,
                hint="export the model with one batch axis in and out",
            )
        return [_tensor(value[:count]) for value in found.values()]


def _tensor(value: Any) -> torch.Tensor:
    """As float32, also of a type that torch doesn't know; whole numbers as they are."""
    return torch.from_numpy(value.copy() if value.dtype.kind in "iub" else value.astype(np.float32))
