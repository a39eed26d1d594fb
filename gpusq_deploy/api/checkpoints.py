"""A checkpoint as a value, and as a file that describes itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.api.arguments import PathLike, spec_of
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import ArchArgument, ArchSpec, Preprocessing
    from gpusq_deploy.frontend import Checkpoint, TorchModule


def load_checkpoint(
    path: PathLike,
    *,
    arch: ArchSpec | str | None = None,
    arch_args: Mapping[str, ArchArgument] | Sequence[str] = (),
    state_dict: str | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Load a checkpoint: self-describing, a state dict, safetensors or an exported program. Nothing in it is executed.

    Args:
        path: The file, or a folder that transformers' `save_pretrained` wrote.
        arch: Its architecture, such as `"timm:vit_small_patch16_224"`, where it doesn't describe itself.
        arch_args: Arguments of the architecture, by name or as `"K=V"`.
        state_dict: Which of the file's state dicts, where it holds several.
        allow_pickle: Run code that the file names; only for a file that you made yourself.

    Returns:
        The module with its weights (float32, eval mode, on the CPU) and everything that the file said of it.

    Raises:
        GpusqError: A bad file, no architecture, or weights that don't fit it or aren't finite.
    """
    from gpusq_deploy import frontend

    place = Path(path)
    spec = spec_of(place, arch, arch_args)
    return frontend.load_checkpoint(place, arch=spec, allow_pickle=allow_pickle, state_dict=state_dict)


def save_checkpoint(path: PathLike, module: TorchModule, *, arch: ArchSpec | str, preprocessing: Preprocessing) -> None:
    """Write a checkpoint that describes itself, whole or not at all: no function here then needs its architecture.

    Args:
        path: The file; it loads with `torch.load(weights_only=True)`.
        module: The model with its weights.
        arch: What makes such a model, such as `"timm:vit_small_patch16_224"`.
        preprocessing: From an image to the model's input.

    Raises:
        GpusqError: Not an architecture, or the file can't be written.
    """
    from gpusq_deploy import frontend

    place = Path(path)
    spec = frontend.arch_from_text(arch) if isinstance(arch, str) else arch
    try:
        frontend.save_checkpoint(place, module, arch=spec, preprocessing=preprocessing)
    except OSError as error:
        raise GpusqError(f"cannot write the checkpoint: {error.strerror}", place=str(place)) from error
