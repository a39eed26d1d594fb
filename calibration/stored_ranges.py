"""Ranges that were found before, for a build: what gpusq-calibrate wrote, and what a checkpoint records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from gpusq_deploy.artifacts import CalibrationTable, TensorRange, read_value
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import GraphLayer


def read_table(path: Path, *, model: str) -> CalibrationTable:
    """A stored table.

    Args:
        path: What gpusq-calibrate wrote.
        model: Digest of the checkpoint that is being built.

    Raises:
        GpusqError: Not such a file, or of another checkpoint.
    """
    table = read_value(path, CalibrationTable)
    if table.model != model:
        raise GpusqError(
            "the ranges were calibrated on another checkpoint",
            place=f"{path}: {table.model or 'of no known checkpoint'}, not {model}",
            hint="calibrate this checkpoint with gpusq-calibrate",
        )
    return table


def table_for_layers(table: CalibrationTable, layers: Sequence[GraphLayer], *, place: str) -> CalibrationTable:
    """The table under this graph's tensor names: another opset or batch names tensors otherwise, but not layers.

    Args:
        table: Stored ranges.
        layers: The layers that need a range.
        place: Where the table comes from.

    Raises:
        GpusqError: A layer's input has no range.
    """
    by_layer = {entry.layer: entry for entry in table.ranges}
    by_tensor = table.by_tensor()
    found: dict[str, TensorRange] = {}
    for layer in layers:
        if layer.layer in by_layer:
            found.setdefault(layer.input, msgspec.structs.replace(by_layer[layer.layer], tensor=layer.input))
    for layer in layers:
        if layer.input not in found and layer.input in by_tensor:
            found[layer.input] = by_tensor[layer.input]
    missing = [layer.layer for layer in layers if layer.input not in found]
    if missing:
        raise GpusqError(
            f"the stored ranges lack the inputs of {', '.join(missing[:3])}",
            place=place,
            hint="calibrate with the same --recipe that the build gets",
        )
    return msgspec.structs.replace(table, ranges=tuple(found.values()))


def table_from_recorded(
    recorded: Mapping[str, float],
    layers: Sequence[GraphLayer],
    *,
    source: str,
    origins: Mapping[str, str] | None = None,
) -> CalibrationTable:
    """A table from ranges that the checkpoint carries, by layer name.

    Two layers that read one tensor share its range: the larger of theirs. Ranges of other layers are left out.

    Args:
        recorded: amax of each layer's input.
        layers: The layers that need a range.
        source: The checkpoint.
        origins: Who recorded a layer's range, where known.

    Raises:
        GpusqError: A layer has no range.
    """
    missing = sorted({layer.layer for layer in layers} - set(recorded))
    if missing:
        raise GpusqError(
            f"the checkpoint's recorded ranges are missing for {', '.join(missing[:3])}",
            place=source,
            hint="add --calib FOLDER to calibrate those layers, or a recipe that leaves them float",
        )
    largest: dict[str, TensorRange] = {}
    for layer in layers:
        found = largest.get(layer.input)
        if found is None or recorded[layer.layer] > found.amax:
            largest[layer.input] = TensorRange(
                tensor=layer.input,
                layer=layer.layer,
                amax=recorded[layer.layer],
                origin=": ".join([f"recorded in {source}", *filter(None, [(origins or {}).get(layer.layer)])]),
            )
    return CalibrationTable(
        source=source, digest="", images=0, observer="recorded", ranges=tuple(largest[name] for name in largest)
    )
