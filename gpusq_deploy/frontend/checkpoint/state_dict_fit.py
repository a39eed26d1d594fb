"""Do the weights belong to the architecture, and are they numbers?"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch

from gpusq_deploy.artifacts import ArchSpec
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.fit_hints import fit_hint


def require_plain(state: Mapping[str, torch.Tensor], *, place: str) -> None:
    """Dense tensors with data of their own.

    Raises:
        GpusqError: Names the first that isn't.
    """
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
            kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else str(tensor.layout)
            raise GpusqError(
                f"not a plain tensor of numbers but {'one without data' if tensor.is_meta else kind}",
                place=f"{place}, tensor {name}",
                hint="save dense float weights",
            )


def require_finite(state: Mapping[str, torch.Tensor], *, place: str) -> None:
    """As float32, which the model computes in: a float64 can be finite and too large for it.

    Raises:
        GpusqError: Names the first tensor that isn't.
    """
    for name, tensor in state.items():
        finite = torch.isfinite(tensor.float()) if tensor.is_floating_point() else None
        if finite is not None and not bool(finite.all()):
            bad = int((~finite).sum())
            raise GpusqError(
                f"{bad} of {tensor.numel()} weights are NaN, infinite, or too large for float32",
                place=f"{place}, tensor {name}",
                hint="the training diverged or the file is damaged: take an earlier checkpoint",
            )


def require_fit(
    expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], arch: ArchSpec, *, place: str
) -> None:
    """Names, shapes and kinds of the weights are the architecture's.

    Raises:
        GpusqError: Says which are not, and what they may be.
    """
    missing = [name for name in expected if name not in state]
    surplus = [name for name in state if name not in expected]
    shapes, types = _other_shapes(expected, state), _other_types(expected, state)
    if not (missing or surplus or shapes or types):
        return
    parts = [
        _listed("missing", [_with_nearest(name, surplus) for name in missing]),
        _listed("not in the architecture", surplus),
        _listed("of another shape", shapes),
        _listed("of another type", types),
    ]
    raise GpusqError(
        f"the weights don't fit {arch}: " + "; ".join(part for part in parts if part),
        place=place,
        hint=_prefix_hint(missing, surplus)
        or fit_hint(expected, state, arch)
        or "check --arch and --arch-arg (img_size=, num_classes=, global_pool= are the usual ones)",
    )


def _other_shapes(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> list[str]:
    return [
        f"{name} is {list(state[name].shape)}, expected {list(tensor.shape)}{_of_shape(name, expected, state)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]


def _other_types(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> list[str]:
    return [
        f"{name} is {state[name].dtype}, expected {tensor.dtype}"
        for name, tensor in expected.items()
        if name in state and _kind(state[name]) != _kind(tensor)
    ]


def _prefix_hint(missing: list[str], surplus: list[str]) -> str:
    """Where names differ by a wrapper's name alone, the sentence that says so."""
    for inner, outer, whose in ((missing, surplus, "the file"), (surplus, missing, "the architecture")):
        prefixes = {name.partition(".")[0] for name in outer}
        if len(prefixes) == 1 and {f"{next(iter(prefixes))}.{name}" for name in inner} & set(outer):
            return f"all these names begin with '{prefixes.pop()}.' in {whose} alone: save or name the module inside"
    return ""


def _kind(tensor: torch.Tensor) -> str:
    """Types of one kind stand for one another."""
    return "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"


def _of_shape(name: str, expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str:
    """The three nearest names of the file that do have the shape."""
    others = [other for other, tensor in state.items() if tensor.shape == expected[name].shape]
    near = difflib.get_close_matches(name, others, n=3, cutoff=0.0)
    return f" (of that shape the file has {', '.join(near)})" if near else ""


def _with_nearest(name: str, candidates: list[str]) -> str:
    near = difflib.get_close_matches(name, candidates, n=3, cutoff=0.6)
    return f"{name} (the file has {', '.join(near)})" if near else name


def _listed(title: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return f"{len(items)} {title}: {', '.join(items[:3])}{more}"
