"""Tables lose nothing, however little room there is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gpusq_deploy.bundle.report.tables import print_pairs, print_rows, result_console

NAMES = ("vit.encoder.layer.11.attention.attention.query", "head")
ROWS = tuple((name, "11.2%", "int8 > fp16", "not [asked]") for name in NAMES)
HEADINGS = ("layer", "FLOPs", "type", "sparse")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_name_is_lost_on_a_terminal(width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    print_rows(console, "a title", HEADINGS, ROWS)
    text = stream.getvalue()
    assert "…" not in text
    cells = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    assert "".join(row[0].strip() for row in cells) == "".join(NAMES)
    assert "".join(row[3].strip() for row in cells) == "not [asked]" * 2
    assert console.width == width


def test_a_file_gets_whole_lines_whatever_columns_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    console = result_console()
    print_rows(console, "a title", HEADINGS, ROWS)
    print_pairs(console, "", [("note", "word " * 60), ("engine a100", "yes")])
    lines = capsys.readouterr().out.splitlines()
    assert sum(NAMES[0] in line and "not [asked]" in line for line in lines) == 1
    assert f" note         {('word ' * 60).strip()}" in lines
    assert all(line == line.rstrip() for line in lines)


def test_sentences_wrap_beside_names() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=60, color_system=None)
    print_rows(console, "", ("layer", "why"), [("head", "a reason of several words, " * 5)], prose=("why",))
    assert max(len(line) for line in stream.getvalue().splitlines()) <= 60
