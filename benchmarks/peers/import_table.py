"""The table of docs/import.md: files that producers' libraries made, built, and held against the producers' outputs.

    PYTHONPATH=tests/support python -m benchmarks.peers.import_table ROWS.json … > table.md

A row is data: who wrote the file, how it is built, and the .npz of the producer's own inputs and outputs beside it. A
file of rows lies beside the files that it names.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import msgspec

import gpusq_deploy
from gpusq_deploy.artifacts import FloatPrecision, QuantizedPrecision

_FLOATS: tuple[FloatPrecision, ...] = ("fp32", "fp16")


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


def measured(row: Row, folder: Path, float_type: FloatPrecision) -> str:
    """SQNR of the built graph to the producer's outputs and top-1 agreement, in words; why not where there is none."""
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
            return f"refused: {error.what}"
    found = next((each for each in bundle.receipt.producer if each.source == row.expected), None)
    if found is None or found.outputs[0].sqnr_db is None:
        return "not compared"
    agreement = "" if found.top1_agreement is None else f", {found.top1_agreement:.0%}"
    return f"{found.outputs[0].sqnr_db:.1f} dB{agreement}"


def table(files: list[Path]) -> str:
    """All rows as a table in Markdown."""
    lines = ["| producer | file | what is taken | FP32 around it | FP16 around it |", "|---|---|---|---|---|"]
    for path in files:
        for row in rows_of(path):
            figures = " | ".join(measured(row, path.parent, float_type) for float_type in _FLOATS)
            lines.append(f"| {row.producer} | {row.what} | {row.taken} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([Path(name) for name in sys.argv[1:]]))
