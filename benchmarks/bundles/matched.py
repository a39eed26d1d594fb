"""Two bundles with their nodes and layers matched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpusq_deploy.artifacts import BuiltEngine
from gpusq_deploy.benchmarks.bundles.node_match import match_layers, match_nodes
from gpusq_deploy.benchmarks.bundles.sides import Graph, graph_of
from gpusq_deploy.bundle import Bundle


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """Both bundles, and what of one is what of the other."""

    base: Bundle
    head: Bundle
    graphs: tuple[Graph, Graph]
    nodes: Mapping[str, str]
    layers: Mapping[str, str]

    @property
    def engines(self) -> list[tuple[BuiltEngine, BuiltEngine]]:
        """The engines of each target that both have, by the target's name."""
        ours, theirs = ({engine.target: engine for engine in side.receipt.engines} for side in (self.base, self.head))
        return [(ours[target], theirs[target]) for target in sorted(ours.keys() & theirs.keys())]

    def as_base(self, layer: str) -> str:
        """A layer of head by the name that base has for it; its own where it is new, told from base's of that name."""
        if layer in self.layers:
            return self.layers[layer]
        return f"{layer} of head" if layer in self.layers.values() else layer


def matched(base: Bundle, head: Bundle) -> Matched:
    """Read both graphs and match their nodes and layers."""
    graphs = (graph_of(base), graph_of(head))
    nodes = match_nodes(graphs[0].nodes, graphs[1].nodes)
    layers = match_layers(graphs[0].nodes, graphs[1].nodes, nodes)
    return Matched(base=base, head=head, graphs=graphs, nodes=nodes, layers=layers)
