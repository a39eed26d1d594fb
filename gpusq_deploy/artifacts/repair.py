"""What a repair changed, exactly, and what it left alone."""

from __future__ import annotations

from typing import Literal

from gpusq_deploy.artifacts.base import Value

HowFound = Literal["valid pattern", "most magnitude"]
ChannelKind = Literal["hidden channels", "value channels", "residual stream"]


class ChannelAxis(Value):
    """One axis of one tensor along which channels lie, the first of them at `start`."""

    tensor: str
    dim: int
    start: int = 0


class Channels(Value):
    """Channels of a model whose order is free: permuted in every tensor at once, the model stays the same function.

    Attributes:
        kind: What they are.
        place: The module that they live in; its output doesn't change. Empty for the whole model.
        size: How many.
        segment: They move only within segments of this many, such as heads.
        axes: Every tensor axis along which they lie.
        readers: Layers that contract over them: for those, their order decides which weights are one group of 2:4.
    """

    kind: ChannelKind
    place: str
    size: int
    segment: int
    axes: tuple[ChannelAxis, ...]
    readers: tuple[str, ...]


class Declined(Value):
    """What was left alone, and why."""

    kind: ChannelKind | Literal["near misses", "layer"]
    place: str
    reason: str


class NearMisses(Value):
    """Values of one layer that were set to zero because they were as good as zero.

    Attributes:
        layer: Name of the layer.
        tensor: Name of its weight.
        groups: Groups that became valid; left: groups that stay broken, untouched: they hold three larger values.
        zeroed: Number of values set to zero.
        largest: Largest magnitude of them; largest_ratio: largest against its row's largest.
        total: Sum of their magnitudes.
        norm: Frobenius norm of the change; relative_norm: against the weight's.
        places: (row, column) of the first few, in rows as the 2:4 check counts them.
    """

    layer: str
    tensor: str
    groups: int
    left: int
    zeroed: int
    largest: float
    largest_ratio: float
    total: float
    norm: float
    relative_norm: float
    places: tuple[tuple[int, int], ...]


class Permuted(Value):
    """Channels that were put into another order.

    Attributes:
        channels: Which.
        found: How the order was found: a pattern that is valid, or a search for the most magnitude.
        order: The channel at place i was at place `order[i]`.
        violations: Groups of the readers that broke 2:4, before and after. Near misses count as zero.
        kept: Share of the readers' summed magnitudes that 2:4 keeps, before and after.
        settled: False where the search came to its limit before its end.
    """

    channels: Channels
    found: HowFound
    order: tuple[int, ...]
    violations: tuple[int, int]
    kept: tuple[float, float]
    settled: bool


class Proof(Value):
    """Both models run on one input in float64: the largest difference relative to the largest output.

    Attributes:
        permutation: After permuting alone; None where nothing was.
        whole: After everything.
        batch: Samples of seeded noise.
    """

    permutation: float | None
    whole: float
    batch: int


class Repair(Value):
    """Everything that a repair did. The old file is as it was.

    `proof` is None where the architecture isn't known: then nothing can be run.
    """

    schema: Literal["gpusq.repair/1"] = "gpusq.repair/1"
    source: str
    source_digest: str
    file: str | None
    near_miss: float
    near_misses: tuple[NearMisses, ...]
    permuted: tuple[Permuted, ...]
    declined: tuple[Declined, ...]
    proof: Proof | None
    notes: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """True where anything was repaired."""
        return bool(self.near_misses or self.permuted)
