"""From an ONNX file to the graph that a build starts from."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from onnx_ir.passes import common

from gpusq_deploy.artifacts import ArchSpec, Preprocessing, digest_of_bytes, digest_of_file
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import Checkpoint, GivenGraph
from gpusq_deploy.frontend.onnx_file.layers import plain_layers
from gpusq_deploy.frontend.onnx_file.names import name_modules
from gpusq_deploy.frontend.onnx_file.preprocessing import preprocessing_of_onnx, undeclared_input
from gpusq_deploy.frontend.onnx_file.refusals import (
    require_float,
    require_known_operators,
    require_no_bodies,
    require_one_input,
)
from gpusq_deploy.graph import (
    BATCH,
    frees_batch,
    is_constant,
    load_model,
    make_pass,
    map_model,
    run_passes,
    settle_branches,
    widened,
)
from gpusq_deploy.text import one_line

# What onnxscript's converter starts from; it keeps what nodes say of themselves, which onnx's own doesn't.
_LEAST_OPSET = 18
# As of our own export: above it nothing is known of TensorRT's parsers.
_MOST_OPSET = 23
_PREPARING = ("clean", "fold-constants")
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def load_onnx(
    path: Path,
    *,
    module: Callable[[], torch.nn.Module],
    arch: ArchSpec | None = None,
    undeclared: Callable[[], Preprocessing | None] = lambda: None,
) -> Checkpoint:
    """Read an ONNX file of one floating-point input and constant weights, from any exporter.

    Its functions are inlined, its opset is raised to 18 at least, half precision becomes float32, constants are folded,
    layers get the names of their modules, and a batch that is fixed is made free where that changes no answer.

    Args:
        path: The file; external data lies beside it.
        module: Makes what runs the file as it is: the float graph is compared with it.
        arch: An architecture that declares how images become the input; the file's own graph is built.
        undeclared: What is known of the input where nothing declares it; None: its shape alone.

    Raises:
        GpusqError: A damaged file, one without its external data, or one that no build can start from.
    """
    place = str(path)
    model = map_model(path)
    written = _Written.of(model)
    _drop_constants_of_inputs(model)
    common.InlinePass()(model)
    require_float(model, place)
    convert_opset(model, min(max(_LEAST_OPSET, written.opset), _MOST_OPSET), place=place)
    require_known_operators(model, place)
    halves = [half for half in _HALVES if widened(model, half)]
    value = require_one_input(model, place)
    preprocessing = _preprocessing(path, arch, value, undeclared)
    _set_input(value, preprocessing.sample_shape)
    settle_branches(model)
    require_no_bodies(model, place)
    model = run_passes(model, [make_pass(name) for name in _PREPARING])
    name_modules(model)
    plain_layers(model)
    free = frees_batch(model)
    remarks = [f"its {half.name} weights are computed with in float32" for half in halves]
    if free is None:
        remarks.append(
            f"batch {value.shape[0] if value.shape else 1} is baked into the file: it is built for that alone"
        )
    return Checkpoint(
        file=path.name,
        digest=digest_of_onnx(path),
        format="ONNX",
        arch=ArchSpec(source="onnx", name=path.name, arguments=written.arguments()),
        module=module(),
        preprocessing=preprocessing,
        remarks=tuple(remarks),
        given=GivenGraph(model=free or model, half=bool(halves)),
    )


class _Written(NamedTuple):
    """Who wrote a file, and in which opset."""

    producer: str
    opset: int

    @classmethod
    def of(cls, model: ir.Model) -> _Written:
        words = [word.strip() for word in (model.producer_name or "", model.producer_version or "")]
        return cls(" ".join(word for word in words if word), model.opset_imports.get("", 0))

    def arguments(self) -> dict[str, Any]:
        return {**({"producer": self.producer} if self.producer else {}), "opset": self.opset}


def _drop_constants_of_inputs(model: ir.Model) -> None:
    """Files before IR version 4 name initializers among the inputs too."""
    for value in [value for value in model.graph.inputs if is_constant(value)]:
        model.graph.inputs.remove(value)


def convert_opset(model: ir.Model, opset: int, *, place: str) -> None:
    """Bring a model to another opset, in place, by onnxscript's converter or onnx's.

    Raises:
        GpusqError: Neither can.
    """
    before = model.opset_imports.get("", 0)
    if before == opset:
        return
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it warns of its own way, and of a failure, which is told below
    try:
        converter: Any = importlib.import_module("onnxscript.version_converter")  # partly untyped
        converter.convert_version(model, opset, fallback=True)
    except Exception as error:  # the converters raise what they like
        raise _unconverted(before, opset, place, one_line(error)) from error
    finally:
        logger.setLevel(level)
    if model.opset_imports.get("", 0) != opset:
        raise _unconverted(before, opset, place, "onnx's version converter refuses the graph")


def _unconverted(before: int, opset: int, place: str, why: str) -> GpusqError:
    return GpusqError(
        f"opset {before} can't be converted to {opset}: {why}",
        place=place,
        hint=f"export the model with opset {opset}",
    )


def _preprocessing(
    path: Path, arch: ArchSpec | None, value: ir.Value, undeclared: Callable[[], Preprocessing | None]
) -> Preprocessing:
    assert value.shape is not None, "required above"
    sizes = tuple(size if isinstance(size, int) else -1 for size in value.shape[1:])
    found = preprocessing_of_onnx(path, arch, sizes) or undeclared() or undeclared_input(sizes)
    if found is None:
        raise GpusqError(
            f"input {value.name} {value.shape} leaves the size of a sample open",
            place=str(path),
            hint="name the --arch that it was exported from, or export it with constant height and width",
        )
    fits = len(found.sample_shape) == len(sizes) and all(
        want in (-1, got) for got, want in zip(found.sample_shape, sizes, strict=True)
    )
    if not fits:
        raise GpusqError(
            f"its input is {list(sizes)}, the samples are {list(found.sample_shape)}: {found.origin}",
            place=str(path),
            hint="give the --arch and --arch-arg that the file was exported with, or samples of its input's shape",
        )
    return found


def _set_input(value: ir.Value, sample: tuple[int, ...]) -> None:
    assert value.shape is not None, "required above"
    first = value.shape[0]
    value.shape = ir.Shape([first if isinstance(first, int) else BATCH, *sample])


def digest_of_onnx(path: Path) -> str:
    """Of the file, and of those that hold its weights."""
    model = load_model(path)
    tensors = (value.const_value for value in model.graph.initializers.values())
    beside = {str(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    digests = [digest_of_file(path), *(digest_of_file(Path(name)) for name in sorted(beside))]
    return digests[0] if len(digests) == 1 else digest_of_bytes(json.dumps(digests).encode())
