"""What each kernel of an engine does at one batch size, and how long that is predicted to take on a device.

The layer list of an engine with a dynamic batch hides sizes, so its kernels' work is read from that of the same model
built for the optimal batch alone, whose kernels are told apart by the ONNX nodes that they name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from gpusq_deploy.artifacts import EngineLayer, KernelWork
from gpusq_deploy.engines.layer_classes import classify
from gpusq_deploy.engines.prediction.constants import Fitted
from gpusq_deploy.engines.prediction.devices import Device
from gpusq_deploy.engines.prediction.roofline import time_of
from gpusq_deploy.engines.prediction.work import Work, work_of

# The builder numbers what it makes: `__myl_Move_myl0_7`, `__mye7659_0_myl0_0`.
_NUMBERS = re.compile(r"_myl\d+_\d+(?: \[profile \d+\])?$|(?<=__mye)\d+(?:_\d+)?")
# What the roofline's constants were fitted to.
_FITTED = frozenset({"int8", "fp16", "bf16", ""})
_NOTHING = KernelWork(
    name="",
    onnx_nodes=(),
    role="other",
    precision="",
    m=0,
    n=0,
    k=0,
    count=0,
    flops=0,
    weight_bytes=0,
    moved_bytes=0,
)


def kernels_of(layers: Sequence[EngineLayer]) -> tuple[EngineLayer, ...]:
    """An engine's layers less those that only order streams."""
    return tuple(layer for layer in layers if classify(layer).role != "sync")


def plain_name(kernel: EngineLayer) -> str:
    """What the builder calls a kernel, without the numbers that it gives to everything."""
    return _NUMBERS.sub("", kernel.name)


def kernel_works(layers: Sequence[EngineLayer]) -> tuple[KernelWork, ...]:
    """The work of each kernel of a layer list, in its order.

    Args:
        layers: Of one engine, with known shapes.

    Raises:
        GpusqError: A tensor has a dynamic dimension, or a type of unknown size.
    """
    kernels = kernels_of(layers)
    return tuple(
        KernelWork(
            name=plain_name(kernel),
            onnx_nodes=kernel.onnx_nodes,
            role=work.role,
            precision=work.precision,
            m=work.m,
            n=work.n,
            k=work.k,
            count=work.count,
            flops=work.flops,
            weight_bytes=work.weight_bytes,
            moved_bytes=work.moved_bytes,
        )
        for kernel, work in zip(kernels, work_of(kernels), strict=True)
    )


def works_by_kernel(layers: Sequence[EngineLayer], works: Sequence[KernelWork]) -> dict[str, KernelWork]:
    """The work of an engine's kernels by their names, of those that are found among `works`.

    Args:
        layers: The engine's.
        works: Of the same model, built for one batch size.
    """
    kernels = kernels_of(layers)
    # A `shape_call` computes sizes on the host; with one batch size there is none.
    found = {kernel.name: _NOTHING for kernel in kernels if not (kernel.inputs or kernel.outputs or kernel.constants)}
    # Which nodes a kernel names is the same in both, though not always in which order.
    ours = [(plain_name(kernel), *sorted(kernel.onnx_nodes)) for kernel in kernels]
    theirs = [(work.name, *sorted(work.onnx_nodes)) for work in works]
    by_nodes = _unique(theirs, works)
    named = zip(kernels, ours, strict=True)
    found.update((kernel.name, by_nodes[key[1:]]) for kernel, key in named if key[1:] in by_nodes)
    for block in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        for step in range(block.size):
            found.setdefault(kernels[block.a + step].name, works[block.b + step])
    return found


def predicted_microseconds(works: Mapping[str, KernelWork], device: Device, fitted: Fitted) -> dict[str, float]:
    """What each kernel is predicted to take on a device with its launch, less those whose type has no prediction."""
    return {
        name: 0.0 if work is _NOTHING else time_of(_work(work), device, fitted.constants).total
        for name, work in works.items()
        if work.precision in _FITTED
    }


def _work(work: KernelWork) -> Work:
    return Work(
        role=work.role,
        precision=work.precision,
        m=work.m,
        n=work.n,
        k=work.k,
        count=work.count,
        flops=work.flops,
        weight_bytes=work.weight_bytes,
        moved_bytes=work.moved_bytes,
        nodes=work.onnx_nodes,
    )


def _unique(keys: Sequence[tuple[str, ...]], works: Sequence[KernelWork]) -> dict[tuple[str, ...], KernelWork]:
    """Works whose nodes no other work names in the same set; those that name none are left out."""
    found: dict[tuple[str, ...], list[KernelWork]] = {}
    for key, work in zip(keys, works, strict=True):
        found.setdefault(key[1:], []).append(work)
    return {nodes: same[0] for nodes, same in found.items() if nodes and len(same) == 1}
