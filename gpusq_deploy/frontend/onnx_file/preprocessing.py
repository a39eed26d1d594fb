"""How images become the input of an ONNX file, which doesn't say it itself."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from gpusq_deploy.artifacts import UNDECLARED_FILE, ArchSpec, Preprocessing, preprocessing_of_shape
from gpusq_deploy.frontend.checkpoint.architecture import skeleton_from_arch
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.frontend.checkpoint.pretrained_folder import preprocessor_beside
from gpusq_deploy.frontend.checkpoint.transformers_input import UndeclaredError, preprocessing_of_processor

_IMAGE_AXES = 3


def preprocessing_of_onnx(path: Path, arch: ArchSpec | None, sizes: tuple[int, ...]) -> Preprocessing | None:
    """What an architecture declares, else what a preprocessor_config.json beside the file says; None where neither is.

    Args:
        path: The file.
        arch: The architecture that was named for it.
        sizes: Of a sample, [channels, height, width]; -1 where the file leaves one open.

    Raises:
        GpusqError: Either can't be read.
    """
    if arch is not None:
        with suppress(UndeclaredError):
            return preprocessing_of(arch, skeleton_from_arch(arch))
    preprocessor = preprocessor_beside(path)
    if preprocessor is None or len(sizes) != _IMAGE_AXES:
        return None
    return preprocessing_of_processor(preprocessor, sizes, place=str(path.parent))


def undeclared_input(sizes: tuple[int, ...]) -> Preprocessing | None:
    """The shape alone; None where the file leaves a size open."""
    if min(sizes) < 1:
        return None
    if len(sizes) != _IMAGE_AXES:
        return preprocessing_of_shape(sizes, UNDECLARED_FILE)
    channels, height, width = sizes
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    return Preprocessing(channels=channels, height=height, width=width, mean=zeros, std=ones, origin=UNDECLARED_FILE)
