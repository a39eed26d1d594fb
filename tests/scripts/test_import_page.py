"""docs/import.md: its table is what benchmarks/peers/import_table.py makes of the rows beside the fixtures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpusq_deploy.benchmarks.peers.import_table import Row, measured, rows_of

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
ROWS = rows_of(FIXTURES / "imports_ranges.json")
LINES = [
    line for line in (ROOT / "docs" / "import.md").read_text("utf-8").splitlines() if line.startswith("| ModelOpt")
]


def test_every_row_is_in_the_table() -> None:
    assert [line.split(" | ")[1:3] for line in LINES] == [[row.what, row.taken] for row in ROWS]


@pytest.mark.slow
@pytest.mark.parametrize(("row", "line"), list(zip(ROWS, LINES, strict=True))[:1], ids=["first"])
def test_the_figures_are_those_that_are_measured(row: Row, line: str) -> None:
    (told,) = re.findall(r"([\d.]+) dB, 100%", line.split(" | ")[3])
    (found,) = re.findall(r"([\d.]+) dB, 100%", measured(row, FIXTURES, "fp32"))
    # How float32 sums are ordered differs by machine: what is equal but for that is far above 100 dB on each.
    assert float(told) > 100 < float(found)
