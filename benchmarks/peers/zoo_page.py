"""The tables of docs/zoo.md, from benchmarks/results/zoo.json.

python benchmarks/peers/zoo_page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpusq_deploy.benchmarks.peers.page import put_part
from gpusq_deploy.benchmarks.peers.zoo_cards import VARIANTS

_ROOT = Path(__file__).resolve().parents[2]
RESULTS = _ROOT / "benchmarks" / "results" / "zoo.json"
PAGE = _ROOT / "docs" / "zoo.md"
_BEGIN, _END = "<!-- tables: made by benchmarks/peers/zoo_page.py -->", "<!-- tables: end -->"
_NOT_YET = "not measured yet"

Row = dict[str, Any]


def write_page(results: Path = RESULTS) -> None:
    """Replace what stands between the two marks."""
    put_part(PAGE, _BEGIN, _END, f"\n{tables(results)}\n")


def tables(results: Path = RESULTS) -> str:
    """Everything between the two marks."""
    rows: list[Row] = json.loads(results.read_text("utf-8"))["models"]
    agreement = (_agreement(rows),) if any("agreement" in row for row in rows) else ()
    parts = (_measured(rows), _sizes(rows), *agreement, _sources(rows), _commands(rows))
    return "\n\n".join("\n".join(part) for part in parts)


def _table(*headings: str) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"


def _measured(rows: list[Row]) -> Iterator[str]:
    yield "### Accuracy\n"
    machines = ", ".join(sorted({row["environment"]["cpu"] for row in rows}))
    yield f"In brackets: the difference from float in points, and its 95 % interval. Measured on: {machines}.\n"
    yield from _table("model", "measure", "n", "float", *VARIANTS)
    for row in rows:
        if not row["scores"]:
            yield _line([row["model"], "accuracy", 0, *4 * (_NOT_YET,)])
        for measure, scores in row["scores"].items():
            cells = [row["model"], measure, row["n"], f"{scores['float']['value']:.2%}"]
            yield _line([*cells, *(_score(variant, scores) for variant in VARIANTS)])
        if "compressed" in row:
            yield _line(_compressed(row))
        for name, key, form in (("cosine to float", "cosine", ".4f"), ("SQNR of INT8, dB", "sqnr_db", ".1f")):
            found = row.get(key, {})
            if found:
                seen = row["n"] if key == "cosine" else "fitted"
                yield _line([row["model"], name, seen, "", *(_plain(each, found, form) for each in VARIANTS)])


def _compressed(row: Row) -> list[Any]:
    """Of float models: gpusq-compress scores what it writes, before any build."""
    found = row["compressed"]
    cells = (f"{found[variant]:.4f}, in float" if variant in found else "" for variant in VARIANTS)
    name = f"gpusq-compress's own {found['measure']} of 2:4 in float, permuted, on images that it held out"
    return [row["model"], name, found["n"], f"{found['float']:.4f}", *cells]


def _score(variant: str, scores: Row) -> str:
    if variant not in scores:
        return _NOT_YET
    value, *points = (100 * scores[variant][key] for key in ("value", "difference", "low", "high"))
    return "{:.2f}% ({:+.2f} [{:+.2f}, {:+.2f}])".format(value, *points)


def _plain(variant: str, found: Row, form: str) -> str:
    value = found.get(variant)
    return _NOT_YET if value is None else f"{value:{form}}"


def _sizes(rows: list[Row]) -> Iterator[str]:
    yield "### Sizes\n"
    yield "MB of the float32 checkpoint and of each `model.onnx`, which stores the zeros of 2:4 (`--pack` doesn't).\n"
    yield from _table("model", "float", *VARIANTS)
    for row in (each for each in rows if each["bytes"]):
        found = row["bytes"]
        cells = (_NOT_YET if v not in found else f"{found[v] / 1e6:.1f}" for v in VARIANTS)
        yield _line([row["model"], f"{found['float'] / 1e6:.1f}", *cells])


def _agreement(rows: list[Row]) -> Iterator[str]:
    yield "### Against the package's own code\n"
    yield from _table("model", "variant", "readings", "equal")
    for row in rows:
        for name, found in row.get("agreement", {}).items():
            yield _line([row["model"], name, found["n"], found["agree"]])


def _sources(rows: list[Row]) -> Iterator[str]:
    yield "### Packages and licences\n"
    yield from _table("model", "package", "licence as stated", "read in", "judged on")
    for row in rows:
        cells = (row["model"], f"`{row['package']}`", row["licence"], row["licence_read_in"], row["data"])
        yield _line(list(cells))


def _commands(rows: list[Row]) -> Iterator[str]:
    yield "### Commands\n"
    yield "In the working folder of `zoo.py`, which writes the checkpoints and the data first.\n"
    for row in (each for each in rows if each["commands"]):
        yield f"{row['model']}:\n"
        yield from (f"    {command}" for command in row["commands"])
        yield ""


def _line(cells: list[Any]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


if __name__ == "__main__":
    write_page()
