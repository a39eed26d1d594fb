"""What gpusq-compress did."""

from __future__ import annotations

from typing import Literal

from gpusq_deploy.artifacts import (
    Permuted,
    Value,
)
from gpusq_deploy.numerics import Counting
from gpusq_deploy.sparsity.pruning.magnitude import (
    DenseLayer,
)
from gpusq_deploy.sparsity.reconstruction.reconstruct import Reconstruction
from gpusq_deploy.sparsity.training.qat import (
    FloatLayer,
)
from gpusq_deploy.sparsity.training.tasks.task import Measure


class HeldOutScore(Value):
    """Share of held-out samples predicted right: the dense model, pruned, recovered, and in INT8.

    `quantized` is in INT8 by the ranges that were observed, `trained` after training or reconstruction with them; None
    where there is none.

    Right is what the label says, or, where there are none, what the dense model predicts (then `dense` is 1). Of a
    model without logits it is the mean cosine of its output vectors with the dense model's.
    """

    measure: Measure | Literal["agreement", "cosine"]
    dense: float
    pruned: float
    recovered: float
    quantized: float | None = None
    trained: float | None = None


class Compression(Value):
    """What gpusq-compress did."""

    schema: Literal["gpusq.compression/1"] = "gpusq.compression/1"
    file: str
    arch: str
    method: str
    pruned: tuple[str, ...]
    dense: tuple[DenseLayer, ...]
    classes: int
    train_images: int
    held_out_images: int
    skipped: tuple[str, ...]
    feature_blocks: int
    epochs: int
    held_out: HeldOutScore
    notes: tuple[str, ...]
    permuted: tuple[Permuted, ...] = ()
    qat_epochs: int | None = None
    int8: tuple[str, ...] = ()
    float_layers: tuple[FloatLayer, ...] = ()
    reconstruction: Reconstruction | None = None
    counting: Counting | None = None
