"""One streaming observer: the largest magnitude of each activation, in one pass over the data.

The maximum is taken inside the runtime: each observed tensor gives the graph one more output,
`ReduceMax(Abs(x)) + ReduceSum(x - x)`, so that a scalar per batch leaves it, and memory grows neither with the tensors'
sizes nor with the number of images. The sum is zero unless a value is NaN or infinite: ONNX Runtime's maximum passes
over NaN.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts.calibration import CalibrationTable, TensorRange
from gpusq_deploy.calibration.sources import Batches, DataSource, filled
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.layers import GraphLayer
from gpusq_deploy.graph.values import value_name

OBSERVER = "amax"
_BATCH = 8
_SUFFIX = "__amax"

Arrays = Mapping[str, npt.NDArray[Any]]


class Runner(Protocol):
    """What calibration needs of a session: see `gpusq_deploy.engines.session.Session`."""

    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


def collect_ranges(
    model: ir.Model,
    layers: Sequence[GraphLayer],
    source: DataSource,
    *,
    open_model: Callable[[Path], Runner],
    progress: Callable[[int, int], None] | None = None,
) -> CalibrationTable:
    """Observe the input of every given layer.

    Args:
        model: Float32 graph with one image input; left as it is.
        layers: Whose inputs are observed.
        source: Samples; each is seen once.
        open_model: Opens an ONNX file for running.
        progress: Called with the samples done and their number.

    Raises:
        GpusqError: No readable sample, or an activation that isn't finite.
    """
    tensors = tuple(dict.fromkeys(layer.input for layer in layers))
    first_reader = {layer.input: layer.layer for layer in reversed(layers)}
    largest = dict.fromkeys(tensors, 0.0)
    content = hashlib.sha256()
    size = _static_batch(model)
    batches = Batches(source=source, size=size or _BATCH)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observed.onnx"
        save_model(_observed(model, tensors), path)
        runner = open_model(path)
        try:
            for batch in batches:
                content.update(batch.tobytes())
                _update(largest, runner.run({value_name(model.graph.inputs[0]): filled(batch, size)}))
                if progress is not None:
                    progress(batches.count, len(source))
        finally:
            runner.close()
    origin = f"{OBSERVER} over {batches.count} samples"
    return CalibrationTable(
        source=source.name,
        digest=f"sha256:{content.hexdigest()}",
        images=batches.count,
        observer=OBSERVER,
        synthetic=source.synthetic,
        skipped=tuple(batches.skipped),
        ranges=tuple(
            TensorRange(tensor=name, layer=first_reader[name], amax=largest[name], origin=origin) for name in tensors
        ),
    )


def table_from_recorded(
    recorded: Mapping[str, float], layers: Sequence[GraphLayer], *, source: str, known: Sequence[GraphLayer] = ()
) -> CalibrationTable:
    """A table from ranges that the checkpoint carries, by layer name.

    Two layers that read one tensor share its range: the larger of theirs.

    Args:
        recorded: amax of each layer's input.
        layers: The layers that need a range.
        source: The checkpoint.
        known: Further layers of the model, whose ranges may be recorded without being needed.

    Raises:
        GpusqError: A range fits no layer, or a layer has none.
    """
    names = {layer.layer for layer in layers}
    strangers = sorted(set(recorded) - names - {layer.layer for layer in known})
    missing = sorted(names - set(recorded))
    if strangers or missing:
        problem = (
            f"fit no layer: {', '.join(strangers[:3])}" if strangers else f"are missing for {', '.join(missing[:3])}"
        )
        raise GpusqError(
            f"the checkpoint's recorded ranges {problem}",
            place=source,
            hint="make the checkpoint again, or save its weights alone and calibrate with --calib FOLDER",
        )
    largest: dict[str, TensorRange] = {}
    for layer in layers:
        found = largest.get(layer.input)
        if found is None or recorded[layer.layer] > found.amax:
            largest[layer.input] = TensorRange(
                tensor=layer.input, layer=layer.layer, amax=recorded[layer.layer], origin=f"recorded in {source}"
            )
    return CalibrationTable(
        source=source, digest="", images=0, observer="recorded", ranges=tuple(largest[name] for name in largest)
    )


def _static_batch(model: ir.Model) -> int | None:
    shape = model.graph.inputs[0].shape
    first = shape[0] if shape else None
    return first if isinstance(first, int) else None


def _observed(model: ir.Model, tensors: Sequence[str]) -> ir.Model:
    copy = model.clone()
    values = {value_name(value): value for value in _values(copy.graph)}
    for name in tensors:
        value = values[name]
        absolute = ir.node("Abs", [value], name=f"{name}__abs")
        largest = ir.node("ReduceMax", [absolute.outputs[0]], {"keepdims": 0}, name=f"{name}__max")
        nothing = ir.node("Sub", [value, value], name=f"{name}__nothing")
        finite = ir.node("ReduceSum", [nothing.outputs[0]], {"keepdims": 0}, name=f"{name}__finite")
        total = ir.node("Add", [largest.outputs[0], finite.outputs[0]], name=f"{name}{_SUFFIX}")
        nodes = [absolute, largest, nothing, finite, total]
        for node in nodes[:-1]:
            node.outputs[0].name = f"{node.name}_out"
        output = total.outputs[0]
        output.name, output.type, output.shape = f"{name}{_SUFFIX}", ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        copy.graph.extend(nodes)
        copy.graph.outputs.append(output)
    return copy


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _update(largest: dict[str, float], outputs: Arrays) -> None:
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise GpusqError(
                "the float model computes NaN or infinity on the calibration data",
                place=f"tensor {name.removesuffix(_SUFFIX)}",
                hint="check the weights and the preprocessing",
            )
        tensor = name.removesuffix(_SUFFIX)
        if tensor != name:
            largest[tensor] = max(largest[tensor], float(values))
