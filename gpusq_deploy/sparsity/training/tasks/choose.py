"""Which task a model is of, by its answer."""

from __future__ import annotations

from typing import Any

import torch

from gpusq_deploy.sparsity.training.tasks.classification import Classification
from gpusq_deploy.sparsity.training.tasks.detection import Detection, is_of_boxes
from gpusq_deploy.sparsity.training.tasks.segmentation import Segmentation
from gpusq_deploy.sparsity.training.tasks.task import Task


def task_of(module: torch.nn.Module, answer: Any, *, maps: bool) -> Task:
    """The task, by an answer to images; a classifier's where it is none that is known here.

    Args:
        module: The model.
        answer: What it returns.
        maps: Whether the data has label maps: then an answer of four axes is logits of pixels. So is that of a
            transformers model that is called one.
    """
    if is_of_boxes(answer):
        config: Any = getattr(module, "config", None)
        return Detection(no_object=answer[0].shape[-1] == getattr(config, "num_labels", -1) + 1)
    if isinstance(answer, torch.Tensor) and answer.ndim == 4 and (maps or "Segmentation" in type(module).__name__):
        return Segmentation()
    return Classification()
