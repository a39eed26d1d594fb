"""What a model says of images, in words and drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.api.arguments import PathLike, path_of, spec_of
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.progress import SILENT, Reporter

_INSIDE = 0.5  # from here on a pixel is of the object, as torchvision's examples have it

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import ArchArgument, ArchSpec
    from gpusq_deploy.benchmarks import Instances, RunAnswers, RunRequest, ShownImage
    from gpusq_deploy.contrib import Detections


def run(  # noqa: PLR0913 - one argument for each option of gpusq-run
    model: PathLike,
    images: PathLike | Sequence[PathLike],
    *,
    out: PathLike | None = None,
    threshold: float = 0.5,
    masks: bool = False,
    arch: ArchSpec | str | None = None,
    arch_args: Mapping[str, ArchArgument] | Sequence[str] = (),
    state_dict: str | None = None,
    runtime: str = "auto",
    force: bool = False,
    reporter: Reporter | None = None,
) -> RunAnswers:
    """Tell and draw what a bundle, a detector, a checkpoint or an ONNX file finds in images, as gpusq-run does.

    Args:
        model: The model, or the folder of `build_detector`.
        images: Files, one or several.
        out: A folder for copies of the images with what was found drawn on them; None: none.
        threshold: Boxes likelier than this are told, 0…1.
        masks: Tell masks too, of objects and of the classes of a label map, as COCO's compressed run-length encoding;
            this needs pycocotools.
        arch: The architecture of a checkpoint or an ONNX file that doesn't describe itself.
        arch_args: Arguments of the architecture, by name or as `"K=V"`.
        state_dict: Which of a checkpoint's state dicts, where it holds several.
        runtime: Who runs a bundle or an ONNX file: `"tensorrt"`, `"tensorrt-rtx"`, `"onnxruntime"`, or `"auto"`.
        force: Replace copies that are there.
        reporter: Who hears how it goes; nobody.

    Returns:
        Of each image: the five likeliest classes, boxes in its pixels, or the classes of its label map, the largest
        first.

    Raises:
        GpusqError: A bad model or image, a model of features, or a copy that exists or can't be written.
    """
    from gpusq_deploy.api.detecting import is_detector
    from gpusq_deploy.artifacts import require_input
    from gpusq_deploy.benchmarks import RunRequest, run_images

    given = (images,) if isinstance(images, (str, os.PathLike)) else tuple(images)
    place, files = Path(model), tuple(Path(image) for image in given)
    for path in (place, *files):
        require_input(path)
    detector = is_detector(place)
    if detector and (arch is not None or arch_args or state_dict is not None):
        raise _says_itself(place)
    request = RunRequest(
        model=place,
        images=files,
        arch=None if detector else spec_of(place, arch, arch_args),
        state_dict=state_dict,
        runtime=runtime,
        threshold=threshold,
        masks=masks,
        out=path_of(out),
        force=force,
    )
    runs = _run_detector if detector else run_images
    return runs(request, reporter or SILENT)


def _says_itself(detector: Path) -> GpusqError:
    return GpusqError(
        "a detector's folder says itself what its architecture and weights are",
        place=str(detector),
        hint="leave out --arch, --arch-arg and --state-dict",
    )


def _run_detector(request: RunRequest, reporter: Reporter) -> RunAnswers:
    """As `run_images`, of a Mask R-CNN in parts."""
    from gpusq_deploy.api.detecting import open_detector
    from gpusq_deploy.benchmarks import RunAnswers, places_of, shown_instances
    from gpusq_deploy.calibration import turned_remark

    places = places_of(request.images, request.out, force=request.force)
    turned = turned_remark(request.images)
    if turned:
        reporter.say(turned)
    with open_detector(request.model, runtime=request.runtime) as detector:
        shown: list[ShownImage] = []
        for image, place in zip(request.images, places, strict=True):
            reporter.progress("running", len(shown), len(places))
            (found,) = detector.run(image, threshold=request.threshold)
            shown.append(shown_instances(image, _instances(found), (), place, masks=request.masks))
        return RunAnswers(model=str(request.model), runtime=detector.runtime, task="detection", images=tuple(shown))


def _instances(found: Detections) -> Instances:
    from gpusq_deploy.benchmarks import Instances

    return Instances(
        boxes=[tuple(corners) for corners in found.boxes.tolist()],
        labels=found.labels.tolist(),
        scores=found.scores.tolist(),
        masks=found.masks[:, 0] >= _INSIDE,
    )
