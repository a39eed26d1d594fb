"""Open an ONNX model without reading its weights: large tensors stay in the file and are mapped.

A protobuf parser copies every byte of a message. So the file is walked in its wire format first, and a small model is
put together in which each large `raw_data` is replaced by its place in the file; only that is parsed.

    ModelProto.graph = 7 -> GraphProto.initializer = 5, or node = 1 -> attribute = 5 -> t = 5 -> TensorProto

Not followed: the bodies of If and Loop, and tensors that are not kept in `raw_data`; they are read as ever.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import protobuf_wire
from gpusq_deploy.text import counted

# What is smaller is cheaper to read than to map.
_SMALLEST = 4096
# Stands in place of a file name: "in the model file itself". No path can hold a NUL.
_HERE = "\0"
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_COPY_AGAIN = "copy or download the file again, and compare its size or digest with the original's"

_WITHOUT_SIZE = frozenset({ir.DataType.STRING, ir.DataType.UNDEFINED})

_Rewrite = Callable[[protobuf_wire.Field], bytes]


class MappedTensor(ir.Tensor[npt.NDArray[Any]]):
    """A tensor whose values lie in a mapped file. `release` gives back the memory that reading it took."""

    def __init__(self, values: npt.NDArray[Any], view: mmap.mmap, *, dtype: ir.DataType, name: str) -> None:
        super().__init__(values, dtype=dtype, name=name)
        self._view = view

    def release(self) -> None:
        """Drop the map's pages; they come back when somebody reads. It is shared and read-only: nothing is lost."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._view.madvise(mmap.MADV_DONTNEED)


def map_model(path: Path) -> ir.Model:
    """Open a model for looking at: its large tensors are mapped, and its Constant nodes are initializers.

    Don't save it over the file that it maps.

    Raises:
        GpusqError: No such file, not an ONNX model, cut short, or its external data is.
    """
    if not path.is_file():
        raise GpusqError("no such file", place=str(path), hint="give an ONNX model")
    try:
        with path.open("rb") as stream:
            proto = onnx.ModelProto.FromString(_without_weights(protobuf_wire.Reader(stream)))
        _check_nodes(proto)
        model: ir.Model = ir.from_proto(proto)
    except GpusqError as error:
        raise GpusqError(error.what, place=error.place or str(path), hint=error.hint) from error
    except Exception as error:  # protobuf and onnx_ir raise what they like on a damaged file
        raise GpusqError(f"not an ONNX model, or damaged: {error}", place=str(path), hint=_COPY_AGAIN) from error
    if not len(model.graph):
        raise GpusqError("the model has no nodes", place=str(path), hint="is it an ONNX file at all?")
    common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0)(model)
    files = _Files(path)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = files.tensor(value.const_value)
    return model


def release(value: ir.Value) -> None:
    """Give back the memory that reading a mapped initializer took."""
    if isinstance(value.const_value, MappedTensor):
        value.const_value.release()


def release_graph(graph: ir.Graph) -> None:
    """The same for all of a graph's."""
    for value in graph.initializers.values():
        release(value)


def _check_nodes(proto: onnx.ModelProto) -> None:
    """That each node has the inputs, outputs and attributes that its operator's schema asks for.

    Not looked at: nodes with bodies, whose names from outside the checker can't know alone, and moved-out tensors.

    Raises:
        GpusqError: One has not.
    """
    context = onnx.checker.C.CheckerContext()
    context.ir_version = proto.ir_version
    context.opset_imports = {opset.domain: opset.version for opset in proto.opset_import}
    _require_known(proto, context.opset_imports)
    for node in proto.graph.node:
        kinds = {attribute.type for attribute in node.attribute}
        if not kinds & {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS, onnx.AttributeProto.TENSOR}:
            try:
                onnx.checker.check_node(node, context)
            except onnx.checker.ValidationError as error:
                what = str(error).splitlines()[0]
                raise GpusqError(f"damaged: {node.op_type} {node.name}: {what}", hint=_COPY_AGAIN) from error


def _require_known(proto: onnx.ModelProto, opsets: Mapping[str, int]) -> None:
    """That operators of the standard domain are some of its opset: tf2onnx writes TensorFlow's Erfc down as if it were.

    Raises:
        GpusqError: One isn't.
    """
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    used = Counter(node.op_type for node in proto.graph.node if node.domain in ("", "ai.onnx"))
    functions = {function.name for function in proto.functions}
    odd = [name for name in used if name not in functions and not onnx.defs.has(name, max_inclusive_version=opset)]
    if opset and odd:
        first = {
            node.op_type: node.name or ", ".join(node.output)
            for node in reversed(proto.graph.node)
            if node.op_type in odd
        }
        names = ", ".join(f"{name} ({counted(used[name], 'node')}, such as {first[name]})" for name in sorted(odd))
        raise GpusqError(
            f"the graph has what is no operator of ONNX opset {opset}: {names}",
            hint="its exporter couldn't convert that: say the same in the model by other operators (GELU of Keras by "
            "tanh, approximate=True), or take another exporter",
        )


@contextmanager
def releasing() -> Generator[Callable[[ir.TensorProtocol, object], None]]:
    """To be told of tensors one after another, as onnx_ir's writers do: each is let go of when the next one comes."""
    held: list[MappedTensor] = []

    def hear(tensor: ir.TensorProtocol | None, _: object = None) -> None:
        while held:
            held.pop().release()
        if isinstance(tensor, MappedTensor):
            held.append(tensor)

    yield hear
    hear(None)


class _Files:
    """Maps of the model's file and of those that hold its external data, each opened once."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._maps: dict[Path, mmap.mmap] = {}

    def view(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            try:
                with path.open("rb") as stream:
                    self._maps[path] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # an empty file can't be mapped
                reason = "the file is empty" if isinstance(error, ValueError) else f"cannot read it: {error.strerror}"
                raise GpusqError(reason, place=str(path), hint=_COPY_AGAIN) from error
        return self._maps[path]

    def tensor(self, external: ir.ExternalTensor) -> ir.TensorProtocol:
        """The same tensor, mapped; types that numpy can't see in place (INT4) are read and unpacked."""
        location, shape = str(cast("object", external.location)), external.shape.numpy()
        place = f"{self._model}, tensor {external.name}"
        if external.dtype in _WITHOUT_SIZE:
            raise GpusqError(f"its type is {external.dtype.name}, which has no size", place=place, hint=_COPY_AGAIN)
        path = self._model if location == _HERE else _beside(self._model, location, place)
        packed = external.dtype.itemsize < 1
        size = math.ceil(math.prod(shape) * external.dtype.itemsize)
        start, view = external.offset or 0, self.view(path)
        length = size if external.length is None else external.length
        if min(shape, default=0) < 0 or length != size or start < 0 or start + size > len(view):
            raise GpusqError(
                f"its data is damaged: {list(shape)} of {external.dtype.name} are {size} bytes, not {length} "
                f"from byte {start} of {len(view)}",
                place=place,
                hint=_COPY_AGAIN,
            )
        if packed:
            values = np.frombuffer(view, dtype=np.uint8, count=size, offset=start).copy()
            return ir.PackedTensor(values, external.dtype, shape=external.shape, name=external.name)
        dtype = np.dtype(cast("npt.DTypeLike", external.dtype.numpy()))
        values = np.frombuffer(view, dtype=dtype, count=math.prod(shape), offset=start).reshape(shape)
        return MappedTensor(values, view, dtype=external.dtype, name=str(external.name))


def _beside(model: Path, location: str, place: str) -> Path:
    """The file of external data. One outside the model's folder is refused: a model is not to read other files."""
    path = (model.parent / location).resolve()
    if not path.is_relative_to(model.parent.resolve()):
        raise GpusqError(
            f"its external data lies outside the model's folder: {location}",
            place=place,
            hint="a model may not read other files: put the data beside it",
        )
    if not path.is_file():
        raise GpusqError(f"the file of its external data is missing: {location}", place=place, hint=_COPY_AGAIN)
    return path


def _without_weights(file: protobuf_wire.Reader) -> bytes:
    def attribute(field: protobuf_wire.Field) -> bytes:
        return protobuf_wire.rewritten(file, field, {5: tensor})

    def node(field: protobuf_wire.Field) -> bytes:
        return protobuf_wire.rewritten(file, field, {5: attribute})

    def tensor(field: protobuf_wire.Field) -> bytes:
        return _without_data(file, field)

    def graph(field: protobuf_wire.Field) -> bytes:
        return protobuf_wire.rewritten(file, field, {1: node, 5: tensor})

    whole = protobuf_wire.Field(number=0, kind=protobuf_wire.BYTES, start=0, value=0, end=file.size)
    return protobuf_wire.rewritten(file, whole, {7: graph}, smallest=_SMALLEST)


def _without_data(file: protobuf_wire.Reader, field: protobuf_wire.Field) -> bytes:
    """A TensorProto whose raw data is replaced by its place in the file."""
    parts: list[bytes] = []
    for inner in protobuf_wire.fields(file, field.value, field.end):
        if inner.number == _RAW_DATA and inner.end - inner.value >= _SMALLEST:
            parts += _place_of(inner)
        else:
            parts.append(file.read(inner.start, inner.end))
    return b"".join(parts)


def _place_of(data: protobuf_wire.Field) -> Iterator[bytes]:
    entries = {"location": _HERE, "offset": str(data.value), "length": str(data.end - data.value)}
    for key, text in entries.items():
        entry = protobuf_wire.text_field(1, key) + protobuf_wire.text_field(2, text)
        yield protobuf_wire.bytes_field(_EXTERNAL_DATA, entry)
    yield protobuf_wire.number_field(_DATA_LOCATION, 1)
