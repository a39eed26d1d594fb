"""Train under a 2:4 mask, with distillation."""
