"""What deciders need to see of a graph's tensors, and what one pass over the calibration set showed of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from gpusq_deploy.artifacts import AMAX, CalibrationTable, Calibrator
from gpusq_deploy.calibration.moments import ChannelMoments
from gpusq_deploy.graph import GraphLayer


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeNeed:
    """One range to find.

    Attributes:
        label: Whose tensor it is, in the table: a layer's name, or a module and a role.
        calibrator: How.
        readers: Layers whose output error the calibrator weighs; only `output-error` looks at them.
    """

    label: str
    calibrator: Calibrator = AMAX
    readers: tuple[GraphLayer, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What is to be seen of one graph.

    Attributes:
        ranges: By tensor.
        moments: Tensors [..., K] whose channels are looked at, and whether their second moments are wanted.
        magnitudes: Whether the largest magnitude of every float tensor is wanted, on a few samples.
    """

    ranges: Mapping[str, RangeNeed] = field(default_factory=dict[str, RangeNeed])
    moments: Mapping[str, bool] = field(default_factory=dict[str, bool])
    magnitudes: bool = False

    def __or__(self, other: Needs) -> Needs:
        """Both; of two needs of one range the first is kept.

        Raises:
            ValueError: They want the range of one tensor by two calibrators.
        """
        for tensor in self.ranges.keys() & other.ranges.keys():
            if self.ranges[tensor].calibrator != other.ranges[tensor].calibrator:
                raise ValueError(f"tensor {tensor} needs ranges by two calibrators: observe twice")
        squares = {tensor: wanted or self.moments.get(tensor, False) for tensor, wanted in other.moments.items()}
        return Needs(
            ranges={**other.ranges, **self.ranges},
            moments={**self.moments, **squares},
            magnitudes=self.magnitudes or other.magnitudes,
        )

    @property
    def readers(self) -> tuple[GraphLayer, ...]:
        """The layers whose inputs need a range."""
        return tuple(reader for need in self.ranges.values() for reader in need.readers)

    def __bool__(self) -> bool:
        """Whether anything is to be seen."""
        return bool(self.ranges or self.moments or self.magnitudes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Observations:
    """What was seen of one graph's tensors.

    Attributes:
        needs: What was asked.
        table: Ranges, and what they were found on; None where the data wasn't looked at.
        moments: Of channels, by tensor.
        magnitudes: The largest finite magnitude by tensor, on a few samples; empty where nobody asked.
        looked: What `magnitudes` were seen on, in words; empty where nobody asked.
    """

    needs: Needs = field(default_factory=Needs)
    table: CalibrationTable | None = None
    moments: Mapping[str, ChannelMoments] = field(default_factory=dict[str, ChannelMoments])
    magnitudes: Mapping[str, float] = field(default_factory=dict[str, float])
    looked: str = ""

    def lacking(self, needs: Needs) -> Needs:
        """What of some needs this doesn't answer."""
        seen = self.needs
        return Needs(
            ranges={
                tensor: need
                for tensor, need in needs.ranges.items()
                if tensor not in seen.ranges or seen.ranges[tensor].calibrator != need.calibrator
            },
            moments={
                tensor: squares
                for tensor, squares in needs.moments.items()
                if tensor not in seen.moments or squares > seen.moments[tensor]
            },
            magnitudes=needs.magnitudes and not seen.magnitudes,
        )

    def joined(self, other: Observations) -> Observations:
        """Both, for one graph and one calibration set; where both saw a tensor, `other` counts."""
        tables = [table for table in (self.table, other.table) if table is not None]
        kept = {tensor: need for tensor, need in self.needs.ranges.items() if tensor not in other.needs.ranges}
        return Observations(
            needs=Needs(ranges=kept, moments=self.needs.moments, magnitudes=self.needs.magnitudes) | other.needs,
            table=_joined(tables) if tables else None,
            moments={**self.moments, **other.moments},
            magnitudes=other.magnitudes or self.magnitudes,
            looked=other.looked or self.looked,
        )


def needs_of_layers(layers: Sequence[GraphLayer], calibrators: Mapping[str, Calibrator] | None = None) -> Needs:
    """The ranges of the inputs of layers, by calibrators by tensor; the largest magnitude where none is named."""
    by_tensor: dict[str, list[GraphLayer]] = {}
    for layer in layers:
        by_tensor.setdefault(layer.input, []).append(layer)
    return Needs(
        ranges={
            tensor: RangeNeed(
                label=readers[0].layer,
                calibrator=(calibrators or {}).get(tensor, AMAX),
                readers=tuple(readers),
            )
            for tensor, readers in by_tensor.items()
        }
    )


def _joined(tables: Sequence[CalibrationTable]) -> CalibrationTable:
    """The ranges of all, about the most samples that any saw: a look for magnitudes alone sees few."""
    most = max(tables, key=lambda table: table.images)
    ranges = {entry.tensor: entry for table in tables for entry in table.ranges}
    observers = dict.fromkeys(name for table in tables for name in table.observer.split(", "))
    return msgspec.structs.replace(most, observer=", ".join(sorted(observers)), ranges=tuple(ranges.values()))
