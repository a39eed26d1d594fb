"""The drift map on a terminal: what leaves each block, and each layer of the noisiest, against the float graph."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from gpusq_deploy.artifacts import Drift, Verification
from gpusq_deploy.bundle.report.tables import print_rows
from gpusq_deploy.text import counted

_POINTED_AT = 3


def print_drift(console: Console, verification: Verification) -> None:
    """One table for the blocks, with the noisiest marked, and one for the layers of the noisiest; none without them."""
    noisiest = [block.module for block in verification.noisiest(_POINTED_AT)]
    if verification.blocks:
        title = f"drift behind each block, {counted(verification.images, 'sample')}"
        _print(console, title, verification.blocks, noisiest)
    if verification.layers:
        title = f"drift behind each layer of the noisiest, {counted(verification.layer_images, 'sample')}"
        worst = min(verification.layers, key=lambda layer: layer.sqnr_db)
        _print(console, title, verification.layers, [worst.module])


def drift_line(verification: Verification, layer: str) -> str | None:
    """What leaves one layer or block, in words; None where it wasn't looked at."""
    found = next((entry for entry in (*verification.layers, *verification.blocks) if entry.module == layer), None)
    if found is None:
        return None
    return f"SQNR {found.sqnr_db:.1f} dB (median of samples {found.median_sqnr_db:.1f}), cosine {found.cosine:.5f}"


def _print(console: Console, title: str, rows: Sequence[Drift], marked: list[str]) -> None:
    figures = ("SQNR dB", "median dB", "cosine")
    cells: list[tuple[str, ...]] = []
    for row in rows:
        place = marked.index(row.module) if row.module in marked else None
        pointer = "" if place is None else "<- most noise" if place == 0 else f"<- {place + 1}."
        cells.append((row.module, f"{row.sqnr_db:.1f}", f"{row.median_sqnr_db:.1f}", f"{row.cosine:.5f}", pointer))
    print_rows(console, title, ("module", *figures, ""), cells, right=figures)
