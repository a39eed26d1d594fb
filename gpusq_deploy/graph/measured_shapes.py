"""Shapes of a graph that somebody else wrote, found by running it: recorded ones may be absent, or of another batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import scratch_model
from gpusq_deploy.graph.values import add_initializer, array_of, is_constant, node_name, static_batch, value_name
from gpusq_deploy.text import one_line

Array = npt.NDArray[Any]

BATCH = "batch"
# Dimensions at two batch sizes tell which of them follow it.
_SIZES = (2, 3)
_ONLY_FATAL = 4
_SHAPE = "/shape-of"
_SHAPE_OPERATORS = frozenset({"Shape", "Size"})
_BODIES = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})
_RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"})
# How far a sample's answer may depend on what else is in its batch, relative: sums in another order.
_TOLERANCE = 1e-3


def settle_shapes(model: ir.Model) -> int:
    """Give every tensor its shape, and fold what depends on shapes alone; in place.

    1. The graph is run at two batch sizes, or at the one that it is fixed to, on seeded noise. Dimensions that agree
       are constants; one that is k times the batch is `batch` or `k*batch`; any other is left open.
    2. What is computed from shapes alone, and agrees, becomes a constant: a scale that is 1 / sqrt(size), say. The
       target of a Reshape becomes the sizes of what it gives, with -1 for the one that follows the batch.

    Args:
        model: Its one input has constant dimensions, but for the first, which may be symbolic.

    Returns:
        Values that became constants.

    Raises:
        GpusqError: ONNX Runtime can't run the graph.
    """
    fixed = static_batch(model.graph)
    sizes = _SIZES if fixed is None else (fixed,)
    seen = [_run(model, size) for size in sizes]
    folded = 0
    for node in list(model.graph):
        for output in node.outputs:
            if output.name:
                _set_shape(output, [run[f"{output.name}{_SHAPE}"] for run in seen], sizes)
    for value in list(_of_shapes(model.graph)):
        folded += _fold(model.graph, value, [run[value_name(value)] for run in seen])
    folded += sum(_fold_target(model.graph, node) for node in model.graph)
    if folded:
        common.RemoveUnusedNodesPass()(model)
    return folded


def settle_branches(model: ir.Model) -> int:
    """Put the branch in place of each If that shapes alone decide, as torch's exporter writes a squeeze; in place.

    The conditions are computed at three batch sizes, 1 among them, or at the one that the graph is fixed to. One that
    differs, or that data decide, leaves its If.

    Args:
        model: Its one input has constant dimensions, but for the first. Left as it is where nothing branches.

    Returns:
        Branches that were put in place.

    Raises:
        GpusqError: ONNX Runtime can't run the graph.
    """
    if not any(node.op_type == "If" for node in model.graph):
        return 0
    settled = 0
    forget_shapes(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    while decided := _decided(model):
        for node, taken in decided.items():
            _put_in_place(model.graph, node, "then_branch" if taken else "else_branch")
        common.NameFixPass()(model)  # what two branches called alike
        settled += len(decided)
    return settled


def frees_batch(model: ir.Model) -> ir.Model | None:
    """The graph with a free batch, where it was fixed to one size; None where that size is baked in.

    A batch of two times that size must be answered as its halves are by themselves.
    """
    fixed = static_batch(model.graph)
    if fixed is None:
        return model
    free = model.clone()
    shape = free.graph.inputs[0].shape
    assert shape is not None, "a fixed batch has a shape"
    free.graph.inputs[0].shape = ir.Shape([BATCH, *shape[1:]])
    forget_shapes(free)
    noise = _noise(free, 2 * fixed)
    try:
        whole = _answers(free, noise)
        halves = [_answers(free, half) for half in (noise[:fixed], noise[fixed:])]
    except GpusqError:
        return None
    same = all(_same(answer, [half[name] for half in halves]) for name, answer in whole.items())
    return free if same else None


def forget_shapes(model: ir.Model) -> None:
    """Drop what is recorded of shapes behind the inputs."""
    for node in model.graph:
        for output in node.outputs:
            output.shape = None


def _same(whole: Array, halves: list[Array]) -> bool:
    if any(half.ndim == 0 for half in halves):
        return False
    apart = np.concatenate(halves)
    if whole.shape != apart.shape:
        return False
    scale = float(np.max(np.abs(apart.astype(np.float64)), initial=0.0)) or 1.0
    return bool(np.max(np.abs(whole.astype(np.float64) - apart), initial=0.0) <= _TOLERANCE * scale)


def _set_shape(value: ir.Value, found: list[Array], sizes: tuple[int, ...]) -> None:
    if len({shape.size for shape in found}) == 1:
        value.shape = ir.Shape(
            [_dimension([int(shape[axis]) for shape in found], sizes) for axis in range(found[0].size)]
        )


def _dimension(found: list[int], sizes: tuple[int, ...]) -> int | str | None:
    if len(set(found)) == 1:
        return found[0]
    factors = {size / batch for size, batch in zip(found, sizes, strict=True)}
    factor = factors.pop()
    if factors or not factor.is_integer():
        return None
    return BATCH if factor == 1 else f"{int(factor)}*{BATCH}"


def _decided(model: ir.Model) -> dict[ir.Node, bool]:
    """Ifs of the graph itself, and whether their condition holds at any batch size."""
    conditions = {node: node.inputs[0] for node in model.graph if node.op_type == "If"}
    decided = {
        node: bool(array_of(value)) for node, value in conditions.items() if value is not None and is_constant(value)
    }
    known = set(_of_shapes(model.graph))
    asked = {node: value_name(value) for node, value in conditions.items() if value is not None and value in known}
    if not asked:
        return decided
    fixed = static_batch(model.graph)
    names = list(dict.fromkeys(asked.values()))
    seen = [_conditions_at(model, names, size) for size in ((1, *_SIZES) if fixed is None else (fixed,))]
    for node, name in asked.items():
        held = {bool(run[name]) for run in seen}
        if len(held) == 1:
            decided[node] = held.pop()
    return decided


def _conditions_at(model: ir.Model, names: Collection[str], batch: int) -> dict[str, Array]:
    """What conditions are at a batch size."""
    answers = list(model.graph.outputs)
    values = {output.name: output for node in model.graph for output in node.outputs}
    for name in names:
        values[name].type = ir.TensorType(ir.DataType.BOOL)
    model.graph.outputs[:] = [values[name] for name in names]  # a clone would lose what bodies take from outside
    try:
        return _answers(model, _noise(model, batch))
    finally:
        model.graph.outputs[:] = answers


def _put_in_place(graph: ir.Graph, node: ir.Node, name: str) -> None:
    body = node.attributes[name].as_graph()
    answers = list(body.outputs)
    body.outputs.clear()
    for value in list(body.initializers.values()):
        constant = add_initializer(graph, value_name(value), array_of(value))
        answers = [constant if answer is value else answer for answer in answers]
        value.replace_all_uses_with(constant)
    inside = list(body)
    body.remove(inside)
    graph.insert_before(node, inside)
    for output, answer in zip(node.outputs, answers, strict=True):
        if output.is_graph_output():  # the name is the graph's, and the answer may be one of an outer node
            same = ir.node("Identity", [answer], name=f"{node_name(node)}_{value_name(output)}")
            graph.insert_before(node, same)
            same.outputs[0].name, same.outputs[0].type = output.name, output.type
            answer = same.outputs[0]
        output.replace_all_uses_with(answer, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _of_shapes(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values that are computed from shapes, with constants, and neither from data nor in a node's body."""
    known: set[ir.Value] = set()
    constant: set[ir.Value] = set()
    for node in graph:
        source = _computed_from(node, known, constant)
        if source == "constants":
            constant.update(node.outputs)
        elif source == "shapes":
            known.update(node.outputs)
            yield from (value for value in node.outputs if value.name and not value.is_graph_output())


def _computed_from(
    node: ir.Node, known: set[ir.Value], constant: set[ir.Value]
) -> Literal["shapes", "constants", "data"]:
    """What a node's outputs follow from, given the values `known` from shapes and those from constants alone."""
    if any(attribute.type in _BODIES for attribute in node.attributes.values()):
        return "data"
    if node.op_type in _SHAPE_OPERATORS:
        return "shapes"
    given = [value for value in node.inputs if value is not None]
    settled = all(is_constant(value) or value in known or value in constant for value in given)
    if not given or not settled or node.op_type in _RANDOM:
        return "data"
    return "constants" if known.isdisjoint(given) else "shapes"


def _fold(graph: ir.Graph, value: ir.Value, found: list[Array]) -> int:
    """1 where readers got a constant for a value that is the same at all batch sizes."""
    uses = tuple(value.uses())
    if not uses or not all(np.array_equal(found[0], other) for other in found[1:]):
        return 0
    constant = add_initializer(graph, f"{value_name(value)}_settled", np.asarray(found[0], order="C"))
    for reader, index in uses:
        reader.replace_input_with(index, constant)
    return 1


def _fold_target(graph: ir.Graph, node: ir.Node) -> int:
    """1 where a Reshape got a constant target: the sizes of what it gives, of which one at most follows the batch."""
    shape = node.outputs[0].shape
    if node.op_type != "Reshape" or is_constant(node.inputs[1]) or shape is None:
        return 0
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    if sizes.count(-1) > 1 or 0 in sizes:
        return 0
    target = add_initializer(graph, f"{value_name(node.outputs[0])}_sizes", np.array(sizes, dtype=np.int64))
    node.replace_input_with(1, target)
    return 1


def _run(model: ir.Model, batch: int) -> dict[str, Array]:
    """Shapes of all tensors, by name and `_SHAPE`; and the values that are computed from shapes, by name."""
    seen = model.clone()
    graph = seen.graph
    forget_shapes(seen)
    graph.outputs.clear()
    graph.outputs.extend(_of_shapes(graph))
    for node in list(graph):
        for output in node.outputs:
            if output.name:
                asked = ir.node("Shape", [output], name=f"{output.name}{_SHAPE}")
                asked.outputs[0].name = f"{output.name}{_SHAPE}"
                asked.outputs[0].type = ir.TensorType(ir.DataType.INT64)
                graph.append(asked)
                graph.outputs.append(asked.outputs[0])
    return _answers(seen, _noise(seen, batch))


def _noise(model: ir.Model, batch: int) -> Array:
    shape = model.graph.inputs[0].shape
    assert shape is not None, "the caller has seen to it"
    sample = ir.Shape(shape[1:]).numpy()
    return np.random.default_rng(0).standard_normal((batch, *sample), dtype=np.float32)


def _answers(model: ir.Model, feed: Array) -> dict[str, Array]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _ONLY_FATAL
    options.enable_cpu_mem_arena = False
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = [value_name(value) for value in model.graph.outputs]
    try:
        with scratch_model(model) as path:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            answers: list[Any] = session.run(names, {value_name(model.graph.inputs[0]): feed})
    except GpusqError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base below it
        raise GpusqError(
            f"ONNX Runtime can't run the graph at batch {len(feed)}: {one_line(error)}",
            hint="check the file with gpusq-validate, and that ONNX Runtime runs it",
        ) from error
    return dict(zip(names, answers, strict=True))
