"""What each layer of a model costs in an engine, from its layer list: a prediction, timed on none.

A layer has the kernels from its product, in the builder's order, up to the next layer's; the first those before it too.
A tensor that a product reads is written for it, so its bytes are that layer's, not those of the kernel that writes it.
That gives an INT8 layer the saving of its quantised input. With peak rates of the target, each kernel takes

    time = max(bytes / bandwidth, Σ over types of FLOPs / peak rate)

which is a lower bound: launches, caches and rereads are not seen. Products that were merged count for the first layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gpusq_deploy.artifacts import EngineLayer, LayerCost, LayerShare, Payoff
from gpusq_deploy.engines.cost import bytes_of, flops_of
from gpusq_deploy.engines.layer_classes import classify
from gpusq_deploy.engines.targets import Peaks

# A difference below this share is none: the prediction can't see what decides it.
_LEAST_DIFFERENCE = 0.02


def layer_shares(layers: Sequence[EngineLayer], nodes: Mapping[str, str], peaks: Peaks | None) -> dict[str, LayerShare]:
    """Kernels, bytes, FLOPs and predicted time of each layer of the model that a product of the engine names.

    Args:
        layers: Of one engine, in the builder's order, with known shapes.
        nodes: Layer of the model by the ONNX node of its product.
        peaks: The target's; None leaves times out.

    Raises:
        GpusqError: A tensor has a dynamic dimension, or a type of unknown size.
    """
    kernels = [layer for layer in layers if classify(layer).role != "sync"]
    owners = list(_owners(kernels, nodes))
    readers = {
        tensor.name: owner
        for layer, owner in zip(kernels, owners, strict=True)
        if _product_of(layer, nodes) is not None
        for tensor in layer.inputs
    }
    found: dict[str, LayerShare] = {}
    for layer, owner in zip(kernels, owners, strict=True):
        given = [(readers.get(tensor.name, owner), bytes_of(tensor, layer)) for tensor in layer.outputs]
        own = sum(bytes_of(tensor, layer) for tensor in (*layer.inputs, *layer.constants))
        own += sum(size for reader, size in given if reader == owner)
        _add(found, owner, _share(own, flops_of(layer), peaks, kernels=1))
        for reader, size in given:
            if reader != owner:
                _add(found, reader, _share(size, {}, peaks, kernels=0))
    return found


def compared(
    built: Mapping[str, LayerShare], other: Mapping[str, LayerShare], layers: Sequence[str]
) -> list[LayerCost]:
    """Each of the given layers on both sides, where both have it."""
    return [
        LayerCost(layer=name, built=built[name], unquantised=other[name], pays=payoff(built[name], other[name]))
        for name in layers
        if name in built and name in other
    ]


def payoff(built: LayerShare, other: LayerShare) -> Payoff:
    """Whether INT8 is predicted to pay: by time where that is known, else by kernels and bytes where they agree."""
    if built.microseconds is not None and other.microseconds is not None:
        change = built.microseconds - other.microseconds
        if abs(change) < _LEAST_DIFFERENCE * other.microseconds:
            return "no difference"
        return "yes" if change < 0 else "no"
    fewer = (built.kernels - other.kernels, built.bytes_moved - other.bytes_moved)
    if max(fewer) <= 0:
        return "yes"
    return "no" if min(fewer) >= 0 else "unknown"


def _owners(kernels: Sequence[EngineLayer], nodes: Mapping[str, str]) -> Iterator[str]:
    products = [_product_of(layer, nodes) for layer in kernels]
    owner = next((found for found in products if found is not None), "")
    for found in products:
        owner = owner if found is None else found
        yield owner


def _product_of(layer: EngineLayer, nodes: Mapping[str, str]) -> str | None:
    if classify(layer).role != "gemm":
        return None
    return next((nodes[node] for node in layer.onnx_nodes if node in nodes), None)


def _share(moved: int, flops: Mapping[str, int], peaks: Peaks | None, *, kernels: int) -> LayerShare:
    return LayerShare(
        kernels=kernels,
        bytes_moved=moved,
        flops=dict(flops),
        microseconds=None if peaks is None else max(peaks.microseconds_to_move(moved), peaks.microseconds_for(flops)),
    )


def _add(found: dict[str, LayerShare], name: str, more: LayerShare) -> None:
    before = found.get(name)
    if before is None:
        found[name] = more
        return
    known = before.microseconds is not None and more.microseconds is not None
    types = {**before.flops, **more.flops}
    found[name] = LayerShare(
        kernels=before.kernels + more.kernels,
        bytes_moved=before.bytes_moved + more.bytes_moved,
        flops={kind: before.flops.get(kind, 0) + more.flops.get(kind, 0) for kind in sorted(types)},
        microseconds=(before.microseconds or 0) + (more.microseconds or 0) if known else None,
    )
