"""Is it 2:4, are its Q/DQ sound, is the bundle whole? And what can be mended of a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.api.arguments import PathLike, path_of, spec_of, targets_of
from gpusq_deploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import ArchArgument, ArchSpec, Repair
    from gpusq_deploy.bundle import Validation
    from gpusq_deploy.engines import Target


def check(
    path: PathLike,
    *,
    arch: ArchSpec | str | None = None,
    arch_args: Mapping[str, ArchArgument] | Sequence[str] = (),
    state_dict: str | None = None,
    recipe: PathLike | None = None,
    targets: Sequence[str | Target] = (),
) -> Validation:
    """Check a checkpoint, an `.onnx` file or a bundle, as gpusq-validate does.

    Args:
        path: What to check.
        arch: A checkpoint's architecture, where it doesn't describe itself; without one, every 2-D and 4-D
            `*.weight` counts as a layer.
        arch_args: Arguments of the architecture, by name or as `"K=V"`.
        state_dict: Which of a checkpoint's state dicts, where it holds several.
        recipe: Which layers should be 2:4, where the file doesn't say.
        targets: GPUs for which each layer is explained, in `explained`.

    Returns:
        The 2:4 state of every layer, and in `findings` everything that is wrong.

    Raises:
        GpusqError: It can't be read.
    """
    from gpusq_deploy.bundle import explanations, validate

    place, gpus = Path(path), targets_of(targets)
    spec = spec_of(place, arch, arch_args)
    found = validate(place, arch=spec, recipe=path_of(recipe), state_dict=state_dict)
    explained = tuple(layer for gpu in gpus for layer in explanations(place, found, gpu))
    return dataclasses.replace(found, explained=explained)


def repair(  # noqa: PLR0913 - one argument for each option of gpusq-validate --repair
    path: PathLike,
    *,
    out: PathLike,
    arch: ArchSpec | str | None = None,
    arch_args: Mapping[str, ArchArgument] | Sequence[str] = (),
    recipe: PathLike | None = None,
    near_miss: float = 1e-3,
    permute: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Repair:
    """Mend a checkpoint's 2:4 and write it to another file; no file where there was nothing to mend.

    Args:
        path: The checkpoint, which is left as it is.
        out: The file to write.
        arch: Its architecture, where it doesn't describe itself and channels are permuted.
        arch_args: Arguments of the architecture, by name or as `"K=V"`.
        recipe: Which layers should be 2:4, where the file doesn't say.
        near_miss: Set values up to this share of their row's largest to zero where 2:4 needs it; 0: none.
        permute: Permute channels too; the model computes the same.
        force: Replace a file that is there.
        reporter: Who hears how it goes; nobody.

    Raises:
        GpusqError: It can't be read or mended, or the output exists.
    """
    from gpusq_deploy.compile import RepairRequest, repair_checkpoint

    place = Path(path)
    request = RepairRequest(
        model=place,
        arch=spec_of(place, arch, arch_args),
        recipe=path_of(recipe),
        near_miss=near_miss,
        permute=permute,
        out=Path(out),
        force=force,
    )
    return repair_checkpoint(request, (reporter or SILENT).say)
