"""A model is built with one tensor for an input: what its forward wants beside it."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from gpusq_deploy.artifacts import ArchSpec
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.transformers_towers import require_image_alone
from gpusq_deploy.text import counted

WRAP = "name a factory whose forward takes the image and fixes the rest: docs/checkpoints.md, Several inputs"


def require_one_input(arch: ArchSpec, module: torch.nn.Module) -> None:
    """Refuse a model whose forward can't be called with one tensor; what it takes beside that may have defaults.

    Raises:
        GpusqError: It needs more, or takes nothing.
    """
    if arch.source == "transformers":
        require_image_alone(arch)
        return
    needed = _needed(module)
    if needed is not None and len(needed) != 1:
        names = f": {', '.join(needed)}" if needed else ""
        raise GpusqError(
            f"a model with one tensor input is built, and this forward needs {counted(len(needed), 'input')}{names}",
            place=str(arch),
            hint=WRAP,
        )


def input_parameter(module: torch.nn.Module) -> str:
    """The name of the forward's first parameter; empty where it has none of its own (`*args`)."""
    first = next(iter(_parameters(module)), None)
    return first.name if first is not None and first.kind is not first.VAR_POSITIONAL else ""


def optional_inputs(module: torch.nn.Module) -> list[str]:
    """Names of what a forward takes beside its first parameter."""
    return [found.name for found in _parameters(module)[1:] if found.kind is not found.VAR_POSITIONAL]


def _needed(module: torch.nn.Module) -> list[str] | None:
    """Parameters of the forward without a default, and the first; None where one can't tell."""
    parameters = _parameters(module)
    if not parameters or any(found.kind is found.VAR_POSITIONAL for found in parameters):
        return None
    rest = [found.name for found in parameters[1:] if found.default is found.empty]
    return [parameters[0].name, *rest]


def _parameters(module: torch.nn.Module) -> list[inspect.Parameter]:
    forward: Any = module.forward
    try:
        found = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):  # some callables have none
        return []
    return [parameter for parameter in found if parameter.kind is not parameter.VAR_KEYWORD]
