"""Names that `--arch` takes, from the libraries that are installed."""

from __future__ import annotations

import difflib
import fnmatch

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.optional_libraries import library
from gpusq_deploy.text import one_line

# The library, the module that lists its models, and who installs it.
_LISTING = {
    "timm": ("timm", "pip install 'gpusq-deploy[timm]'"),
    "torchvision": ("torchvision.models", "pip install torchvision"),
}


def known_architectures(pattern: str = "") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Architectures as `--arch` takes them, and what the list leaves out, one sentence each.

    Args:
        pattern: A shell pattern on the name, such as `vit_small*`; without `*` or `?`, a part of it; empty for all.

    Raises:
        GpusqError: None matches; the hint names near ones.
    """
    names: list[str] = []
    absent: list[str] = []
    for source in _LISTING:
        listed = _names(source)
        if isinstance(listed, str):
            absent.append(listed)
        else:
            names += listed
    absent.append("transformers:CLASS and package.module:factory aren't listed: any vision class or factory will do")
    wanted = pattern if any(mark in pattern for mark in "*?[") else f"*{pattern}*"
    found = tuple(name for name in names if _matches(name, wanted))
    if names and not found:
        near = difflib.get_close_matches(pattern, [name.partition(":")[2] for name in names], n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "--list architectures prints all"
        raise GpusqError(f"no architecture matches {pattern!r}", place="--list architectures", hint=hint)
    return found, tuple(absent)


def _names(source: str) -> list[str] | str:
    """What a library has, or why that isn't known."""
    module, hint = _LISTING[source]
    try:
        return [f"{source}:{name}" for name in library(module, hint=hint).list_models()]
    except GpusqError as error:
        return f"{source}: {error.what}; {error.hint}"
    except Exception as error:  # a torchvision made for another torch raises RuntimeError
        return f"{source}: importing it fails: {one_line(error)}; install versions that fit each other"


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for text in (name, name.partition(":")[2]))
