"""Exported programs (`.pt2`) that torch.export saved, quantised by PT2E or not.

`torch.export.load` unpickles what a file says it should, so it isn't used: weights are raw bytes in the archive and the
program is JSON, and those alone are read. Sample inputs, which are pickled, are never opened.

1. A layer is a linear or a convolution, or what `run_decompositions()` makes of a linear: addmm, mm or bmm by a
   parameter. What only moves values (view, permute, expand) between it and a dequantisation counts for nothing.
2. A layer's input that comes out of a dequantisation has a range: of a symmetric quantiser qmax · scale; of another
   (uint8 with a zero point) the larger end of what it can hold, since TensorRT has symmetric ones only, unless
   `with_offsets` moves the zero point out.
3. A weight that comes out of one, from stored codes or quantised on the fly, is the dequantised weight: what the
   program computes with. Its scales are its grid, where they are symmetric and per output channel or tensor.
4. A layer is named by its bias, else by the module that torch.export recorded.
5. Where a layer is quantised, one whose input isn't stays float.
6. Stored codes that aren't a layer's weight (XNNPACK has a position table's) have no name: dequantised, they are what
   the architecture lacks of their shape.
7. Other quantised values (of additions, say) are told and not used. Quantisers of unknown kinds are refused.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.adapters.archive import require_stored
from gpusq_deploy.frontend.checkpoint.adapters.quantizer_record import (
    InputQuantizer,
    QuantizerRecord,
    WeightGrid,
    weight_grid,
)
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.text import some

LAYOUT = "torch exported program"
_PRODUCER = "torch PT2E"
ORIGIN = "torch PT2E, the input's quantize_per_tensor"
_HINT = "save it again with torch.export.save, by torch 2.8 or newer"
# torch._export.serde.schema.ScalarType
_TYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_LAYERS = re.compile(r"torch\.ops\.aten\.(linear|conv2d|convolution|addmm|mm|bmm)\b.*")
# Products by their arguments' names: of the input, and of the weight.
_OPERANDS = {"addmm": ("mat1", "mat2"), "mm": ("self", "mat2"), "bmm": ("self", "mat2")}
_MOVES = re.compile(
    r"torch\.ops\.aten\.(_unsafe_view|view|reshape|permute|t|transpose|expand|clone|contiguous|unsqueeze|squeeze|alias"
    r"|detach|flatten|lift_fresh_copy)\b.*"
)
_QUANTIZER = re.compile(r"torch\.ops\.quantized_decomposed\.(de)?quantize_per_(tensor|channel)\.\w+")
_INT8_HIGH = 127
_NONE: Mapping[str, Any] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Program:
    """`nodes` by the name of their output, `names` of parameters and buffers by placeholder, `state` by name."""

    nodes: Mapping[str, Mapping[str, Any]]
    names: Mapping[str, str]
    state: Mapping[str, torch.Tensor]


@dataclass(kw_only=True, slots=True)
class _Found:
    """What the layers of a program tell."""

    ranges: dict[str, float] = field(default_factory=dict[str, float])
    weights: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    asymmetric: list[str] = field(default_factory=list[str])
    used: set[str] = field(default_factory=set[str])
    grids: dict[str, WeightGrid] = field(default_factory=dict[str, WeightGrid])
    inputs: dict[str, InputQuantizer] = field(default_factory=dict[str, InputQuantizer])
    floats: dict[str, str] = field(default_factory=dict[str, str])


def is_exported_program(path: Path) -> bool:
    """Whether the file is an archive of torch.export."""
    try:
        if not path.is_file():  # opening a pipe would wait for its writer
            return False
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/models/model.json") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def read_exported_program(path: Path) -> Reading:
    """Weights and ranges of an exported program; nothing in the file is run or unpickled.

    Raises:
        GpusqError: Damaged, from another version of torch, or quantised in a way that isn't understood.
    """
    try:
        require_stored(path)
        with zipfile.ZipFile(path) as archive:
            return _reading(_program(archive), place=str(path))
    except GpusqError:
        raise
    except Exception as error:  # a damaged file can hold anything where a name or a number should be
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GpusqError(
            f"not an exported program that can be read, or damaged: {type(error).__name__}: {reason}",
            place=str(path),
            hint=_HINT,
        ) from error


def _program(archive: zipfile.ZipFile) -> _Program:
    root = next(name for name in archive.namelist() if name.endswith("/models/model.json")).split("/")[0]
    module = json.loads(archive.read(f"{root}/models/model.json"))["graph_module"]
    config = json.loads(archive.read(f"{root}/data/weights/model_weights_config.json"))["config"]
    state = {name: _tensor(archive, f"{root}/data/weights/", name, entry) for name, entry in config.items()}
    nodes = {
        output["as_tensor"]["name"]: node
        for node in module["graph"]["nodes"]
        for output in node["outputs"]
        if "as_tensor" in output
    }
    return _Program(nodes=nodes, names=dict(_names(module["signature"]["input_specs"])), state=state)


def _names(specs: list[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for spec in specs:
        for kind in ("parameter", "buffer"):
            if kind in spec:
                yield spec[kind]["arg"]["name"], spec[kind][f"{kind}_name"]


def _tensor(archive: zipfile.ZipFile, folder: str, name: str, entry: Mapping[str, Any]) -> torch.Tensor:
    if entry["use_pickle"]:
        raise GpusqError(
            "refused: the weight is pickled, and loading it would run code",
            place=f"{archive.filename}, weight {name}",
            hint=_HINT,
        )
    meta = entry["tensor_meta"]
    dtype = _TYPES[meta["dtype"]]
    sizes = [size["as_int"] for size in meta["sizes"]]
    strides = [stride["as_int"] for stride in meta["strides"]]
    offset = meta["storage_offset"]["as_int"]
    data = bytearray(archive.read(folder + entry["path_name"]))
    width = torch.empty(0, dtype=dtype).element_size()
    if math.prod(sizes) * width > len(data):  # an expanded tensor: a few bytes that would become many
        raise GpusqError("the weight is larger than its data", place=f"{archive.filename}, weight {name}", hint=_HINT)
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.as_strided(sizes, strides, offset).contiguous()


def _reading(program: _Program, *, place: str) -> Reading:
    _require_known(program, place)
    found = _Found()
    for node in program.nodes.values():
        if _LAYERS.fullmatch(node["target"]):
            _look_at_layer(program, node, found, place)
    unnamed = tuple(_unnamed(program, found.used))
    constants = {name for placeholder, name in program.names.items() if _feeds_quantizer(program, placeholder)}
    kept = {name: tensor for name, tensor in program.state.items() if name not in constants}
    return Reading(
        state={**kept, **found.weights},
        layout=LAYOUT,
        ranges=found.ranges,
        origins=dict.fromkeys(found.ranges, ORIGIN),
        remarks=tuple(_remarks(program, found)),
        unnamed=unnamed,
        quantizers=QuantizerRecord(
            producer=_PRODUCER if found.ranges or found.weights else "",
            floats=found.floats,
            grids=found.grids,
            inputs=found.inputs,
        ),
    )


def _unnamed(program: _Program, used: set[str]) -> Iterator[torch.Tensor]:
    """Dequantised constants that are no layer's weight."""
    for name, node in program.nodes.items():
        given = _tensor_name(_arguments(node).get("input")) if _is_dequantize(node) else ""
        if given in program.names and name not in used:
            yield _value(program, name, used)


def _require_known(program: _Program, place: str) -> None:
    for name, node in program.nodes.items():
        if "quant" in node["target"] and not _QUANTIZER.fullmatch(node["target"]):
            raise GpusqError(
                f"a quantiser of an unknown kind: {node['target']}",
                place=f"{place}, node {name}",
                hint="quantise with PT2E's quantize_per_tensor and quantize_per_channel, or save the weights alone",
            )


def _look_at_layer(program: _Program, node: Mapping[str, Any], found: _Found, place: str) -> None:
    arguments = _arguments(node)
    given, multiplied = _operands(node)
    weight = _moved_from(program, _tensor_name(arguments[multiplied]))
    if _is_product(node) and weight not in program.names and not _is_dequantize(program.nodes.get(weight, _NONE)):
        return  # of two activations, as in an attention
    layer = _layer_name(program, node, {**arguments, "weight": {"as_tensor": {"name": weight}}})
    source = program.nodes.get(_moved_from(program, _tensor_name(arguments[given])), _NONE)
    if _is_dequantize(source):
        found.used.add(_output(source))
        found.used.add(_tensor_name(_arguments(source)["input"]))
        amax, symmetric = _range(program, source, place=f"{place}, layer {layer}")
        found.ranges[layer] = max(amax, found.ranges.get(layer, 0.0))
        if not symmetric:
            found.asymmetric.append(layer)
            found.inputs[layer] = _input_quantizer(program, source)
    quantizer = program.nodes.get(weight, _NONE)
    if _is_dequantize(quantizer):
        value = _value(program, weight, found.used)
        found.weights[f"{layer}.weight"] = value
        grid = _grid(program, quantizer)
        if grid is not None and grid.numel() in (1, len(value)):
            narrow = _number(program, _arguments(quantizer), "quant_min") == -_INT8_HIGH
            found.grids[layer] = weight_grid(grid, value)._replace(narrow=narrow)
        if not _is_dequantize(source):
            found.floats[layer] = "its weights alone are quantised; its input isn't"


def _operands(node: Mapping[str, Any]) -> tuple[str, str]:
    """The names of the arguments that are the layer's input and its weight."""
    return next((pair for name, pair in _OPERANDS.items() if f".{name}." in node["target"]), ("input", "weight"))


def _is_product(node: Mapping[str, Any]) -> bool:
    return _operands(node) != ("input", "weight")


def _moved_from(program: _Program, name: str) -> str:
    """Where a value comes from, before what only moved it."""
    while (node := program.nodes.get(name)) is not None and _MOVES.fullmatch(node["target"]):
        name = _tensor_name(node["inputs"][0]["arg"])
    return name


def _grid(program: _Program, node: Mapping[str, Any]) -> torch.Tensor | None:
    """Largest magnitudes that a dequantised weight's grid holds, [N] or [1]; None where it isn't symmetric."""
    arguments = _arguments(node)
    if "per_channel" in node["target"]:
        scale = _value(program, _tensor_name(arguments["scales"]), set()).float()
        zero = _value(program, _tensor_name(arguments["zero_points"]), set())
        symmetric = arguments["axis"]["as_int"] == 0 and not bool((zero != 0).any())
    else:
        scale = torch.tensor([_number(program, arguments, "scale")])
        symmetric = _number(program, arguments, "zero_point") == 0
    high = _number(program, arguments, "quant_max")
    return scale * high if symmetric and high == _INT8_HIGH else None


def _layer_name(program: _Program, node: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    for role in ("bias", "weight"):
        name = program.names.get(_tensor_name(arguments.get(role)), "")
        if name.endswith(f".{role}"):
            return name.removesuffix(f".{role}")
    name = str(node["metadata"]["nn_module_stack"]).split(";")[-1].split(",")[1]
    if not name:
        raise GpusqError(
            "a quantised layer has neither a bias nor a module's name",
            place=f"node {_output(node)}",
            hint="export with torch.export.export, which records modules",
        )
    return name


def _range(program: _Program, node: Mapping[str, Any], *, place: str) -> tuple[float, bool]:
    """amax, and whether the quantiser is symmetric: zero point in the middle of its codes."""
    arguments = _arguments(node)
    scale, zero = _number(program, arguments, "scale"), _number(program, arguments, "zero_point")
    low, high = _number(program, arguments, "quant_min"), _number(program, arguments, "quant_max")
    if not (math.isfinite(scale) and scale > 0 and low < high):
        raise GpusqError(f"the input's quantiser has scale {scale}", place=place, hint="calibrate it on real data")
    symmetric = zero in ((low + high + 1) // 2, (low + high) / 2)
    return (high - zero) * scale if symmetric else max(abs(low - zero), abs(high - zero)) * scale, symmetric


def _input_quantizer(program: _Program, node: Mapping[str, Any]) -> InputQuantizer:
    arguments = _arguments(node)
    scale, zero = _number(program, arguments, "scale"), _number(program, arguments, "zero_point")
    low, high = _number(program, arguments, "quant_min"), _number(program, arguments, "quant_max")
    return InputQuantizer(scale, low - zero, high - zero)


def _value(program: _Program, name: str, used: set[str]) -> torch.Tensor:
    """A weight through its quantisers, as torch defines them: clamp(round(w / s) + z) and (q - z) · s."""
    if name in program.names:
        return program.state[program.names[name]]
    node = program.nodes[name]
    used.add(name)
    arguments = _arguments(node)
    codes = _value(program, _tensor_name(arguments["input"]), used)
    per_channel = "per_channel" in node["target"]
    if per_channel:
        shape = [1] * codes.ndim
        shape[arguments["axis"]["as_int"]] = -1
        scale = _value(program, _tensor_name(arguments["scales"]), used).float().reshape(shape)
        zero = _value(program, _tensor_name(arguments["zero_points"]), used).float().reshape(shape)
    else:
        scale = torch.tensor(_number(program, arguments, "scale"))
        zero = torch.tensor(_number(program, arguments, "zero_point"))
    if ".dequantize" in node["target"]:
        return (codes.float() - zero) * scale
    low, high = _number(program, arguments, "quant_min"), _number(program, arguments, "quant_max")
    return torch.clamp(torch.round(codes.float() / scale) + zero, low, high)


def _feeds_quantizer(program: _Program, placeholder: str) -> bool:
    """True of codes, scales and zero points: buffers that only quantisers read."""
    readers = [
        node
        for node in program.nodes.values()
        if any(_tensor_name(given) == placeholder for given in _arguments(node).values())
    ]
    stored = program.state.get(program.names[placeholder])
    is_weight = placeholder.startswith("p_") and stored is not None and stored.is_floating_point()
    return bool(readers) and not is_weight and all(_QUANTIZER.fullmatch(node["target"]) for node in readers)


def _remarks(program: _Program, found: _Found) -> Iterator[str]:
    if found.weights:
        yield f"{len(found.weights)} INT8 weights of the program are used, dequantised"
    if found.asymmetric:
        yield f"inputs are quantised with a zero point, and TensorRT's grids are symmetric: {some(found.asymmetric)}"
    others = [name for name, node in program.nodes.items() if _QUANTIZER.fullmatch(node["target"])]
    unused = [name for name in others if name not in found.used]
    if unused:
        yield f"not used, since they are no input or weight of a layer: {some(unused)}"


def _arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    return {given["name"]: given["arg"] for given in node["inputs"]}


def _tensor_name(argument: Any) -> str:
    held: Any = cast("dict[str, Any]", argument).get("as_tensor") if isinstance(argument, dict) else None
    return str(held["name"]) if held else ""


def _output(node: Mapping[str, Any]) -> str:
    return _tensor_name(node["outputs"][0])


def _number(program: _Program, arguments: Mapping[str, Any], name: str) -> float:
    given = arguments[name]
    for kind in ("as_float", "as_int"):
        if kind in given:
            return float(given[kind])
    return float(_value(program, _tensor_name(given), set()))


def _is_dequantize(node: Mapping[str, Any]) -> bool:
    return "quantized_decomposed.dequantize" in str(node.get("target", ""))
