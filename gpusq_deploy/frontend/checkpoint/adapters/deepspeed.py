"""Shards of DeepSpeed's ZeRO-3 and its optimiser's files: each holds a part of the weights.

A `mp_rank_00_model_states.pt` of ZeRO 1 and 2 holds all weights under `module`, and is read as any state dict. One of
ZeRO-3 has names with empty tensors, and `param_shapes` with the shapes that they should have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from gpusq_deploy.frontend.checkpoint.adapters.refusal import ForeignFormatError

PRODUCER = "DeepSpeed"
CONVERSION = "python zero_to_fp32.py FOLDER OUT, with the script that DeepSpeed left beside the shards"


def deepspeed_problem(content: Mapping[str, Any], *, place: str) -> ForeignFormatError | None:
    """What is said of a file that is a shard; None where it is none."""
    inner = content.get("optimizer_state_dict")
    module = content.get("module")
    if isinstance(inner, Mapping) and ("zero_stage" in inner or "partition_count" in inner) and module is None:
        return _problem("a shard of DeepSpeed's optimiser: no model's weights by name", place)
    if "param_shapes" not in content or not isinstance(module, Mapping):
        return None
    empty = [
        name
        for name, tensor in cast("Mapping[str, object]", module).items()
        if isinstance(tensor, torch.Tensor) and tensor.numel() == 0
    ]
    if empty:
        return _problem(
            "a shard of DeepSpeed's ZeRO-3: the weights lie in parts in the shards of all ranks", f"{place}, {empty[0]}"
        )
    return None


def _problem(what: str, place: str) -> ForeignFormatError:
    return ForeignFormatError(what, place=place, hint=CONVERSION, producer=PRODUCER)
