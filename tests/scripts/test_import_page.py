"""docs/import.md: its table is what benchmarks/peers/import_table.py makes of the rows beside the fixtures."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gpusq_deploy.benchmarks.peers.import_table import FLOATS, HEAD, Measured, Row, line_of, measured, rows_of

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
ROWS = rows_of(FIXTURES / "imports_ranges.json")
PAGE = (ROOT / "docs" / "import.md").read_text("utf-8").splitlines()
FIGURES = msgspec.json.decode((ROOT / "benchmarks" / "results" / "import_table.json").read_bytes(), type=list[Measured])


def test_the_table_is_made_of_every_row_and_of_the_figures_that_are_kept() -> None:
    start = PAGE.index(HEAD[0])
    lines = PAGE[start + 2 : start + 2 + len(ROWS)]
    figures = [FIGURES[at : at + len(FLOATS)] for at in range(0, len(FIGURES), len(FLOATS))]
    assert lines == [line_of(row, found) for row, found in zip(ROWS, figures, strict=True)]
    assert PAGE[start + 2 + len(ROWS) :][:1] in ([], [""])


@pytest.mark.slow
@pytest.mark.parametrize(("row", "kept"), list(zip(ROWS, FIGURES[:: len(FLOATS)], strict=True))[:1], ids=["first"])
def test_the_figures_are_those_that_are_measured(row: Row, kept: Measured) -> None:
    found = measured(row, FIXTURES, "fp32")
    # How float32 sums are ordered differs by machine: what is equal but for that is far above 100 dB on each.
    assert min(found.sqnr_db or 0, kept.sqnr_db or 0) > 100
    assert (found.top1_agreement, found.refused) == (1, None)
