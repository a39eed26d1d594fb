"""From a file to a model with its weights: the only room that reads checkpoints. No code from a file is ever run."""
