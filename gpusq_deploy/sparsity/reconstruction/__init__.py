"""Refit a pruned model to the dense one, block by block, in closed form."""
