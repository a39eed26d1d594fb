"""SVTRv2 in torch, as the graph of the package's ONNX file computes it (Du et al., 2024), so that it can be pruned.

`zoo.py` compares its answers with the file's own on ONNX Runtime. Its one difference: it answers logits, without the
last Softmax, which changes no argmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

HEIGHT, WIDTH = 32, 128
CLASSES = 95
_WIDTHS, _HEAD = (128, 256, 384), 32


class Mlp(nn.Module):
    """Two layers and a GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[N, T, C]."""
        answer: torch.Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return answer


class Attention(nn.Module):
    """Of all tokens among each other, in heads of 32."""

    def __init__(self, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = width // _HEAD
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[N, T, C]."""
        count, width = tokens.shape[1:]
        query, key, value = self.qkv(tokens).reshape(-1, count, 3, self.heads, _HEAD).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        answer: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(-1, count, width))
        return answer


class ConvBlock(nn.Module):
    """Two grouped convolutions mix, then tokens as in `Block`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mixer = nn.Sequential(*(nn.Conv2d(width, width, 3, padding=1, groups=width // _HEAD) for _ in range(2)))
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.mlp = Mlp(width)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, C, h, w]."""
        tokens = self.norm1(_tokens(image + self.mixer(image)))
        return _image(self.norm2(tokens + self.mlp(tokens)), image.shape[2])


class Block(nn.Module):
    """Attention and a perceptron, each with its norm behind the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.mixer, self.mlp = Attention(width), Mlp(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[N, T, C]."""
        tokens = self.norm1(tokens + self.mixer(tokens))
        answer: torch.Tensor = self.norm2(tokens + self.mlp(tokens))
        return answer


class ToTokens(nn.Module):
    """[N, C, h, w] to [N, T, C]."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return _tokens(image)


class Downsample(nn.Module):
    """A convolution to the next width, and a norm of its tokens."""

    def __init__(self, width: int, wider: int, stride: tuple[int, int], *, tokens: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, wider, 3, stride, padding=1), nn.LayerNorm(wider)
        self.tokens = tokens

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Of tokens where the stage before it answers these, and to tokens then."""
        image = self.conv(_image(given, HEIGHT // 4) if self.tokens else given)
        tokens = self.norm(_tokens(image))
        return tokens if self.tokens else _image(tokens, image.shape[2])


class Stage(nn.Module):
    """Blocks and what leads to the next stage."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks, self.downsample = nn.Sequential(*blocks), downsample

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """See the class."""
        answer: torch.Tensor = self.downsample(self.blocks(given))
        return answer


class Stem(nn.Module):
    """Two convolutions of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(_Stride(3, 64), _Stride(64, 128))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] to [N, 128, H / 4, W / 4]."""
        answer: torch.Tensor = self.patch_embed(image)
        return answer


class _Stride(nn.Module):
    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, wider, 3, 2, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return functional.gelu(self.conv(image))


class Encoder(nn.Module):
    """Three stages: convolutions, both, attention."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = _WIDTHS
        self.pope = Stem()
        mixed = [*(ConvBlock(second) for _ in range(2)), ToTokens(), *(Block(second) for _ in range(4))]
        self.stages = nn.Sequential(
            Stage([ConvBlock(first) for _ in range(6)], Downsample(first, second, (1, 1), tokens=False)),
            Stage(mixed, Downsample(second, third, (2, 1), tokens=True)),
            Stage([Block(third) for _ in range(6)], nn.Identity()),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 3, 32, 128] to [N, 4 * 32, 384]."""
        answer: torch.Tensor = self.stages(self.pope(image))
        return answer


class Rows(nn.Module):
    """Attention within each row of the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width) for _ in range(2))
        self.attn, self.mlp = Attention(width, bias=False), Mlp(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[N * h, w, C]."""
        mixed: torch.Tensor = tokens + self.attn(self.norm1(tokens))
        answer: torch.Tensor = mixed + self.mlp(self.norm2(mixed))
        return answer


class Decoder(nn.Module):
    """One column's characters are its rows, weighed by how much they look like a character; CTC reads the columns."""

    def __init__(self) -> None:
        super().__init__()
        width = _WIDTHS[-1]
        self.char_token = nn.Parameter(torch.zeros(1, 1, width))
        self.w_atten_block = Rows(width)
        self.fc_kv, self.fc = nn.Linear(width, 2 * width), nn.Linear(width, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[N, h * w, C] to [N, w, 95]."""
        height, columns, width = HEIGHT // 8, WIDTH // 4, tokens.shape[2]
        rows = self.w_atten_block(tokens.reshape(-1, columns, width))
        key, value = self.fc_kv(rows.reshape(-1, height * columns, width)).split(width, dim=2)
        looks = (self.char_token @ key.transpose(1, 2)).reshape(-1, 1, height, columns).softmax(dim=2)
        every = value.reshape(-1, height, columns, width).transpose(1, 2)
        answer: torch.Tensor = self.fc((looks.permute(0, 3, 1, 2) @ every).squeeze(2))
        return answer


class Svtrv2(nn.Module):
    """The base model at one size of crops."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 3, 32, 128] to logits [N, 32, 95]: the blank, digits, letters, punctuation."""
        answer: torch.Tensor = self.decoder(self.encoder(image))
        return answer


def svtrv2() -> nn.Module:
    """The module with random weights, and how a crop becomes its input: resized, whatever its proportions."""
    module = Svtrv2()
    declared: dict[str, Any] = {"channels": 3, "height": HEIGHT, "width": WIDTH, "mean": [0.5] * 3, "std": [0.5] * 3}
    untyped: Any = module
    untyped.gpusq_preprocessing = {**declared, "interpolation": "bicubic", "crop_mode": "squash"}
    return module


def _tokens(image: torch.Tensor) -> torch.Tensor:
    return image.flatten(2).transpose(1, 2)


def _image(tokens: torch.Tensor, height: int) -> torch.Tensor:
    return tokens.transpose(1, 2).reshape(-1, tokens.shape[2], height, tokens.shape[1] // height)
