"""Small words and checks that the tasks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gpusq_deploy.errors import GpusqError


def require_finite(answer: torch.Tensor) -> torch.Tensor:
    """An answer without NaN or infinity.

    Raises:
        GpusqError: It has some.
    """
    bad = int((~torch.isfinite(answer)).sum())
    if bad:
        raise GpusqError(
            f"{bad} of {answer.numel()} values of the model's answer aren't finite",
            place="the model's output",
            hint="of an FP16 bundle, gpusq-inspect shows what doesn't fit FP16; build it with --fp32 to compare",
        )
    return answer


def class_name(label: int, names: Sequence[str]) -> str:
    """The name of a class, or its number."""
    return names[label] if 0 <= label < len(names) else str(label)
