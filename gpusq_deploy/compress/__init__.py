"""Make the checkpoints that the rest compiles: 2:4 pruning, then distillation from the dense model."""
