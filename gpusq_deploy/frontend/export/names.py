"""Names of a graph's input and outputs: the model's own, where it has any, or the user's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import onnx_ir as ir
import torch

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.input_shape import input_parameter
from gpusq_deploy.text import counted

INPUT_NAME = "input"
# Parameters that name nothing but an input.
_PLAIN = frozenset({"", "x", "input", "inputs", "args", "self"})
_UNFIT = re.compile(r"[^A-Za-z0-9_.]+")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """What the user calls the graph's input and outputs; None and empty: what the model calls them."""

    input: str | None = None
    outputs: tuple[str, ...] = ()


MODELS_OWN = Names()


class Answer(NamedTuple):
    """A tensor that a model answers, and its key: of `{"boxes": (a, b)}`, `boxes_0` and `boxes_1`.

    The key is empty where the model names nothing, as in a tuple of tensors.
    """

    key: str
    tensor: torch.Tensor


def answers_in(answer: Any, *, place: str) -> list[Answer]:
    """The tensors of a model's answer in its order: a tensor; or a tuple, list, mapping, named tuple or dataclass.

    What is None is left out, as transformers' answers do.

    Raises:
        GpusqError: Something in it is no tensor, or it holds none.
    """
    found = list(_walk(answer, "", place))
    if not found:
        raise GpusqError("the model returns no tensor", place=place, hint="wrap it in a factory that returns tensors")
    return found


def _walk(answer: Any, key: str, place: str) -> Iterator[Answer]:
    if isinstance(answer, torch.Tensor):
        yield Answer(key, answer)
    elif (named := _named(answer)) is not None:
        for name, value in named.items():
            yield from _walk(value, f"{key}_{name}" if key else str(name), place)
    elif isinstance(answer, (tuple, list)):
        for index, value in enumerate(cast("Sequence[Any]", answer)):
            yield from _walk(value, f"{key}_{index}" if key else "", place)
    elif answer is not None:
        raise GpusqError(
            f"the model returns something that isn't a tensor: {type(answer).__name__}{f' ({key})' if key else ''}",
            place=place,
            hint="wrap it in a factory whose forward returns tensors alone",
        )


def _named(answer: Any) -> Mapping[Any, Any] | None:
    """The entries of an answer that names them; None where it doesn't."""
    untyped: Any = answer
    if isinstance(answer, Mapping):
        return cast("Mapping[Any, Any]", untyped)
    if isinstance(answer, tuple) and hasattr(untyped, "_fields"):
        return cast("Mapping[Any, Any]", untyped._asdict())
    if dataclasses.is_dataclass(untyped) and not isinstance(untyped, type):
        return {field.name: getattr(untyped, field.name) for field in dataclasses.fields(untyped)}
    return None


def input_name(module: torch.nn.Module, names: Names) -> str:
    """The user's, or the forward's parameter's; `input` where that is only `x`.

    Raises:
        GpusqError: The user's is no name.
    """
    if names.input is not None:
        return required_name(names.input, "--input-name")
    parameter = input_parameter(module)
    return INPUT_NAME if parameter in _PLAIN else parameter


def output_names(keys: Sequence[str], names: Names, *, taken: str) -> list[str]:
    """The user's, or the model's own; `output`, or `output_0`, `output_1`, … of tensors that it doesn't name.

    Args:
        keys: See `Answer`.
        names: The user's.
        taken: The input's name, which no output may have.

    Raises:
        GpusqError: The user's are no names, or not one for each output.
    """
    found = _own_names(keys, taken)
    if names.outputs:
        chosen = [required_name(name, "--output-names") for name in names.outputs]
        if len(chosen) != len(keys) or len({*chosen, taken}) != len(keys) + 1:
            raise GpusqError(
                f"the model has {counted(len(keys), 'output')}, and {counted(len(chosen), 'name')} for them "
                "or the same name twice",
                place=f"--output-names {','.join(names.outputs)}",
                hint=f"name each once, and none {taken}, as the input is; their order: {', '.join(found)}",
            )
        return chosen
    return found


def _own_names(keys: Sequence[str], taken: str) -> list[str]:
    """The model's own, each once."""
    plain = ["output"] if len(keys) == 1 else [f"output_{index}" for index in range(len(keys))]
    found: list[str] = []
    for key, usual in zip(keys, plain, strict=True):
        base = _UNFIT.sub("_", key).strip("_") or usual
        name, again = base, 2
        while name in {*found, taken}:
            name, again = f"{base}_{again}", again + 1
        found.append(name)
    return found


def required_name(name: str, place: str) -> str:
    """The user's name.

    Raises:
        GpusqError: It is none.
    """
    if not name or _UNFIT.search(name):
        raise GpusqError(f"not a name: {name!r}", place=place, hint="use letters, digits, _ and .")
    return name


def rename_border(graph: ir.Graph, names: Sequence[str]) -> None:
    """Give the outputs their names; what is within the graph and has one of these, or an input's, gets another."""
    wanted = {*names, *(str(value.name) for value in graph.inputs)}
    inner = [value for node in graph for value in node.outputs if value.name in wanted and value not in graph.outputs]
    inner += [value for value in graph.initializers.values() if value.name in wanted]
    for value in inner:
        value.name = f"{value.name}_inner"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name
