"""Load and save ONNX models."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
from onnx_ir import external_data

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.mapped import releasing

# A protobuf message ends at 2 GiB; the graph itself needs some of it.
_INLINE_LIMIT = 1_900_000_000
EXTERNAL_DATA = "model.onnx.data"


def load_model(path: Path) -> ir.Model:
    """Load a model; its external tensors stay mapped.

    Raises:
        GpusqError: No such file, or not an ONNX model.
    """
    if not path.is_file():
        raise GpusqError("no such file", place=str(path), hint="give an ONNX model")
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx_ir raise what they like on a damaged file
        raise GpusqError(
            f"not an ONNX model, or damaged: {error}",
            place=str(path),
            hint="copy or download the file again, and compare its size or digest with the original's",
        ) from error
    if not len(model.graph):
        raise GpusqError("the model has no nodes", place=str(path), hint="is it an ONNX file at all?")
    return model


def save_model(model: ir.Model, path: Path) -> None:
    """Save; over 2 GiB the tensors go to `model.onnx.data` beside it. Equal models give equal bytes.

    Tensors in external files stay there, unless what is left passes that limit.
    """
    tensors = (value.const_value for value in model.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None and not isinstance(tensor, ir.ExternalTensor))
    ir.save(model, path, external_data=EXTERNAL_DATA if size > _INLINE_LIMIT else None)


@contextmanager
def scratch_disk(folder: Path) -> Generator[None]:
    """A scratch folder that can't be written to is the user's to mend, who may not know of it.

    Raises:
        GpusqError: The disk refused.
    """
    try:
        yield
    except OSError as error:
        raise GpusqError(
            f"cannot write to the scratch folder: {error.strerror or error}",
            place=str(folder),
            hint="make room there, or name another folder: TMPDIR=/path",
        ) from error


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A new one, where the system has them.

    Raises:
        GpusqError: The disk refused.
    """
    with scratch_disk(Path("TMPDIR")):
        return tempfile.TemporaryDirectory()


@contextmanager
def scratch_model(model: ir.Model) -> Generator[Path]:
    """A model in a file of its own, to be run, while this lasts; see `save_scratch`."""
    with scratch_folder() as folder:
        path = Path(folder) / "model.onnx"
        save_scratch(model, path)
        yield path


def save_scratch(
    model: ir.Model, path: Path, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> None:
    """Save to be run and thrown away: all tensors go to a file beside it, from which a runtime can map them.

    Args:
        model: The model.
        path: The file.
        progress: Hears how many of the tensors are written.

    Raises:
        GpusqError: The scratch folder is full.
    """
    written = itertools.count(1)
    with scratch_disk(path.parent), releasing() as hear:

        def before(tensor: ir.TensorProtocol, info: external_data.CallbackInfo) -> None:
            hear(tensor, info)
            progress(next(written), info.total)

        ir.save(model, path, external_data=f"{path.name}.data", callback=before)
