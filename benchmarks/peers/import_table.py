"""The table of docs/import.md: files that producers' libraries made, built, and held against the producers' outputs.

    PYTHONPATH=tests/support python -m benchmarks.peers.import_table ROWS.json … --json FIGURES.json > table.md

A row is data: who wrote the file, how it is built, and the .npz of the producer's own inputs and outputs beside it. A
file of rows lies beside the files that it names.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import msgspec

import gpusq_deploy
from gpusq_deploy.artifacts import FloatPrecision, QuantizedPrecision

FLOATS: tuple[FloatPrecision, ...] = ("fp32", "fp16")
HEAD = ("| producer | file | what is taken | FP32 around it | FP16 around it |", "|---|---|---|---|---|")


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file: `taken` says in words what of it is used; without `expected` nothing is compared."""

    producer: str
    what: str
    taken: str
    file: str
    arch: str
    arch_args: dict[str, int | float | str | bool] = {}
    precision: QuantizedPrecision | None = "int8"
    expected: str | None = None


def rows_of(path: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        msgspec.ValidationError: It holds something else.
    """
    return msgspec.json.decode(path.read_bytes(), type=list[Row])


class Measured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One build of a row: SQNR, dB, to the producer's outputs and top-1 agreement, a share; or why it was refused."""

    file: str
    precision: QuantizedPrecision | None
    expected: str | None
    float_type: FloatPrecision
    sqnr_db: float | None = None
    top1_agreement: float | None = None
    refused: str | None = None

    @property
    def words(self) -> str:
        """For the table."""
        if self.refused is not None:
            return f"refused: {self.refused}"
        if self.sqnr_db is None:
            return "not compared"
        agreement = "" if self.top1_agreement is None else f", {self.top1_agreement:.0%}"
        return f"{self.sqnr_db:.1f} dB{agreement}"


def measured(row: Row, folder: Path, float_type: FloatPrecision) -> Measured:
    """Build a row's file and hold it against the producer's outputs."""
    made = Measured(file=row.file, precision=row.precision, expected=row.expected, float_type=float_type)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            bundle = gpusq_deploy.build(
                folder / row.file,
                out=Path(scratch) / "bundle",
                precision=row.precision,
                targets=(),
                arch=row.arch,
                arch_args=row.arch_args,
                float_type=float_type,
                expect_outputs=None if row.expected is None else folder / row.expected,
            )
        except gpusq_deploy.GpusqError as error:
            return msgspec.structs.replace(made, refused=error.what)
    found = next((each for each in bundle.receipt.producer if each.source == row.expected), None)
    if found is None:
        return made
    return msgspec.structs.replace(made, sqnr_db=found.outputs[0].sqnr_db, top1_agreement=found.top1_agreement)


def line_of(row: Row, figures: list[Measured]) -> str:
    """A row of the table, in Markdown."""
    return " | ".join(
        [f"| {row.producer}", row.what, row.taken, *(each.words for each in figures[:-1]), f"{figures[-1].words} |"]
    )


def main() -> None:
    """Measure all rows; the table goes to stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, nargs="+", metavar="ROWS.json")
    parser.add_argument("--json", type=Path, help="keep the figures there")
    options = parser.parse_args()
    print(*HEAD, sep="\n")
    kept: list[Measured] = []
    for path in options.rows:
        for row in rows_of(path):
            figures = [measured(row, path.parent, float_type) for float_type in FLOATS]
            print(line_of(row, figures), flush=True)
            kept += figures
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")


if __name__ == "__main__":
    main()
