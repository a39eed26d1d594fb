"""The drift map on a terminal: what leaves each block, and each layer of the noisiest, against the float graph."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from gpusq_deploy.artifacts.receipt import Drift, Verification
from gpusq_deploy.wording import counted

_POINTED_AT = 3


def drift_tables(verification: Verification) -> Iterator[Table]:
    """One table for the blocks, with the noisiest marked, and one for the layers of the noisiest; none without them."""
    noisiest = [block.module for block in verification.noisiest(_POINTED_AT)]
    if verification.blocks:
        yield _table(
            f"drift behind each block, {counted(verification.images, 'sample')}", verification.blocks, noisiest
        )
    if verification.layers:
        title = f"drift behind each layer of the noisiest, {counted(verification.layer_images, 'sample')}"
        worst = min(verification.layers, key=lambda layer: layer.sqnr_db)
        yield _table(title, verification.layers, [worst.module])


def drift_line(verification: Verification, layer: str) -> str | None:
    """What leaves one layer or block, in words; None where it wasn't looked at."""
    found = next((entry for entry in (*verification.layers, *verification.blocks) if entry.module == layer), None)
    if found is None:
        return None
    return f"SQNR {found.sqnr_db:.1f} dB (median of samples {found.median_sqnr_db:.1f}), cosine {found.cosine:.5f}"


def _table(title: str, rows: tuple[Drift, ...], marked: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("module", "SQNR dB", "median dB", "cosine", ""):
        table.add_column(heading, justify="left" if heading in {"module", ""} else "right", no_wrap=True)
    for row in rows:
        place = marked.index(row.module) if row.module in marked else None
        pointer = "" if place is None else "<- most noise" if place == 0 else f"<- {place + 1}."
        table.add_row(row.module, f"{row.sqnr_db:.1f}", f"{row.median_sqnr_db:.1f}", f"{row.cosine:.5f}", pointer)
    return table
