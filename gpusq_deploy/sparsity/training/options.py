"""How a model is trained, and what is told of it."""

from __future__ import annotations

from gpusq_deploy.artifacts import MixedPrecision, RateSchedule, TrainOptimizer, Value
from gpusq_deploy.sparsity.training.tasks.task import Measure


class DistillOptions(Value):
    """How to recover.

    Attributes:
        epochs: Passes over the training samples.
        learning_rate: The peak.
        batch_size: Samples of one step, over all processes together.
        seed: Of the order of samples, and of what the model draws.
        alpha: Weight of the hard loss.
        beta: Weight of the soft loss.
        gamma: Weight of the feature loss.
        weight_decay: Of the optimiser; learned scales have none.
        optimizer: AdamW, or SGD with momentum 0.9.
        schedule: Of the rate after the warm-up: a cosine that ends at 0, or constant.
        warmup: Epochs over which the rate grows linearly.
        ema: Decay of the moving average of the weights, which then is what is scored and kept; None: no average.
        amp: Precision of the forward pass where autocast takes a lower one; None: float32.
        recompute: Whether blocks keep no activations, and run again for the gradient.
        fsdp: Whether each process holds only a part of the parameters, their gradients and the optimiser's moments.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    alpha: float = 1.0
    beta: float = 10.0
    gamma: float = 5.0
    weight_decay: float = 0.01
    optimizer: TrainOptimizer = "adamw"
    schedule: RateSchedule = "cosine"
    warmup: float = 0.0
    ema: float | None = None
    amp: MixedPrecision | None = None
    recompute: bool = False
    fsdp: bool = False


class EpochResult(Value):
    """One epoch: mean loss, and the held-out scores after it, 0…1. `score` is None where there are no labels."""

    epoch: int
    epochs: int
    loss: float
    measure: Measure
    score: float | None
    agreement: float


class StepResult(Value):
    """One training step: its place, the terms of its loss without their weights, and samples per second."""

    epoch: int
    epochs: int
    step: int
    steps: int
    hard: float
    soft: float
    feature: float
    rate: float
