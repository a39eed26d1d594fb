"""A checkpoint and data in, activation ranges out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.api.arguments import DEFAULT_BATCH, PathLike, batch_ranges, path_of, spec_of, whole_range
from gpusq_deploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import ArchArgument, ArchSpec, BatchRange, CalibrationTable, CalibratorName
    from gpusq_deploy.calibration import Ranks


def calibrate(  # noqa: PLR0913 - one argument for each option of gpusq-calibrate
    model: PathLike,
    *,
    out: PathLike,
    data: PathLike,
    arch: ArchSpec | str | None = None,
    arch_args: Mapping[str, ArchArgument] | Sequence[str] = (),
    state_dict: str | None = None,
    recipe: PathLike | None = None,
    samples: int | None = None,
    calibrator: CalibratorName = "amax",
    batch: BatchRange | int | str = DEFAULT_BATCH,
    opset: int = 20,
    force: bool = False,
    ranks: Ranks | None = None,
    reporter: Reporter | None = None,
) -> CalibrationTable:
    """Find the activation ranges of a checkpoint or an ONNX file, as gpusq-calibrate does, for `build(ranges=out)`.

    Args:
        model: The checkpoint, or an `.onnx` file.
        out: The file to write the ranges to.
        data: A folder of images; a `.npy` or `.npz` of preprocessed float32 [N, C, H, W]; `package.module:factory`; or
            `"random"`.
        arch: Its architecture, such as `"timm:vit_small_patch16_224"`, where it doesn't describe itself; of an
            ONNX file, for its preprocessing.
        arch_args: Arguments of the architecture, by name or as `"K=V"`.
        state_dict: Which of the file's state dicts, where it holds several.
        recipe: A TOML file or a shipped recipe's name; None: the default one.
        samples: Use at most so many of the data's samples, spread evenly; None: all.
        calibrator: For rules of the recipe that name none.
        batch: Batch sizes to export for: `"MIN:OPT:MAX"`, or one size.
        opset: ONNX opset, 19 to 23.
        force: Replace a file that is there.
        ranks: Which of several processes this is; None: as torchrun says, or alone.
        reporter: Who hears how it goes; nobody.

    Raises:
        GpusqError: Anything that the user can mend; nothing is written then.
    """
    from gpusq_deploy.artifacts import Calibrator
    from gpusq_deploy.calibration import ranks_from_environment
    from gpusq_deploy.compile import CalibrateRequest, calibrate_checkpoint

    place = Path(model)
    request = CalibrateRequest(
        model=place,
        arch=spec_of(place, arch, arch_args),
        state_dict=state_dict,
        recipe=path_of(recipe),
        calib=os.fspath(data),
        calib_samples=samples,
        calibrator=Calibrator(name=calibrator),
        batch=whole_range(batch_ranges(batch)),
        opset=opset,
        out=Path(out),
        force=force,
    )
    return calibrate_checkpoint(request, ranks or ranks_from_environment(os.environ), reporter or SILENT)
