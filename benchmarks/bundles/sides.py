"""One side of a comparison: a bundle, the nodes of its graph, and what is known of an engine's kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gpusq_deploy.artifacts import MODEL, BuiltEngine, EngineLayer, Value
from gpusq_deploy.benchmarks.bundles.kernel_match import covered
from gpusq_deploy.bundle import Bundle, all_works, kernel_works_of, predicted_kernel_times
from gpusq_deploy.engines import classify, kernels_of
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import NodeFact, map_model, node_facts

_Figure = TypeVar("_Figure", int, float)


class KernelFact(Value):
    """One kernel of an engine.

    Attributes:
        name: The builder's.
        role: A matrix product, fused attention, or neither.
        precision: What it multiplies in; empty where it multiplies nothing.
        types: Element types of its inputs, then of its outputs, each once.
        sparse: "2:4 kernel" where sparse kernels are known to run, "2:4 weights" where only its weights are, "dense"
            of other products; else empty.
        tactic: The kernel itself, where the builder names it.
        operators: ONNX operators that it computes, each once.
        bytes_moved: At the bundle's optimal batch; None where that isn't known.
        predicted_us: Microseconds by the roofline of docs/predict.md; None where there is no prediction.
    """

    name: str
    role: str
    precision: str
    types: tuple[str, str]
    sparse: str
    tactic: str
    operators: tuple[str, ...]
    bytes_moved: int | None
    predicted_us: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """The nodes of a bundle's model in order, and why they aren't known."""

    nodes: tuple[NodeFact, ...]
    unknown: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSide:
    """An engine's kernels; `covers` and `facts` are of each.

    `bytes_moved` and `predicted_us` are of the engine of the optimal batch alone, None where they aren't known;
    `unsized` says why some of that isn't known of single kernels.
    """

    kernels: tuple[EngineLayer, ...]
    covers: tuple[frozenset[str], ...]
    facts: tuple[KernelFact, ...]
    nodes: Mapping[str, NodeFact]
    bytes_moved: int | None = None
    predicted_us: float | None = None
    unsized: str = ""

    def module(self, place: int) -> str:
        """Where a kernel's work comes from: of its product, else of most of its nodes; empty where nobody knows."""
        found = [self.nodes[name] for name in self.kernels[place].onnx_nodes if name in self.covers[place]]
        products = [node for node in found if node.layer] or found
        modules = Counter(node.layer or node.module for node in products if node.layer or node.module)
        return max(modules, key=lambda name: modules[name], default="")


@dataclass(frozen=True, kw_only=True, slots=True)
class EnginePair:
    """Both engines of a target; `sized` where both sides' bytes are of one batch, `static` where they take no other."""

    engines: tuple[BuiltEngine, BuiltEngine]
    base: EngineSide
    head: EngineSide
    sized: bool
    static: bool

    @property
    def target(self) -> str:
        """Its name."""
        return self.engines[0].target

    @property
    def bytes_moved(self) -> tuple[int | None, int | None]:
        """Of all kernels at the optimal batch; None where that isn't known, or the batches differ."""
        return (self.base.bytes_moved, self.head.bytes_moved) if self.sized else (None, None)

    @property
    def predicted_us(self) -> tuple[float | None, float | None]:
        """Microseconds of all kernels; None as above."""
        return (self.base.predicted_us, self.head.predicted_us) if self.sized else (None, None)


def bytes_moved(kernels: Sequence[KernelFact]) -> int | None:
    """Of all of them; None where one isn't known, or there is none."""
    return _sum([fact.bytes_moved for fact in kernels])


def predicted_us(kernels: Sequence[KernelFact]) -> float | None:
    """Microseconds of all of them; None where one isn't known, or there is none."""
    return _sum([fact.predicted_us for fact in kernels])


def _sum(figures: Sequence[_Figure | None]) -> _Figure | None:
    known = [figure for figure in figures if figure is not None]
    return sum(known[1:], known[0]) if known and len(known) == len(figures) else None


def graph_of(bundle: Bundle) -> Graph:
    """The nodes of a bundle's model.onnx; none where it can't be read, with the reason."""
    try:
        return Graph(nodes=node_facts(map_model(bundle.path / MODEL)))
    except GpusqError as error:
        return Graph(nodes=(), unknown=f"{MODEL} can't be read: {error.what}")


def engine_side(bundle: Bundle, engine: BuiltEngine, graph: Graph) -> EngineSide:
    """What is known of one engine's kernels."""
    nodes = {node.name: node for node in graph.nodes}
    kernels = kernels_of(engine.engine_layers)
    works, unsized = kernel_works_of(bundle, engine)
    times = predicted_kernel_times(engine, works)
    whole, _ = all_works(bundle, engine)
    moved = [work.weight_bytes + work.moved_bytes for work in whole]
    predicted = predicted_kernel_times(engine, {str(place): work for place, work in enumerate(whole)})
    states = _sparse_states(engine)
    facts = (
        KernelFact(
            name=kernel.name,
            role=(found := classify(kernel)).role,
            precision=found.precision or "",
            types=_types(kernel),
            sparse=states.get(kernel.name, "") if found.role == "gemm" else "",
            tactic=kernel.tactic,
            operators=tuple(dict.fromkeys(nodes[name].operator for name in kernel.onnx_nodes if name in nodes)),
            bytes_moved=works[kernel.name].weight_bytes + works[kernel.name].moved_bytes
            if kernel.name in works
            else None,
            predicted_us=times.get(kernel.name),
        )
        for kernel in kernels
    )
    return EngineSide(
        kernels=kernels,
        covers=tuple(covered(kernels, nodes)),
        facts=tuple(facts),
        nodes=nodes,
        bytes_moved=sum(moved) if moved else None,
        predicted_us=sum(predicted.values()) if moved and len(predicted) == len(moved) else None,
        unsized=unsized,
    )


def _types(kernel: EngineLayer) -> tuple[str, str]:
    read, written = (sorted({tensor.dtype for tensor in side}) for side in (kernel.inputs, kernel.outputs))
    return ", ".join(read), ", ".join(written)


def _sparse_states(engine: BuiltEngine) -> dict[str, str]:
    """Of every kernel that carries a layer: what the receipt proves of it."""
    found: dict[str, str] = {}
    for layer in engine.layers:
        weights = "2:4 weights" if layer.sparse_weights_valid else "dense"
        state = "2:4 kernel" if layer.sparse_executed == "yes" else weights
        found.update(dict.fromkeys(layer.engine_layers, state))
    return found
