"""What to change about an architecture so that a file's weights fit it, read off the shapes that don't."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from gpusq_deploy.artifacts import ArchSpec

State = Mapping[str, torch.Tensor]

# What each library calls the number of classes, the image size and the input channels.
_CLASSES = {"timm": "num_classes", "torchvision": "num_classes", "transformers": "num_labels"}
_SIZE = {"timm": "img_size", "torchvision": "image_size", "transformers": "image_size"}
_CHANNELS = {"timm": "in_chans", "transformers": "num_channels"}
_HEADS = ("head", "head_dist", "head.fc", "fc", "classifier", "heads.head", "heads", "cls_classifier")


def fit_hint(expected: State, state: State, arch: ArchSpec) -> str:
    """Arguments of `--arch-arg` that make the architecture what the file holds; empty where shapes don't say any."""
    found = dict(_arguments(expected, state, arch))
    return " ".join(f"--arch-arg {name}={value}" for name, value in found.items())


def _arguments(expected: State, state: State, arch: ArchSpec) -> Iterator[tuple[str, object]]:
    differing = [name for name in expected if name in state and expected[name].shape != state[name].shape]
    patches = [found for name in differing for found in _of_patches(name, expected[name], state[name], arch)]
    yield from patches
    yield from _of_head(expected, state, differing, arch)
    yield from _of_pooling(expected, state, arch)
    # Of patches of another size, the same number of positions is another image.
    tables = [name for name in expected if name in state] if "patch_size" in dict(patches) else differing
    sizes = {side for name in tables if (side := _side(name, expected, state))}
    if len(sizes) == 1 and arch.source in _SIZE:
        yield _SIZE[arch.source], sizes.pop()


def _of_patches(
    name: str, expected: torch.Tensor, stored: torch.Tensor, arch: ArchSpec
) -> Iterator[tuple[str, object]]:
    """The patch embedding is the convolution whose kernel is a patch, of the image's channels."""
    if stored.ndim != 4 or expected.ndim != 4 or stored.shape[0] != expected.shape[0]:
        return
    if stored.shape[1] != expected.shape[1] and arch.source in _CHANNELS and expected.shape[1] in (1, 3):
        yield _CHANNELS[arch.source], stored.shape[1]
    if stored.shape[2] == stored.shape[3] != expected.shape[2] and "patch" in name:
        yield "patch_size", stored.shape[2]


def _of_head(expected: State, state: State, differing: list[str], arch: ArchSpec) -> Iterator[tuple[str, object]]:
    """Rows of a classifier's weight, which may be there on one side alone."""
    name = _CLASSES.get(arch.source)
    if name is None:
        return
    for head in _HEADS:
        weight = f"{head}.weight"
        wide = weight in differing and state[weight].shape[1:] == expected[weight].shape[1:]
        if wide or (weight in state and weight not in expected and state[weight].ndim == 2):
            yield name, state[weight].shape[0]
            return
        if weight in expected and weight not in state and arch.source == "timm":
            yield name, 0
            return


def _of_pooling(expected: State, state: State, arch: ArchSpec) -> Iterator[tuple[str, object]]:
    """Timm's ViTs normalise before pooling (`norm`) or behind it (`fc_norm`)."""
    if arch.source == "timm" and ("norm.weight" in expected) != ("norm.weight" in state):
        if "fc_norm.weight" in expected and "fc_norm.weight" not in state:
            yield "global_pool", "token"
        elif "fc_norm.weight" in state and "fc_norm.weight" not in expected:
            yield "global_pool", "avg"


def _side(name: str, expected: State, state: State) -> int:
    """The side of a square image whose patches a position table has a row for; 0 where that can't be told."""
    if "pos" not in name.rpartition(".")[2] and "position" not in name:
        return 0
    old, new = state[name].shape, expected[name].shape
    if old[-1] != new[-1] or len(old) != len(new) or len(old) not in (2, 3):
        return 0
    for extra in (1, 0, 2, 5):  # a class token; none; two; one and four registers
        grids = [math.isqrt(rows - extra) if rows > extra else 0 for rows in (old[-2], new[-2])]
        if all(grid and grid**2 == rows - extra for grid, rows in zip(grids, (old[-2], new[-2]), strict=True)):
            return grids[0] * _patch(state)
    return 0


def _patch(state: State) -> int:
    """The side of a patch in pixels; 0 where no convolution looks like one of patches."""
    named = next((t.shape[-1] for n, t in state.items() if "patch" in n and t.ndim == 4 and t.shape[-1] > 1), 0)
    return named or next((t.shape[-1] for t in state.values() if t.ndim == 4 and t.shape[1] in (1, 3)), 0)
