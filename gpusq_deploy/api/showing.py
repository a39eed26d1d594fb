"""What a model says of images, in words and drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.api.arguments import PathLike, path_of, spec_of
from gpusq_deploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import ArchArgument, ArchSpec
    from gpusq_deploy.benchmarks import RunAnswers


def run(  # noqa: PLR0913 - one argument for each option of gpusq-run
    model: PathLike,
    images: PathLike | Sequence[PathLike],
    *,
    out: PathLike | None = None,
    threshold: float = 0.5,
    arch: ArchSpec | str | None = None,
    arch_args: Mapping[str, ArchArgument] | Sequence[str] = (),
    state_dict: str | None = None,
    runtime: str = "auto",
    force: bool = False,
    reporter: Reporter | None = None,
) -> RunAnswers:
    """Tell and draw what a bundle, a checkpoint or an ONNX file finds in images, as gpusq-run does.

    Args:
        model: The model.
        images: Files, one or several.
        out: A folder for copies of the images with what was found drawn on them; None: none.
        threshold: Boxes likelier than this are told, 0…1.
        arch: The architecture of a checkpoint or an ONNX file that doesn't describe itself.
        arch_args: Arguments of the architecture, by name or as `"K=V"`.
        state_dict: Which of a checkpoint's state dicts, where it holds several.
        runtime: Who runs a bundle or an ONNX file: `"tensorrt"`, `"tensorrt-rtx"`, `"onnxruntime"`, or `"auto"`.
        force: Replace copies that are there.
        reporter: Who hears how it goes; nobody.

    Returns:
        Of each image: the five likeliest classes, boxes in its pixels, or the largest classes of its label map.

    Raises:
        GpusqError: A bad model or image, a model of features, or a copy that exists or can't be written.
    """
    from gpusq_deploy.artifacts import require_input
    from gpusq_deploy.benchmarks import RunRequest, run_images

    given = (images,) if isinstance(images, (str, os.PathLike)) else tuple(images)
    place, files = Path(model), tuple(Path(image) for image in given)
    for path in (place, *files):
        require_input(path)
    request = RunRequest(
        model=place,
        images=files,
        arch=spec_of(place, arch, arch_args),
        state_dict=state_dict,
        runtime=runtime,
        threshold=threshold,
        out=path_of(out),
        force=force,
    )
    return run_images(request, reporter or SILENT)
