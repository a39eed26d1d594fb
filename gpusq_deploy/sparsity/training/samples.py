"""What training reads: samples by index, and their split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch


class Batch(NamedTuple):
    """Images float32 [n, channels, height, width], and n targets of the task where there are any."""

    images: torch.Tensor
    targets: Sequence[Any] | None


class Samples(Protocol):
    """Images, and their targets where `labelled`. The same index and epoch always give the same sample."""

    @property
    def labelled(self) -> bool:
        """Whether there are targets."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """The samples at these indices, in this order; `epoch` varies what is augmented."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """A data set, read and split. `classes` is empty where there are no labels; `skipped` names unreadable files.

    `validation` chooses among the epochs of training; of less than ten training samples it is those themselves.
    `plain` is `train` as evaluation reads it where that is augmented or mixed, None where it isn't.
    """

    train: Samples
    validation: Samples
    held_out: Samples
    classes: tuple[str, ...]
    skipped: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    plain: Samples | None = None

    @property
    def declared(self) -> Samples:
        """The training samples as the model declares its input: what prunes and calibrates."""
        return self.train if self.plain is None else self.plain
