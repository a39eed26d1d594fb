"""How a repair looks on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpusq_deploy.artifacts import Permuted, Repair


def print_repair(repair: Repair) -> None:
    """What was changed and what was left alone, line by line, on stdout."""
    for line in _lines(repair):
        click.echo(line)


def _lines(repair: Repair) -> Iterator[str]:
    yield from (_permuted_line(permuted) for permuted in repair.permuted)
    for layer in repair.near_misses:
        yield (
            f"near misses of {layer.layer}: {layer.zeroed} values set to zero, {layer.groups} groups repaired; the "
            f"largest {layer.largest:.3g} ({layer.largest_ratio:.2g} of its row's largest), in all {layer.total:.3g}, "
            f"the weight's norm changed by {layer.relative_norm:.2g}"
        )
    for declined in repair.declined:
        yield f"left alone: {declined.kind} of {declined.place}: {declined.reason}"
    yield from repair.notes
    if repair.proof is not None:
        if repair.proof.permutation is not None:
            yield f"permuted, the model's output differs by {repair.proof.permutation:.1g} of its largest (float64)"
        yield f"repaired, the model's output differs by {repair.proof.whole:.2g} of its largest"
    yield f"{repair.source} is as it was" if repair.file else f"nothing to repair in {repair.source}: no file written"


def _permuted_line(permuted: Permuted) -> str:
    channels, (before, after), kept = permuted.channels, permuted.violations, permuted.kept
    found = "valid again" if permuted.found == "valid pattern" else "more magnitude kept"
    limit = "" if permuted.settled else " (the search stopped at its limit)"
    return (
        f"{channels.size} {channels.kind} of {channels.place or 'the model'} permuted in {len(channels.axes)} tensors, "
        f"{found}: broken groups {before} to {after}, 2:4 keeps {kept[0]:.2%} to {kept[1]:.2%}{limit}"
    )
