"""Export through torch.export, and reduce what comes out to what the rest of the house needs."""

from __future__ import annotations

import functools
import logging
import re
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from gpusq_deploy.artifacts import BatchRange
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.input_shape import WRAP, optional_inputs
from gpusq_deploy.frontend.checkpoint.load import Checkpoint
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.frontend.checkpoint.transformers_models import NAMED
from gpusq_deploy.frontend.export.attention_axes import FourAxes
from gpusq_deploy.frontend.export.functional import name_functional_layers
from gpusq_deploy.frontend.export.names import MODELS_OWN, Names, answers_in, input_name, output_names, rename_border
from gpusq_deploy.frontend.export.split_constants import split_constants
from gpusq_deploy.frontend.onnx_file.export import graph_of_file
from gpusq_deploy.graph import give_back, map_model, scratch_disk, scratch_folder

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
    names: Names = MODELS_OWN,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ir.Model:
    """Export to float32 ONNX: one input [N, channels, height, width], and an output for each tensor of the answer.

    What comes from an ONNX file isn't exported: it is converted, see `graph_of_file`.

    Args:
        checkpoint: The model.
        names: Of the input and the outputs; see `input_name` and `output_names`.
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
    if checkpoint.given is not None:
        return graph_of_file(checkpoint.given.model, batch=batch, opset=opset, names=names, place=str(checkpoint.arch))
    example = example_input(checkpoint, batch.optimum if batch.static else _TRACE_BATCH)
    shapes = None if batch.static else ({0: torch.export.Dim("batch")},)
    progress(0, _STEPS)
    called = input_name(checkpoint.module, names)
    with answering_flat(checkpoint) as keys:
        program = _exported(checkpoint, example, shapes, opset, called)
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
    if len(keys) != len(model.graph.outputs):  # the exporter ran the model in a way that isn't seen
        keys = [""] * len(model.graph.outputs)
    rename_border(model.graph, output_names(keys, names, taken=called))
    split_constants(model)
    name_functional_layers(model.graph, checkpoint.module)
    return model


def example_input(checkpoint: Checkpoint, batch: int) -> torch.Tensor:
    """Seeded standard normal input, float32 [batch, channels, height, width], or whatever shape the samples have."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *checkpoint.preprocessing.sample_shape, generator=generator)


def reference_outputs(checkpoint: Checkpoint, batch: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], ...]:
    """What torch, or the ONNX file, answers: one array per output, floats in float32 and integers as they are.

    Raises:
        GpusqError: An output isn't a tensor.
    """
    with torch.no_grad():
        answer: Any = checkpoint.module(torch.from_numpy(batch))
    tensors = [found.tensor for found in answers_in(answer, place=str(checkpoint.arch))]
    return tuple(array_from_tensor(tensor.float() if tensor.is_floating_point() else tensor) for tensor in tensors)


@contextmanager
def answering_flat(checkpoint: Checkpoint) -> Generator[list[str]]:
    """While it is active, the module answers a tensor or a tuple of tensors, whatever container its own are in.

    Yields:
        Keys of the tensors, once the module has run; see `Answer`.
    """
    module: Any = checkpoint.module
    answer = getattr(module, NAMED, module.forward)
    keys: list[str] = []

    @functools.wraps(module.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        found = answers_in(answer(*args, **kwargs), place=str(checkpoint.arch))
        keys[:] = [one.key for one in found]
        return found[0].tensor if len(found) == 1 else tuple(one.tensor for one in found)

    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield keys
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _exported(
    checkpoint: Checkpoint,
    example: torch.Tensor,
    shapes: tuple[dict[int, torch.export.Dim]] | None,
    opset: int,
    called: str,
) -> torch.onnx.ONNXProgram:
    try:
        with _unlogged(), warnings.catch_warnings(), torch.no_grad(), FourAxes():
            warnings.simplefilter("ignore")  # the exporter's remarks on its own internals
            program = torch.onnx.export(
                checkpoint.module,
                (example,),
                input_names=[called],
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
            hint=_export_hint(checkpoint.module, root),
        ) from error
    if program is None:
        raise GpusqError("torch's exporter returned no program", place=str(checkpoint.arch))
    return program


@contextmanager
def _unlogged() -> Generator[None]:
    """Without the tracer's traceback of what is raised, and told, anyway; without what its optimiser leaves undone."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _export_hint(module: torch.nn.Module, error: BaseException) -> str:
    """What to do; of a forward that speaks of its further inputs, or of None, how those are given."""
    others = optional_inputs(module)
    if others and re.search(rf"\b({'|'.join(map(re.escape, (*others, 'NoneType')))})\b", str(error)):
        return f"its forward also takes {', '.join(others)}: {WRAP}"
    return "try a fixed batch (--batch 8:8:8); a model with data-dependent control flow can't be exported"


def _root(error: BaseException) -> BaseException:
    """What was raised first: the exporter wraps what the model's own code raises."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
