"""What a hand-over has to know of a bundle's model, and what it becomes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from gpusq_deploy.artifacts import (
    MODEL,
    BatchRange,
    BuiltEngine,
    EngineOptions,
    ExportKind,
    Preprocessing,
)
from gpusq_deploy.bundle.files import Bundle, require_accepted, require_whole
from gpusq_deploy.bundle.report.warnings import bundle_doubts
from gpusq_deploy.engines import TensorSpec
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import EXTERNAL_DATA, load_model, value_name
from gpusq_deploy.sparsity import DENSE, require_dense

# What a folder of a model repository, a shell and an image's tag take as it is.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# How transformers names classes that nobody named.
_UNNAMED = re.compile(r"LABEL_\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class HandedModel:
    """A bundle's model as others load it.

    Attributes:
        name: What it is called where it is deployed.
        bundle: The folder's name, in one line: it stands in comments.
        digest: Of its model.onnx.
        inputs, outputs: As model.onnx has them; a dynamic dimension is -1.
        batch: The batch sizes that it accepts.
        options: What engine builders are asked.
        sparse: Whether they may use sparse kernels.
        opset: Of model.onnx.
        preprocessing: From an image to the input; None where the input is no image or nobody declares how.
        labels: Names of the classes, where the first output has one value for each.
        engines: Those in the bundle.
        doubts: Why it should not be deployed.
        model_files: model.onnx and what holds its weights, below the bundle.
    """

    name: str
    bundle: str
    digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: BatchRange
    options: EngineOptions
    sparse: bool
    opset: int
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]
    engines: tuple[BuiltEngine, ...]
    doubts: tuple[str, ...]
    model_files: tuple[str, ...]

    @property
    def dynamic(self) -> bool:
        """Whether the first axis of every input is the batch, and open."""
        return all(spec.shape[:1] == (-1,) for spec in self.inputs)

    @property
    def by_sample(self) -> bool:
        """Whether a server may put requests together: the first axis of every input and output is the open batch."""
        return all(spec.shape[:1] == (-1,) for spec in (*self.inputs, *self.outputs))

    def profiles(self, options: EngineOptions) -> tuple[BatchRange, ...]:
        """One for each optimisation profile of an engine; none where the batch is fixed."""
        return (options.profiles or (self.batch,)) if self.dynamic else ()

    def unloadable(self, options: EngineOptions) -> str:
        """Why the programs can't load an engine that was built so; empty where they can."""
        if options.strip:
            return "it has no weights"
        return "it holds a runtime of its own, native code" if options.version_compatible else ""

    def options_of(self, engine: BuiltEngine) -> EngineOptions:
        """What an engine's builder was asked."""
        return self.options if engine.options is None else engine.options


@dataclass(frozen=True, kw_only=True, slots=True)
class Handover:
    """What is to be written.

    Attributes:
        kind: What for.
        files: Contents by path below the folder.
        copies: Files of the bundle, below it, by the path that they get.
        remarks: See `ExportRecord`.
    """

    kind: ExportKind
    files: Mapping[str, bytes]
    copies: Mapping[str, str] = field(default_factory=dict[str, str])
    remarks: tuple[str, ...] = ()


def handed_model(bundle: Bundle, *, name: str | None = None, labels: Sequence[str] = ()) -> HandedModel:
    """Look at a bundle.

    Args:
        bundle: The bundle, whose files are checked.
        name: What the model is to be called; None: as the bundle's folder.
        labels: Names of its classes, in order; none: those that a transformers config has.

    Raises:
        GpusqError: A damaged or refused bundle, weights that must be unpacked first, a name that can't be a folder's,
            or labels that don't fit.
    """
    manifest = bundle.manifest
    require_accepted(bundle)
    require_dense(bundle.path)
    require_whole(bundle)
    graph = load_model(bundle.path / MODEL).graph
    outputs = tuple(_spec(value) for value in graph.outputs)
    declared = manifest.preprocessing
    return HandedModel(
        name=_name(bundle, name),
        bundle=" ".join(bundle.path.resolve().name.split()),
        digest=next(entry.digest for entry in manifest.files if entry.path == MODEL),
        inputs=tuple(_spec(value) for value in graph.inputs),
        outputs=outputs,
        batch=manifest.batch,
        options=manifest.engine,
        sparse=bundle.plan.sparse_asked,
        opset=manifest.opset,
        preprocessing=declared if declared.is_image and declared.is_declared else None,
        labels=_fitting(labels, outputs) if labels else _config_labels(bundle, outputs),
        engines=bundle.receipt.engines,
        doubts=bundle_doubts(manifest, bundle.receipt),
        model_files=tuple(entry.path for entry in manifest.files if entry.path in {MODEL, EXTERNAL_DATA, DENSE}),
    )


def _name(bundle: Bundle, asked: str | None) -> str:
    if asked is None:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", bundle.path.resolve().stem).strip("-.")
        return plain if _PLAIN_NAME.fullmatch(plain) else "model"
    if not _PLAIN_NAME.fullmatch(asked):
        raise GpusqError(
            f"{asked!r} can't be a model's name", place="--name", hint="use letters, digits, and _ . - between them"
        )
    return asked


def _spec(value: ir.Value) -> TensorSpec:
    assert value.shape is not None, "a bundle's border has shapes"
    assert value.dtype is not None, "a bundle's border has types"
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(name=value_name(value), shape=shape, dtype=value.dtype.numpy().name)


def class_count(outputs: Sequence[TensorSpec]) -> int | None:
    """Of a first output [N, classes]; None of any other."""
    shape = outputs[0].shape
    return shape[1] if len(shape) == 2 and shape[1] > 0 else None


def _fitting(labels: Sequence[str], outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    if len(labels) != class_count(outputs):
        first = outputs[0]
        raise GpusqError(
            f"{len(labels)} labels don't fit the first output, {first.name} {list(first.shape)}",
            place="--labels",
            hint="one name in each line, as many as the output [N, classes] has classes",
        )
    return tuple(" ".join(label.split()) for label in labels)


def _config_labels(bundle: Bundle, outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Those of a transformers config, where it has one for each class of the first output."""
    config = bundle.manifest.source.arch.arguments.get("config")
    if not isinstance(config, str):
        return ()
    try:
        names: dict[str, Any] = json.loads(config)["id2label"]
        labels = tuple(str(names[str(label)]) for label in range(len(names)))
    except (ValueError, LookupError, TypeError, AttributeError):
        return ()
    named = len(labels) == class_count(outputs) and not all(map(_UNNAMED.fullmatch, labels))
    return labels if named else ()
