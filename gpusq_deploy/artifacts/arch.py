"""How a model is made from its name, and what its input looks like."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from gpusq_deploy.artifacts.base import Value

ArchArgument = bool | int | float | str | list[int | float] | None
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
# timm's names.
CropMode = Literal["center", "squash", "border"]
# How half of an odd margin is rounded: to even, as torchvision and timm do, or down, as transformers does.
CropOffset = Literal["round", "floor"]


# The origins of a preprocessing that says the input's shape and nothing else.
UNDECLARED = "none is declared: --calib gave arrays, prepared elsewhere"
UNDECLARED_FILE = "none is declared: an ONNX file says the shape of its input alone"
_SHOWN = 40


class ArchSpec(Value):
    """A model's recipe: `source:name` and the keyword arguments of its constructor.

    Of a transformers class, `config` is its config as JSON and `input_size` [height, width]; the others are keys of the
    config. Of `onnx` the name is the file's; `producer` and `opset` are what the file says.
    """

    source: Literal["timm", "torchvision", "transformers", "factory", "onnx"]
    name: str
    arguments: dict[str, ArchArgument] = msgspec.field(default_factory=dict[str, ArchArgument])

    def __str__(self) -> str:
        if self.source == "onnx":
            producer, opset = (self.arguments.get(key) for key in ("producer", "opset"))
            return f"ONNX file {self.name} ({f'{producer}, ' if producer else ''}opset {opset})"
        name = self.name if self.source == "factory" else f"{self.source}:{self.name}"
        given = ", ".join(f"{key}={_shown(value)}" for key, value in self.arguments.items())
        return f"{name}({given})" if given else name


def _shown(value: ArchArgument) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def preprocessing_of_shape(shape: tuple[int, ...], origin: str) -> Preprocessing:
    """Of an input [N, *shape] that is no image."""
    return Preprocessing(channels=1, height=1, width=1, mean=(0.0,), std=(1.0,), origin=origin, shape=shape)


class Preprocessing(Value):
    """From an image file to the model's input [N, channels, height, width], float32.

    `x = (pixel / 255 - mean) / std` per channel, after a resize to (height, width) / `crop_fraction` and a centre crop:

    - `center`: the image keeps its proportions and covers that size;
    - `squash`: it has exactly that size, whatever its proportions were;
    - `border`: it keeps its proportions and fits into that size; what the crop has beyond it is filled with the mean.

    An input of other than 1 or 3 channels is no image, such as the regions that a detector pooled: its data come as
    arrays. So do those of an input of other than four axes, such as [N, frames, bins]: `shape` is then that of one
    sample, and the rest says nothing.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bicubic"
    crop_fraction: float = 1.0
    crop_mode: CropMode = "center"
    crop_offset: CropOffset = "round"
    origin: str
    shape: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET

    @property
    def is_declared(self) -> bool:
        """Whether mean, std and the rest are the model's; if not, only the shape is known."""
        return self.origin not in {UNDECLARED, UNDECLARED_FILE}

    @property
    def is_image(self) -> bool:
        """Whether an image file can become the input."""
        return self.shape is msgspec.UNSET and self.channels in (1, 3)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one sample: the input's, without its axis N."""
        return (self.channels, self.height, self.width) if isinstance(self.shape, msgspec.UnsetType) else self.shape

    def __post_init__(self) -> None:
        if min(self.channels, self.height, self.width) < 1:
            raise ValueError(f"not an input: {self.channels}x{self.height}x{self.width}")
        if min(self.sample_shape, default=0) < 1:
            raise ValueError(f"not the shape of a sample: {list(self.sample_shape)}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} entries each")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            raise ValueError("mean and std must be finite")
        if min(self.std) <= 0 or not 0 < self.crop_fraction <= 1:
            raise ValueError("std must be positive and crop_fraction in (0, 1]")
