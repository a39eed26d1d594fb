"""The kernels of published measurements' models, by their architectures and by what each software fuses.

A ViT's block, [rows, C], by software:

- tensorrt, as TensorRT-RTX's layer lists have it: LN, qkv, split, attention, proj (+ residual), LN, fc1 (+ GELU), fc2
  (+ residual); in INT8 products write FP16, and what they lose from their epilogue goes into the next kernel.
- fastertransformer: bias, residual and GELU are kernels apart; INT8 in and out everywhere (its mode 2); above 512
  tokens (384 in INT8) attention is two products and a softmax.
- compile, PyTorch's with autocast: LN and the residual stream in float32, GELU apart, windows rolled by copies, a mask
  per window written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from gpusq_deploy.engines.prediction.work import Work

Software = Literal["tensorrt", "fastertransformer", "compile"]

# Channels, blocks, heads.
_VITS = {
    "deit_tiny": (192, 12, 3),
    "deit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
}
# Channels and heads of the first stage; blocks of each.
_SWINS = {
    "swin_tiny": (96, 3, (2, 2, 6, 2)),
    "swin_small": (96, 3, (2, 2, 18, 2)),
    "swin_base": (128, 4, (2, 2, 18, 2)),
    "swin_large": (192, 6, (2, 2, 18, 2)),
}
_CLASSES = 1000
_MOST_FUSED = {"fp16": 512, "int8": 384}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A model at one batch size: what a published measurement was made of."""

    model: str
    resolution: int
    patch: int
    batch: int
    precision: str
    software: Software


def works_of_shape(shape: Shape) -> list[tuple[int, Work]]:
    """Its kernels, each with how often it runs."""
    if shape.model == "mlp6":
        return list(_mlp(shape))
    return list(_swin(shape) if shape.model in _SWINS else _vit(shape))


def product(m: int, n: int, k: int, precision: str, *, out: int = 2) -> Work:
    """[M, K] by a weight [K, N]; `out` bytes for each element of the output, two more where a residual is read."""
    size = 1 if precision == "int8" else 2
    return Work(
        role="gemm",
        precision=precision,
        m=m,
        n=n,
        k=k,
        flops=2 * m * n * k,
        weight_bytes=n * k * size,
        moved_bytes=m * k * size + m * n * out,
    )


def attention(count: int, tokens: int, head: int, precision: str, *, extra: int = 0, out: int = 2) -> Work:
    """Fused attention of so many windows times heads; `extra` are bytes of bias and mask."""
    size = 1 if precision == "int8" else 2
    return Work(
        role="attention",
        precision=precision,
        m=tokens,
        n=tokens,
        k=head,
        count=count,
        flops=4 * count * tokens * tokens * head,
        moved_bytes=count * tokens * head * (3 * size + out) + extra,
    )


def moved(count: int) -> Work:
    """A kernel that multiplies nothing and moves so many bytes."""
    return Work(role="other", moved_bytes=count)


def _mlp(shape: Shape) -> Iterator[tuple[int, Work]]:
    """Six pairs of products, 768 to 3072 and back, with a ReLU between: onnxsim's test of 2:4."""
    for n, k in ((3072, 768), (768, 3072)):
        yield 6, replace(product(shape.resolution, n, k, "fp16"), sparse=shape.precision.endswith("2:4"))


def _vit(shape: Shape) -> Iterator[tuple[int, Work]]:
    channels, depth, heads = _VITS[shape.model]
    side, batch, software = shape.resolution // shape.patch, shape.batch, shape.software
    tokens, head = side * side + 1, channels // heads
    size = batch * tokens * channels
    inner = shape.precision if software == "fastertransformer" else "fp16"
    if software == "fastertransformer" and tokens > _MOST_FUSED[inner]:
        attended = _unfused(batch, heads, tokens, head, inner)
    else:
        out = 1 if shape.precision == "int8" else 2
        attended = [attention(batch * heads, tokens, head, inner, out=out)]
    yield 1, moved(batch * 3 * shape.resolution**2 * 4)
    yield 1, product(batch * side * side, channels, 3 * shape.patch**2, "fp16")
    yield 1, moved(size * 4)
    for work in _block(batch * tokens, channels, attended, shape):
        yield depth, work
    yield 1, moved(size * 4)
    yield 1, product(batch, _CLASSES, channels, "fp16")


def _swin(shape: Shape) -> Iterator[tuple[int, Work]]:
    channels, heads, depths = _SWINS[shape.model]
    side, batch = shape.resolution // shape.patch, shape.batch
    window = 12 if shape.resolution == 384 else 7
    yield 1, product(batch * side * side, channels, 3 * shape.patch**2, "fp16")
    yield 1, moved(batch * side * side * channels * 4)
    for stage, depth in enumerate(depths):
        windows = (side // window) ** 2
        for shifted in (False, True):
            for work in _window_block(shape, side, channels, heads, shifted=shifted and windows > 1):
                yield depth // 2, work
        if stage + 1 < len(depths):
            yield 1, moved(batch * side * side * channels * 4)
            yield 1, product(batch * side * side // 4, 2 * channels, 4 * channels, shape.precision)
            side, channels, heads = side // 2, 2 * channels, 2 * heads
    yield 1, moved(batch * (side * side + 1) * channels * 2)
    yield 1, product(batch, _CLASSES, channels, "fp16")


def _window_block(shape: Shape, side: int, channels: int, heads: int, *, shifted: bool) -> Iterator[Work]:
    window = 12 if shape.resolution == 384 else 7
    tokens, windows, rows = window**2, (side // window) ** 2, shape.batch * side * side
    bias = heads * tokens**2 * 2
    extra = bias * (windows if shifted else 1)
    if shape.software == "compile":
        yield moved(rows * channels * 4)
        yield moved(rows * channels * 4)
        if shifted:
            extra = bias * windows * shape.batch
            yield moved(extra)
    inner = shape.precision if shape.software == "fastertransformer" else "fp16"
    out = 1 if shape.precision == "int8" else 2
    attended = [attention(shape.batch * windows * heads, tokens, channels // heads, inner, extra=extra, out=out)]
    yield from _block(rows, channels, attended, shape)


def _unfused(batch: int, heads: int, tokens: int, head: int, precision: str) -> list[Work]:
    size, scores = 1 if precision == "int8" else 2, batch * heads * tokens**2
    values = batch * heads * tokens * head
    # Both operands are activations.
    first, second = (
        replace(
            product(tokens, n, k, precision),
            count=batch * heads,
            flops=2 * batch * heads * tokens * n * k,
            weight_bytes=0,
            moved_bytes=(2 * values + scores) * size,
        )
        for n, k in ((tokens, head), (head, tokens))
    )
    return [first, moved(2 * scores * size), second, moved(2 * values * size)]


def _block(rows: int, channels: int, attended: list[Work], shape: Shape) -> list[Work]:
    build = {
        ("tensorrt", "fp16"): _tensorrt_fp16,
        ("tensorrt", "int8"): _tensorrt_int8,
        ("fastertransformer", "fp16"): _fastertransformer_fp16,
        ("fastertransformer", "int8"): _fastertransformer_int8,
        ("compile", "fp16"): _compile_fp16,
    }[shape.software, shape.precision]
    return build(rows, channels, attended)


def _tensorrt_fp16(rows: int, c: int, attended: list[Work]) -> list[Work]:
    x = rows * c
    return [
        moved(x * 4),
        product(rows, 3 * c, c, "fp16"),
        moved(x * 12),
        *attended,
        product(rows, c, c, "fp16", out=4),
        moved(x * 4),
        product(rows, 4 * c, c, "fp16"),
        product(rows, c, 4 * c, "fp16", out=4),
    ]


def _tensorrt_int8(rows: int, c: int, attended: list[Work]) -> list[Work]:
    x = rows * c
    return [
        moved(x * 7),
        product(rows, 3 * c, c, "int8"),
        moved(x * 12),
        *attended,
        moved(x * 2),
        product(rows, c, c, "int8"),
        moved(x * 7),
        product(rows, 4 * c, c, "int8"),
        moved(x * 12),
        product(rows, c, 4 * c, "int8"),
    ]


def _fastertransformer_fp16(rows: int, c: int, attended: list[Work]) -> list[Work]:
    x = rows * c
    return [
        product(rows, 3 * c, c, "fp16"),
        moved(x * 12),
        *attended,
        product(rows, c, c, "fp16"),
        moved(x * 8),
        product(rows, 4 * c, c, "fp16"),
        moved(x * 16),
        product(rows, c, 4 * c, "fp16"),
        moved(x * 8),
    ]


def _fastertransformer_int8(rows: int, c: int, attended: list[Work]) -> list[Work]:
    x = rows * c
    return [
        product(rows, 3 * c, c, "int8", out=1),
        moved(x * 6),
        *attended,
        product(rows, c, c, "int8", out=1),
        moved(x * 6),
        product(rows, 4 * c, c, "int8", out=1),
        moved(x * 8),
        product(rows, c, 4 * c, "int8", out=1),
        moved(x * 6),
    ]


def _compile_fp16(rows: int, c: int, attended: list[Work]) -> list[Work]:
    x = rows * c
    return [
        moved(x * 12),
        product(rows, 3 * c, c, "fp16"),
        *attended,
        product(rows, c, c, "fp16"),
        moved(x * 12),
        product(rows, 4 * c, c, "fp16"),
        moved(x * 16),
        product(rows, c, 4 * c, "fp16"),
    ]
