"""A Mask R-CNN in parts as one thing: built into one folder, and run from it (docs/detectors.md)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

from gpusq_deploy.api.arguments import PathLike, words_of
from gpusq_deploy.api.building import build
from gpusq_deploy.api.checkpoints import load_checkpoint
from gpusq_deploy.api.running import load_bundle
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    from PIL import Image

    from gpusq_deploy.artifacts import ArchArgument, Preprocessing, QuantizedPrecision
    from gpusq_deploy.bundle import Bundle
    from gpusq_deploy.contrib import Detections, MaskRcnn
    from gpusq_deploy.engines import Session, Target

_PARTS = "gpusq_deploy.contrib.detectors.parts"
_BETWEEN = "between"
_NAMES = ("dense", "box", "mask")


class Detector:
    """A Mask R-CNN in parts, loaded; a context manager. Not safe to share between threads.

    Attributes:
        size: Height and width that images are scaled to fit, in pixels.
        runtime: Of its parts.
    """

    def __init__(self, whole: MaskRcnn, preprocessing: Preprocessing, parts: ExitStack, *, runtime: str) -> None:
        self.size, self.runtime = whole.size, runtime
        self._whole, self._preprocessing, self._parts = whole, preprocessing, parts

    def run(
        self, given: PathLike | Image.Image | Sequence[PathLike | Image.Image], *, threshold: float = 0.0
    ) -> list[Detections]:
        """Detect in images, one after the other.

        Args:
            given: Images, as files or as Pillow's, one or several. Each is scaled to fit `size`, and normalised as the
                model declares.
            threshold: What is likelier is answered, 0…1; a mask is as large as its image, so this saves memory.

        Returns:
            Boxes, labels, scores and masks of each image, in its own pixels.

        Raises:
            GpusqError: An image can't be read, or a runtime failed.
        """
        from gpusq_deploy.calibration import fit_image

        one = isinstance(given, (str, os.PathLike)) or not isinstance(given, Sequence)
        images = [cast("PathLike | Image.Image", given)] if one else cast("Sequence[PathLike | Image.Image]", given)
        found: list[Detections] = []
        for image in images:
            fitted = fit_image(Path(image) if isinstance(image, (str, os.PathLike)) else image, self._preprocessing)
            found.append(self._whole.detect(fitted.sample, original=fitted.original, threshold=threshold))
        return found

    def close(self) -> None:
        """Give back memory and device."""
        self._whole.close()
        self._parts.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_detector(folder: Path) -> bool:
    """True for a folder that `build_detector` made."""
    return (folder / _BETWEEN).is_dir() and all((folder / f"{name}.gpusq").is_dir() for name in _NAMES)


def open_detector(folder: PathLike, *, runtime: str = "auto") -> Detector:
    """Load a detector that `build_detector` made.

    Args:
        folder: Its folder.
        runtime: Of its parts: `"tensorrt"`, `"tensorrt-rtx"`, `"onnxruntime"`, or `"auto"`: the fastest that can run
            each here. What lies between them runs in ONNX Runtime.

    Raises:
        GpusqError: A part is missing, damaged or of another detector, or can't be run here.
    """
    from gpusq_deploy.bundle import read_bundle
    from gpusq_deploy.contrib import MaskRcnn

    place = Path(folder)
    with ExitStack() as stack:
        bundles = {name: read_bundle(place / f"{name}.gpusq") for name in _NAMES}
        sessions: dict[str, Session] = {}
        for name, bundle in bundles.items():
            sessions[name], _ = load_bundle(bundle, runtime)
            stack.callback(sessions[name].close)
        whole = MaskRcnn(dense=sessions["dense"], box=sessions["box"], mask=sessions["mask"], between=place / _BETWEEN)
        ran = ", ".join(dict.fromkeys(session.runtime for session in sessions.values()))
        return Detector(whole, bundles["dense"].manifest.preprocessing, stack.pop_all(), runtime=ran)


def build_detector(  # noqa: PLR0913 - what all three parts are asked
    model: PathLike,
    *,
    out: PathLike,
    data: PathLike,
    height: int,
    width: int,
    detector: str | None = None,
    arguments: Mapping[str, ArchArgument] | Sequence[str] = (),
    precision: QuantizedPrecision | None = None,
    sparse: bool = False,
    targets: Sequence[str | Target] | None = None,
    recipe: PathLike | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Bundle]:
    """Compile a Mask R-CNN of torchvision in three parts, and write what lies between them.

    The heads are calibrated on what the detector pools of the images.

    Args:
        model: The whole detector's state dict.
        out: A folder to make: `dense.gpusq`, `box.gpusq`, `mask.gpusq`, and `between`.
        data: A folder of images in which the detector finds something.
        height: Of the largest image, in pixels, a multiple of 32; `width` too. Others are scaled to fit.
        width: See `height`.
        detector: The whole detector, as `arch` would name it; None: a Swin-T with a feature pyramid.
        arguments: Of the detector, such as `num_classes`, by name or as `"K=V"`.
        precision: As of `build`, for each part.
        sparse: As of `build`.
        targets: As of `build`.
        recipe: As of `build`.
        reporter: Who hears how it goes; nobody.

    Returns:
        The bundles, by the parts' names.

    Raises:
        GpusqError: Anything that the user can mend; nothing is left behind.
    """
    from gpusq_deploy.bundle import read_bundle

    heard, place = reporter or SILENT, Path(out)
    asked = [*words_of(arguments), *_own_words(height, width, detector)]
    part = partial(build, model, precision=precision, sparse=sparse, targets=targets, recipe=recipe, reporter=heard)

    def build_part(name: str, calibrated: PathLike, most: int, folder: Path) -> None:
        heard.say(f"part {name}")
        arch, batch = f"{_PARTS}:{name}", f"1:{most}:{most}"
        part(out=folder / f"{name}.gpusq", data=calibrated, arch=arch, arch_args=asked, batch=batch)

    with _new_folder(place) as folder, tempfile.TemporaryDirectory() as features:
        build_part("dense", data, 1, folder)
        regions = _write_between(model, asked, data, folder / _BETWEEN, Path(features))
        for name, most in regions.items():
            build_part(name, Path(features) / f"{name}.npy", most, folder)
    return {name: read_bundle(place / f"{name}.gpusq") for name in _NAMES}


def _own_words(height: int, width: int, detector: str | None) -> Sequence[str]:
    from gpusq_deploy.contrib import SWIN_T

    own: dict[str, ArchArgument] = {"height": height, "width": width, "detector": detector or SWIN_T}
    return words_of(own)


def _write_between(
    model: PathLike, asked: Sequence[str], data: PathLike, between: Path, features: Path
) -> dict[str, int]:
    """Write the graphs between the parts, and what the detector pools of images; the most regions of each head."""
    from gpusq_deploy.calibration import open_source
    from gpusq_deploy.contrib import Part, record_pooled, settings_of, write_between

    checkpoint = load_checkpoint(model, arch=f"{_PARTS}:dense", arch_args=asked)
    part = cast("Part", checkpoint.module)
    record_pooled(part, open_source(os.fspath(data), checkpoint.preprocessing), features)
    write_between(part, between)
    settings = settings_of(part)
    return {"box": settings.proposals.after, "mask": settings.boxes.after}


@contextmanager
def _new_folder(out: Path) -> Generator[Path, None, None]:
    """A folder to fill; it becomes `out` when the block ends well and vanishes when it doesn't."""
    from gpusq_deploy.artifacts import require_folder

    require_folder(out)
    if os.path.lexists(out):
        raise GpusqError("the output exists already", place=str(out), hint="name another folder, or remove it")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as scratch:
        folder = Path(scratch) / "detector"
        folder.mkdir()
        yield folder
        folder.rename(out)
