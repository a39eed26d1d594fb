"""What a path is: a bundle, a checkpoint, or an ONNX model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from gpusq_deploy.artifacts import MANIFEST, require_input
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.pretrained_folder import CONFIG, foreign_folder, is_saved_folder


def is_bundle(path: Path) -> bool:
    """True for a folder with a manifest."""
    return (path / MANIFEST).is_file()


def is_onnx(path: Path) -> bool:
    """True for the name of an ONNX file."""
    return path.suffix == ".onnx"


def kind_of(path: Path) -> Literal["bundle", "checkpoint", "ONNX model"]:
    """What a path is, for every command: a folder with a manifest, a folder or file of weights, or `*.onnx`.

    Raises:
        GpusqError: Nothing is there, or a folder of something else.
    """
    require_input(path)
    if not os.path.isdir(path):  # False for names that can't be, which open() refuses
        return "ONNX model" if is_onnx(path) else "checkpoint"
    if is_bundle(path):
        return "bundle"
    if is_saved_folder(path):
        return "checkpoint"
    foreign = foreign_folder(path)
    if foreign is not None:
        raise GpusqError(foreign[0], place=str(path), hint=foreign[1])
    raise GpusqError(
        f"not a bundle: it has no {MANIFEST}; and no folder of save_pretrained: no {CONFIG}, no weights",
        place=str(path),
        hint="give the checkpoint file, or make a bundle of it with gpusq-build",
    )
