"""Inputs and outputs that an engine's are compared with: made by ONNX Runtime on a CPU, kept in an .npz."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

import numpy as np

from gpusq_deploy.artifacts.base import written_whole
from gpusq_deploy.benchmarks.gpu.runs import Array
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.errors import GpusqError

SAMPLES = 2


def save_reference(model: Path, path: Path, *, threads: int | None = None) -> None:
    """Seeded inputs `x` and outputs `y` of a model with one of each, whole or not at all.

    Raises:
        GpusqError: ONNX Runtime can't run the model.
    """
    with contextlib.closing(open_onnx(model, threads=threads)) as session:
        shape = (SAMPLES, *session.inputs[0].shape[1:])
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        y = session.run({session.inputs[0].name: x})[session.outputs[0].name]
    # By a stream: to a name numpy would add its own ending.
    with written_whole(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, x=x, y=y)


def repeated(path: Path, batch: int) -> tuple[Array, Array]:
    """A reference's samples and outputs, over and over up to a batch.

    Raises:
        GpusqError: It can't be read.
    """
    try:
        with np.load(path) as stored:
            x: Array = stored["x"]
            y: Array = stored["y"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise GpusqError("its reference can't be read", place=str(path)) from error
    return np.resize(x, (batch, *x.shape[1:])), np.resize(y, (batch, *y.shape[1:]))
