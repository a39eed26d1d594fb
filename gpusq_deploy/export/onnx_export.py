"""Export through torch.export, and reduce what comes out to what the rest of the house needs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.checkpoint.checkpoint import Checkpoint
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.export.attention_axes import FourAxes
from gpusq_deploy.export.functional import name_functional_layers
from gpusq_deploy.export.parts import split_constants
from gpusq_deploy.graph.files import scratch_disk, scratch_folder
from gpusq_deploy.graph.mapped import map_model
from gpusq_deploy.graph.memory import give_back

INPUT_NAME = "input"
DEFAULT_OPSET = 20
# 19: FP16 scales in QuantizeLinear. Above 23 neither the exporter nor TensorRT's parsers are known to agree.
OPSETS = range(19, 24)
_TRACE_BATCH = 2
_STEPS = 3


def export_float_model(
    checkpoint: Checkpoint,
    *,
    batch: BatchRange,
    opset: int = DEFAULT_OPSET,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ir.Model:
    """Export to float32 ONNX: one input, `input` [N, channels, height, width]; `output`, or `output_0`, `output_1`, ….

    Args:
        checkpoint: The model.
        batch: N is the graph's symbolic dimension `batch`, or a constant where the range allows one size only.
        opset: ONNX opset, 19…23.
        progress: Hears how many of the steps are done: traced and translated, written, mapped.

    Returns:
        A model whose tensors are mapped, not loaded, and whose nodes keep `pkg.torch.onnx.name_scopes`.

    Raises:
        GpusqError: The opset is out of range, or torch can't export the model.
    """
    if opset not in OPSETS:
        raise GpusqError(f"opset {opset} is not supported", place="--opset", hint=f"use {OPSETS[0]} to {OPSETS[-1]}")
    example = example_input(checkpoint, batch.optimum if batch.static else _TRACE_BATCH)
    shapes = None if batch.static else ({0: torch.export.Dim("batch")},)
    progress(0, _STEPS)
    program = _exported(checkpoint, example, shapes, opset)
    progress(1, _STEPS)
    with scratch_folder() as folder:
        path = Path(folder) / "model.onnx"
        with scratch_disk(path.parent):
            program.save(path, external_data=True)
        del program
        give_back()
        progress(2, _STEPS)
        model = map_model(path)  # what is mapped outlives its name
    progress(_STEPS, _STEPS)
    _name_outputs(model.graph)
    split_constants(model)
    name_functional_layers(model.graph, checkpoint.module)
    return model


def example_input(checkpoint: Checkpoint, batch: int) -> torch.Tensor:
    """Seeded standard normal input, float32 [batch, channels, height, width], or whatever shape the samples have."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *checkpoint.preprocessing.sample_shape, generator=generator)


def reference_outputs(checkpoint: Checkpoint, batch: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], ...]:
    """What torch itself answers, floats in float32 and integers as they are: one array per output.

    Raises:
        GpusqError: An output isn't a tensor.
    """
    with torch.no_grad():
        answer: Any = checkpoint.module(torch.from_numpy(batch))
    tensors: list[Any] = pytree.tree_leaves(answer)
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise GpusqError("the model returns something that isn't a tensor", place=str(checkpoint.arch))
    return tuple((tensor.float() if tensor.is_floating_point() else tensor).numpy() for tensor in tensors)


def _name_outputs(graph: ir.Graph) -> None:
    names = ["output"] if len(graph.outputs) == 1 else [f"output_{index}" for index in range(len(graph.outputs))]
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _exported(
    checkpoint: Checkpoint, example: torch.Tensor, shapes: tuple[dict[int, torch.export.Dim]] | None, opset: int
) -> torch.onnx.ONNXProgram:
    quiet = logging.getLogger("torch")  # the tracer logs the traceback of what is raised, and told, anyway
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.no_grad(), FourAxes():
            warnings.simplefilter("ignore")  # the exporter's remarks on its own internals
            program = torch.onnx.export(
                checkpoint.module,
                (example,),
                input_names=[INPUT_NAME],
                dynamic_shapes=shapes,
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch.export runs the model's own code, which can raise anything
        root = _root(error)
        if isinstance(root, GpusqError):  # a model of transformers, which says better what it lacks
            raise GpusqError(root.what, place=root.place, hint=root.hint) from error
        raise GpusqError(
            f"torch can't export the model for float32 {list(example.shape)}: {_first_line(root)}",
            place=str(checkpoint.arch),
            hint="try a fixed batch (--batch 8:8:8); a model with data-dependent control flow can't be exported",
        ) from error
    finally:
        quiet.setLevel(level)
    if program is None:
        raise GpusqError("torch's exporter returned no program", place=str(checkpoint.arch))
    return program


def _root(error: BaseException) -> BaseException:
    """What was raised first: the exporter wraps what the model's own code raises."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
