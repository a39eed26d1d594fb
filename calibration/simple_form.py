"""The graph that calibration looks at: the simple form, which doesn't depend on the rewrites that a build keeps.

Rewrites for speed leave each layer's input the same numbers, in another order or under another name. But sums in front
of it are taken otherwise, so the last bits differ. Ranges of the simple form are the same whichever command finds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts import CalibrationTable, TensorRange
from gpusq_deploy.calibration.moments import ChannelMoments
from gpusq_deploy.graph import GraphLayer, weighted_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class SimpleForm:
    """A graph before its rewrites for speed, and what became of its layers.

    Attributes:
        model: The graph.
        parts: By node of the built form that is several of this one's: those. All others keep their names.
    """

    model: ir.Model
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def counterparts(self, layers: Sequence[GraphLayer]) -> Counterparts:
        """Where layers of the built form stand in this one."""
        known = {layer.node: layer for layer in weighted_layers(self.model)}
        return Counterparts(
            by_node={
                layer.node: tuple(known[node] for node in self.parts.get(layer.node, (layer.node,))) for layer in layers
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Counterparts:
    """Layers of the simple form, by node of the layer that they become."""

    by_node: Mapping[str, tuple[GraphLayer, ...]]

    @property
    def layers(self) -> tuple[GraphLayer, ...]:
        """All of them, in the order of what they become."""
        return tuple(part for parts in self.by_node.values() for part in parts)

    def layers_of(self, layers: Sequence[GraphLayer]) -> tuple[GraphLayer, ...]:
        """Those that become these."""
        return tuple(part for layer in layers for part in self.by_node[layer.node])

    def input_of(self, layer: GraphLayer) -> str:
        """The simple form's tensor that a layer of the built form reads: its parts read one."""
        return self.by_node[layer.node][0].input

    def carried(self, table: CalibrationTable, layers: Sequence[GraphLayer]) -> CalibrationTable:
        """The simple form's ranges, for the inputs of those layers of the built form."""
        known = table.by_tensor()
        ranges: dict[str, TensorRange] = {}
        for layer in layers:
            found = known[self.input_of(layer)]
            ranges.setdefault(layer.input, msgspec.structs.replace(found, tensor=layer.input, layer=layer.layer))
        return msgspec.structs.replace(table, ranges=tuple(ranges.values()))

    def moments(self, seen: Mapping[str, ChannelMoments], layers: Sequence[GraphLayer]) -> dict[str, ChannelMoments]:
        """What was seen of the simple form's channels, by the tensors that those layers of the built form read."""
        return {layer.input: seen[name] for layer in layers if (name := self.input_of(layer)) in seen}
