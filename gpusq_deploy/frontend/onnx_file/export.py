"""The stage `export` of an ONNX file: its graph for the batch sizes, the opset and the names that were asked for."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.artifacts import BatchRange
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.export.names import Names, output_names, rename_border, required_name
from gpusq_deploy.frontend.onnx_file.fusions import fuse_written_out
from gpusq_deploy.frontend.onnx_file.read import convert_opset
from gpusq_deploy.graph import forget_shapes, settle_shapes, static_batch, value_name


def graph_of_file(given: ir.Model, *, batch: BatchRange, opset: int, names: Names, place: str) -> ir.Model:
    """The graph of a file that `load_onnx` read, with the shapes of all tensors.

    Args:
        given: Left as it is.
        batch: What it is to take; see `batch_of_file`.
        opset: The lowest that it may have; a later one of the file stays.
        names: Of the input and the outputs; what isn't named keeps the file's name.
        place: The file, for errors.

    Raises:
        GpusqError: The opset can't be reached, a name is none, or ONNX Runtime can't run the graph.
    """
    model = given.clone()
    convert_opset(model, max(opset, model.opset_imports.get("", 0)), place=place)
    (value,) = model.graph.inputs
    assert value.shape is not None, "load_onnx has set it"
    if batch.static:
        value.shape = ir.Shape([batch.optimum, *value.shape[1:]])
    forget_shapes(model)
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)  # for the types
    settle_shapes(model)
    fuse_written_out(model)
    if names.input is not None:
        value.name = required_name(names.input, "--input-name")
    own = [value_name(output) for output in model.graph.outputs]
    rename_border(model.graph, output_names(own, names, taken=value_name(value)) if names.outputs else own)
    return model


def batch_of_file(given: ir.Model, asked: BatchRange, *, usual: bool, place: str) -> BatchRange:
    """The batch sizes to build for: those that were asked for, or the one that the file is fixed to.

    Args:
        given: A file that `load_onnx` read.
        asked: What was asked for.
        usual: Whether that is the default, and nobody's wish.
        place: The file, for errors.

    Raises:
        GpusqError: The file takes one size, and another was asked for.
    """
    fixed = static_batch(given.graph)
    if fixed is None or (asked.static and asked.optimum == fixed):
        return asked
    if not usual:
        raise GpusqError(
            f"the file takes batch {fixed} alone, which is baked into it, and {asked} was asked for",
            place=place,
            hint=f"--batch {fixed}, or export the model with a dynamic batch axis",
        )
    return BatchRange(minimum=fixed, optimum=fixed, maximum=fixed)
