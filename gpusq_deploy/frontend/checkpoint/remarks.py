"""What is said of a checkpoint that was loaded, and kept in the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from gpusq_deploy.artifacts import ArchSpec, Preprocessing
from gpusq_deploy.frontend.checkpoint.pretrained_folder import PREPROCESSOR
from gpusq_deploy.frontend.checkpoint.transformers_input import DEFAULTS, size_said, steps_said
from gpusq_deploy.frontend.checkpoint.transformers_models import answers_left_out
from gpusq_deploy.text import some

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def eight_bit_floats(state: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """What is said of weights in FP8; nothing where there are none."""
    eight_bits = [name for name, tensor in state.items() if tensor.is_floating_point() and tensor.dtype not in _FLOATS]
    if eight_bits:
        yield f"weights in FP8 are read as the numbers that they are, without a scale: {some(eight_bits)}"


def assumed(
    arch: ArchSpec, preprocessing: Preprocessing, preprocessor: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """What is said of a model of transformers: defaults and sizes that were taken, and answers that are left out."""
    if arch.source != "transformers":
        return
    if preprocessing.origin.startswith(DEFAULTS):
        yield (
            f"WARNING: no {PREPROCESSOR}: images are prepared by the {preprocessing.origin}, which need not be what "
            "the model was trained with"
        )
    yield from size_said(arch, preprocessing, preprocessor)
    yield from steps_said(preprocessing, preprocessor)
    left_out = answers_left_out(arch, preprocessing)
    if left_out:
        yield f"answers of the model that the graph leaves out: {some(left_out)}"
