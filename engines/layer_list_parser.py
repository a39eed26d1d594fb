"""Engine layers from what a builder tells: TensorRT-RTX's verbose build log, or the engine inspector's JSON.

One log line is one layer:

    Name: mm_myl0_2, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,64], …, Datatype: Int8, … }],
    Constants: [ … ], Outputs: [ … ], TacticName: …, StreamId: 0, Metadata: [ONNX Layer: mm]␟[ONNX Layer: wdq]

Names come from the model and may hold commas, spaces and brackets. A line that can't be read is an error that shows
it: a layer that is dropped would make the receipt lie.

The log's form was seen in TensorRT-RTX 1.7. The inspector's forms (TensorRT 10: `Format/Datatype`; 11: `Format` and
`Datatype`) come from NVIDIA's migration page and published dumps, and are unverified on a GPU here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gpusq_deploy.artifacts import EngineLayer, EngineTensor
from gpusq_deploy.errors import GpusqError

_REPORT = "this builder writes its layers in a way that is new to gpusq-deploy; please report the text above"

_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,\[\]{}]*)"
    r", Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], Outputs: \[(?P<outputs>.*?)\]"
    r", TacticName: (?P<tactic>.*?), StreamId: -?\d+(?:, (?!Metadata: ?)\w+: [^,]*)*(?:, Metadata: ?(?P<metadata>.*))?",
    re.DOTALL,
)
_TENSOR = re.compile(
    r" ?\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d,]*)\](?:, \w+: \[[-\d,]*\])*"
    r", Datatype: (?P<dtype>[^,{}\[\]]+)(?:, .*?)? \}(?:,|$)",
    re.DOTALL,
)
# TensorRT joins the metadata of fused layers with the ASCII unit separator, that of nested functions with the
# record separator.
_METADATA_BREAK = re.compile(r"[\x1e\x1f]+|(?<=\])(?=\[ONNX Layer: )")
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*)\]", re.DOTALL)

_GRAPH = re.compile(r"_myl(\d+)_\d+$")
_LATER_PROFILE = re.compile(r" \[profile [1-9]\d*\]")

# The words of the inspector's `Format/Datatype` sentences, and the builder's own names for them.
_DTYPE_WORDS = {
    "FP32": "Float",
    "FP16": "Half",
    "BF16": "BFloat16",
    "INT8": "Int8",
    "INT32": "Int32",
    "INT64": "Int64",
    "BOOL": "Bool",
    "FP8": "FP8",
    "INT4": "Int4",
    "FP4": "FP4",
}


def layers_from_log(messages: Iterable[str]) -> tuple[EngineLayer, ...]:
    """Layers of the one engine whose verbose build log this is, in the order of the log.

    Args:
        messages: The builder's log messages; one of them begins with `Layers:` and lists the layers.

    Raises:
        GpusqError: No list, more than one, or a line that can't be read.
    """
    lists = [message for message in messages if message.startswith("Layers:\n")]
    if len(lists) != 1:
        raise GpusqError(
            f"the build log holds {len(lists)} layer lists, not one",
            hint="build with profiling verbosity DETAILED and a verbose logger, for one compute capability",
        )
    body = lists[0].partition("\n")[2].partition("\n\n")[0].partition("\nI/O Tensors:")[0]
    return tuple(layer_from_line(line) for line in body.split("\n") if line)


def layer_from_line(line: str) -> EngineLayer:
    """One layer from its line in the build log.

    Raises:
        GpusqError: The line doesn't read as a layer.
    """
    found = _LAYER.fullmatch(line)
    if found is None:
        raise GpusqError("can't read this engine layer of the build log", place=line, hint=_REPORT)
    return EngineLayer(
        name=found["name"],
        kind=found["kind"],
        inputs=_tensors(found["inputs"], line),
        constants=_tensors(found["constants"], line),
        outputs=_tensors(found["outputs"], line),
        tactic=found["tactic"],
        onnx_nodes=_nodes(found["metadata"] or ""),
    )


def layers_from_inspector(text: str) -> tuple[EngineLayer, ...]:
    """Layers of an engine from `EngineInspector.get_engine_information(JSON)`, TensorRT 10 or 11.

    Raises:
        GpusqError: Not JSON, or a layer without the details that DETAILED profiling gives.
    """
    try:
        document = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise GpusqError(f"the engine inspector's answer is not JSON: {error}", place=text[:200]) from error
    layers = document.get("Layers")
    if not isinstance(layers, list):
        raise GpusqError("the engine inspector's answer has no layers", place=text[:200], hint=_REPORT)
    return tuple(_inspected_layer(layer) for layer in msgspec.convert(layers, type=list[Any]))


def first_profile(layers: Sequence[EngineLayer], profiles: int) -> tuple[EngineLayer, ...]:
    """The layers of the first optimisation profile: an engine with several holds the whole graph once for each.

    TensorRT writes ` [profile 1]` behind the names of the second profile. In TensorRT-RTX's log only some of its layers
    say so, but every name ends in `_mylG_L`: graph and layer. Graphs are numbered profile by profile.

    Args:
        layers: All layers of the engine.
        profiles: How many profiles it was built with.

    Raises:
        GpusqError: The graphs can't be dealt out to the profiles.
    """
    graphs = {found[1]: None for layer in layers if (found := _GRAPH.search(layer.name)) is not None}
    numbers = sorted(int(number) for number in graphs)
    if profiles == 1 or not numbers:
        return tuple(layer for layer in layers if _LATER_PROFILE.search(layer.name) is None)
    if len(numbers) % profiles:
        raise GpusqError(
            f"the engine's {len(numbers)} graphs can't be dealt out to {profiles} profiles",
            place=layers[0].name,
            hint=_REPORT,
        )
    first = numbers[: len(numbers) // profiles]
    return tuple(layer for layer in layers if (found := _GRAPH.search(layer.name)) is None or int(found[1]) in first)


class _Weights(msgspec.Struct, rename="pascal"):
    type: str
    count: int


class _Tensor(msgspec.Struct, rename="pascal"):
    name: str = ""
    dimensions: tuple[int, ...] = ()
    datatype: str | None = None
    format_datatype: str | None = msgspec.field(default=None, name="Format/Datatype")


class _Layer(msgspec.Struct, rename="pascal"):
    name: str
    layer_type: str
    inputs: tuple[_Tensor, ...] = ()
    outputs: tuple[_Tensor, ...] = ()
    constants: tuple[_Tensor, ...] = ()
    weights: _Weights | None = None
    out_maps: int | None = None
    tactic_name: str = ""
    metadata: str = ""


def _inspected_layer(raw: object) -> EngineLayer:
    try:
        layer = msgspec.convert(raw, type=_Layer)
    except msgspec.ValidationError as error:
        raise GpusqError(
            f"can't read this engine layer of the inspector: {error}",
            place=str(raw),
            hint="only engines built with profiling verbosity DETAILED can be read; else please report this",
        ) from error
    constants = tuple(_inspected_tensor(tensor) for tensor in layer.constants)
    if layer.weights is not None:
        constants += (_inspected_weights(layer.name, layer.weights, layer.out_maps or 1),)
    return EngineLayer(
        name=layer.name,
        kind=layer.layer_type,
        inputs=tuple(_inspected_tensor(tensor) for tensor in layer.inputs),
        constants=constants,
        outputs=tuple(_inspected_tensor(tensor) for tensor in layer.outputs),
        tactic=layer.tactic_name,
        onnx_nodes=_nodes(layer.metadata),
    )


def _inspected_tensor(tensor: _Tensor) -> EngineTensor:
    said = tensor.datatype or tensor.format_datatype or ""
    return EngineTensor(name=tensor.name, shape=tensor.dimensions, dtype=_dtype_from_words(said))


def _inspected_weights(layer: str, weights: _Weights, out_maps: int) -> EngineTensor:
    # The inspector gives a kernel's weight as a count; rows are output channels.
    shape = (out_maps, weights.count // out_maps)
    return EngineTensor(name=f"{layer} weights", shape=shape, dtype=_dtype_from_words(weights.type))


def _dtype_from_words(said: str) -> str:
    """The builder's name of a type: `Thirty-two wide … row major Int8 format` is Int8, `Half` stays Half."""
    words = (word.strip(".,()").upper() for word in said.split())
    return next((_DTYPE_WORDS[word] for word in words if word in _DTYPE_WORDS), said)


def _tensors(text: str, line: str) -> tuple[EngineTensor, ...]:
    tensors: list[EngineTensor] = []
    position = 0
    while position < len(text):
        found = _TENSOR.match(text, position)
        if found is None:
            raise GpusqError(f"can't read this tensor of an engine layer: {text[position:]}", place=line, hint=_REPORT)
        shape = tuple(int(size) for size in found["shape"].split(",") if size)
        tensors.append(EngineTensor(name=found["name"], shape=shape, dtype=found["dtype"]))
        position = found.end()
    return tuple(tensors)


def _nodes(metadata: str) -> tuple[str, ...]:
    """Names of the ONNX nodes that a layer was made from; text of another form is kept as it is."""
    parts = (part for part in _METADATA_BREAK.split(metadata) if part)
    found = ((_ONNX_LAYER.fullmatch(part), part) for part in parts)
    return tuple(match[1] if match else part for match, part in found)
