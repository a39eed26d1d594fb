"""Parameters worth comparing."""

from __future__ import annotations

import torch


def fill_zeros(module: torch.nn.Module, std: float) -> None:
    """Random numbers for parameters of zeros, which would hide a mistake, and what is built of them."""
    for parameter in module.parameters():
        if not parameter.any():
            parameter.normal_(std=std)
