"""Who wrote a file, by what only they leave in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

from gpusq_deploy.frontend.checkpoint.mappings import mapping_of


def writers_of(content: Mapping[str, Any], names: Collection[str]) -> Iterator[str]:
    """Trainers and tools, with their versions where the file has them.

    Args:
        content: The file's content.
        names: Names of its tensors.
    """
    if "pytorch-lightning_version" in content:
        yield f"PyTorch Lightning {content['pytorch-lightning_version']}"
    if "ds_version" in content:
        yield f"DeepSpeed {content['ds_version']}"
    elif "ds_config" in content:
        yield "DeepSpeed"
    state = content.get("modelopt_state")
    if isinstance(state, Mapping):
        modes = _modes(cast("Mapping[str, object]", state))
        yield f"NVIDIA ModelOpt {state.get('modelopt_version', '')}".rstrip() + (f" ({modes})" if modes else "")
    if "mmengine_version" in mapping_of(content.get("meta")):
        yield f"MMEngine {mapping_of(content.get('meta'))['mmengine_version']}"
    elif "mmcv_version" in mapping_of(content.get("meta")):
        yield f"MMCV {mapping_of(content.get('meta'))['mmcv_version']}"
    if any("_orig_mod" in name.split(".") for name in names):
        yield "torch.compile"
    if names and all(name.startswith("module.") for name in names):
        yield "DistributedDataParallel"


def _modes(state: Mapping[str, object]) -> str:
    listed = state.get("modelopt_state_dict")
    modes = cast("list[object]", listed) if isinstance(listed, list) else []
    return ", ".join(str(cast("tuple[object, ...]", mode)[0]) for mode in modes if isinstance(mode, tuple) and mode)
