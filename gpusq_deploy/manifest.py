"""Make the manifest: what a bundle holds and how it came to be."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from importlib import metadata

import onnx_ir as ir

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.values import value_name

_RECORDED = (
    "gpusq-deploy",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "tensorrt",
    "tensorrt-rtx",
    "timm",
    "torch",
)


def installed_versions() -> dict[str, str]:
    """Versions of what can change a bundle, by distribution name; what isn't installed is left out."""
    here = {
        distribution.name.lower().replace("_", "-"): distribution.version for distribution in metadata.distributions()
    }
    return {name: here[name] for name in _RECORDED if name in here}


def now() -> str:
    """The time, UTC, to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def shapes_of(values: Iterable[ir.Value]) -> dict[str, tuple[int, ...]]:
    """Shapes by name; a dynamic dimension is -1.

    Raises:
        GpusqError: A value without a shape.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for value in values:
        if value.shape is None:
            raise GpusqError("the graph's border has no shape", place=f"tensor {value_name(value)}")
        shapes[value_name(value)] = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return shapes
