"""Versions of what is installed here, read from its metadata: nothing is imported."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

import gpusq_deploy

PACKAGE = "gpusq-deploy"
# What a result of this package can depend on, by distribution.
LIBRARIES = (
    "torch",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "numpy",
    "timm",
    "torchvision",
    "transformers",
)
# Whoever builds or runs engines; the two TensorRTs also come as one distribution for each version of CUDA.
ENGINES = ("tensorrt", "tensorrt-rtx", "pycuda", "cuda-bindings")
_PARTS = ("bindings", "libs", "dispatch", "lean")


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions by distribution name, in the order of `names`; what isn't installed is left out."""
    here = _distributions()
    return {name: here[name] for name in names if name in here}


def engine_versions() -> dict[str, str]:
    """`ENGINES`, and TensorRT's distributions for one version of CUDA, such as tensorrt-cu12."""
    here = _distributions()
    twins = (
        name for name in sorted(here) if name.startswith(("tensorrt-cu", "tensorrt-rtx-cu")) and not _is_part(name)
    )
    return {name: here[name] for name in (*ENGINES, *twins) if name in here}


def all_versions() -> dict[str, str]:
    """What `--version` says: this package, Python, the libraries, and who builds and runs engines."""
    return {
        PACKAGE: gpusq_deploy.__version__,
        "python": platform.python_version(),
        **installed_versions(LIBRARIES),
        **engine_versions(),
    }


def _is_part(name: str) -> bool:
    return name.rpartition("-")[2] in _PARTS


def _distributions() -> dict[str, str]:
    # A damaged distribution has no name.
    named = ((found.metadata["Name"], found.version) for found in metadata.distributions())
    return {name.lower().replace("_", "-"): version for name, version in named if name}
