"""From `SPEC` to a module: timm, torchvision, transformers, or a factory in the user's own package."""

from __future__ import annotations

import ast
import difflib
import inspect
import shlex
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import cast

import msgspec
import torch

from gpusq_deploy.artifacts import ArchArgument, ArchSpec
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.architecture_hints import likely_names
from gpusq_deploy.frontend.checkpoint.optional_libraries import current_folder, library, told
from gpusq_deploy.frontend.checkpoint.pretrained_folder import config_argument
from gpusq_deploy.frontend.checkpoint.transformers_models import module_from_transformers, refusals
from gpusq_deploy.text import one_line, with_article

_GRAMMAR = "--arch takes timm:NAME, torchvision:NAME, transformers:CLASS or package.module:factory"


def arch_from_text(text: str, arguments: Iterable[str] = ()) -> ArchSpec:
    """Parse `SPEC` and its `K=V` arguments. Values are Python literals; what isn't one is a string.

    Raises:
        GpusqError: The text follows no form of the grammar.
    """
    source, colon, name = text.partition(":")
    if not colon or not source or not name:
        raise GpusqError(f"not an architecture: {text!r}", place="--arch", hint=likely_names(text) or _GRAMMAR)
    given = dict(_argument(item) for item in arguments)
    if source == "timm":
        return ArchSpec(source="timm", name=name, arguments=given)
    if source == "torchvision":
        return ArchSpec(source="torchvision", name=name, arguments=given)
    if source == "transformers":
        if "config" in given:
            given["config"] = config_argument(str(given["config"]))
        return ArchSpec(source="transformers", name=name, arguments=given)
    return ArchSpec(source="factory", name=text, arguments=given)


def text_from_arch(spec: ArchSpec) -> str:
    """The options that name it, as `arch_from_text` reads them, quoted for a shell."""
    name = spec.name if spec.source == "factory" else f"{spec.source}:{spec.name}"
    words = ["--arch", name]
    for key, value in spec.arguments.items():
        words += ["--arch-arg", f"{key}={value!r}"]
    return shlex.join(words)


def module_from_arch(spec: ArchSpec) -> torch.nn.Module:
    """Build the module with its initial weights, in eval mode, on the CPU, in float32.

    Raises:
        GpusqError: Unknown name (near ones are suggested), a library that isn't installed, or arguments refused.
    """
    build = _BUILDERS.get(spec.source)
    if build is None:
        raise GpusqError(f"{spec.source} models can't be made by name", place=str(spec), hint=_GRAMMAR)
    with refusals(spec):
        module = build(spec)
    return module.float().eval()


def skeleton_from_arch(spec: ArchSpec) -> torch.nn.Module:
    """As `module_from_arch`, but without memory for its weights, where its constructor can do without them.

    Raises:
        GpusqError: See `module_from_arch`.
    """
    try:
        with torch.device("meta"):
            return module_from_arch(spec)
    except GpusqError:  # perhaps only because it looks at its initial weights
        return module_from_arch(spec)


def _argument(item: str) -> tuple[str, ArchArgument]:
    name, equals, text = item.partition("=")
    if not equals or not name.isidentifier():
        raise GpusqError(f"not an argument: {item!r}", place="--arch-arg", hint="write K=V, such as img_size=224")
    if name == "config" and text.lstrip().startswith("{"):
        return name, text  # JSON, which may be Python too
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # what literal_eval documents
        return name, text
    try:
        return name, msgspec.convert(value, type=ArchArgument)
    except msgspec.ValidationError as error:
        raise GpusqError(
            f"unsupported value: {error}", place=f"--arch-arg {item}", hint="numbers, strings, booleans, None, lists"
        ) from error


def _unknown(spec: ArchSpec, known: Iterable[str]) -> GpusqError:
    near = difflib.get_close_matches(spec.name.partition(".")[0], list(known), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "see the library's list of models"
    return GpusqError(f"{spec.source} has no model called {spec.name!r}", place="--arch", hint=hint)


def _from_timm(spec: ArchSpec) -> torch.nn.Module:
    timm = library("timm", place=str(spec), hint="pip install 'gpusq-deploy[timm]'")
    if not timm.is_model(spec.name):
        raise _unknown(spec, timm.list_models())
    _refuse_loading(spec, set(inspect.signature(timm.create_model).parameters) - {"kwargs"})
    return cast("torch.nn.Module", timm.create_model(spec.name, pretrained=False, **spec.arguments))


def _from_torchvision(spec: ArchSpec) -> torch.nn.Module:
    models = library("torchvision.models", place=str(spec), hint="pip install torchvision")
    if spec.name not in models.list_models():
        raise _unknown(spec, models.list_models())
    parameters = inspect.signature(models.get_model_builder(spec.name)).parameters
    loading = {name: None for name in ("weights", "weights_backbone") if name in parameters}
    _refuse_loading(spec, {*loading, "pretrained", "pretrained_backbone"})
    return cast("torch.nn.Module", models.get_model(spec.name, **loading, **spec.arguments))


def _refuse_loading(spec: ArchSpec, names: set[str]) -> None:
    """Arguments that have the library load weights, and perhaps download or unpickle them: a file may name them."""
    given = sorted(names & spec.arguments.keys())
    if given:
        raise GpusqError(
            f"{', '.join(given)} is about how {spec.source} loads weights, and they come from the checkpoint",
            place=str(spec),
            hint="leave it out",
        )


def _from_factory(spec: ArchSpec) -> torch.nn.Module:
    package, _, name = spec.name.partition(":")
    if package.startswith("."):
        raise GpusqError(f"cannot import {package}: a relative name has no package here", place="--arch", hint=_GRAMMAR)
    near = difflib.get_close_matches(package, ("timm", "torchvision", "transformers"), n=1, cutoff=0.7)
    meant = [f"{near[0]}:{name}"] if near else [f"{package[:-3]}:{name}"] if package.endswith(".py") else []
    hint = f"did you mean {meant[0]}?" if meant else "go to the folder that has it, install it, or set PYTHONPATH"
    with _own_failures(spec, f"importing {package}"), current_folder():
        factory = getattr(library(package, place=str(spec), hint=hint), name, None)
    if not callable(factory):
        raise GpusqError(f"{package} has no callable {name!r}", place="--arch", hint=_GRAMMAR)
    _require_arguments(spec, factory)
    with _own_failures(spec, "the factory"), current_folder():
        module = factory(**spec.arguments)
    if not isinstance(module, torch.nn.Module):
        raise GpusqError(
            f"the factory returned {with_article(type(module).__name__)}, not a torch.nn.Module", place=str(spec)
        )
    return module


def _require_arguments(spec: ArchSpec, factory: Callable[..., object]) -> None:
    """Refuse arguments that the factory's signature doesn't take.

    Raises:
        GpusqError: It doesn't.
    """
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some callables have none
        return
    try:
        signature.bind(**spec.arguments)
    except TypeError as error:
        raise GpusqError(
            f"the factory refuses its arguments: {error}",
            place=str(spec),
            hint=f"it takes {signature}: check --arch-arg",
        ) from error


def _own_failures(spec: ArchSpec, what: str) -> AbstractContextManager[None]:
    """A user's own code: a sentence that says it was that code."""
    return told(
        lambda error: f"{what} fails: {type(error).__name__}: {one_line(error)}",
        place=str(spec),
        hint="correct that code, or check --arch and --arch-arg; call it in Python to see its traceback",
    )


_BUILDERS: dict[str, Callable[[ArchSpec], torch.nn.Module]] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
    "transformers": module_from_transformers,
    "factory": _from_factory,
}
