"""Tables on stdout: fitted to a terminal, at full width in a file or a pipe, and never without their names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

# A file has no width: no line of ours is as long.
_ENDLESS = 100_000
# On a narrow terminal names and sentences are folded to no less than this.
_LEAST = 16
# What rich draws around a cell: two spaces and a line, and one more line for the table.
_FRAME = 3


def result_console() -> Console:
    """Stdout: as wide as the terminal, and as wide as it takes where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=_ENDLESS)


def print_rows(
    console: Console,
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    prose: Collection[str] = (),
) -> None:
    """A table whose first column are names: these fold where there is little room, and nothing is ever cut.

    A terminal that is too narrow even so gets whole lines, and breaks them by itself.

    Args:
        console: Where to.
        title: Above it.
        headings: One for each column.
        rows: Cells, as plain text.
        right: Headings of the columns that are flush right.
        prose: Headings of the columns that hold sentences, which may be wrapped.
    """
    longest = [max(cell_len(row[index]) for row in (headings, *rows)) for index in range(len(headings))]
    foldable = [index == 0 or heading in prose for index, heading in enumerate(headings)]
    least = [min(size, _LEAST) if folds else size for size, folds in zip(longest, foldable, strict=True)]
    needed = _width(least)
    if needed > console.width:
        least, needed = longest, _width(longest)
    table = Table(title=Text(title), title_justify="left")
    for index, heading in enumerate(headings):
        justify: Literal["left", "right"] = "right" if heading in right else "left"
        wrap = foldable[index]
        table.add_column(heading, no_wrap=not wrap, overflow="fold", min_width=least[index], justify=justify)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    before, console.width = console.width, max(console.width, needed)
    _print(console, table)
    console.width = before


def print_pairs(console: Console, title: str, rows: Sequence[tuple[str, str]], *, bold: Collection[str] = ()) -> None:
    """What is said of each of several things, one below the other.

    Args:
        console: Where to.
        title: Above them; empty for none.
        rows: The thing, and what is said of it, as plain text.
        bold: Things that must be seen.
    """
    table = Table(title=Text(title) if title else None, title_justify="left", show_header=False, box=None)
    table.add_column(no_wrap=True, min_width=max((cell_len(label) for label, _ in rows), default=0))
    table.add_column(overflow="fold")
    for label, text in rows:
        style = "bold" if label in bold else ""
        table.add_row(Text(label, style=style), Text(text, style=style))
    _print(console, table)


def _width(columns: Sequence[int]) -> int:
    return sum(size + _FRAME for size in columns) + 1


def _print(console: Console, content: RenderableType) -> None:
    """Rich fills lines up with spaces, which a file needs none of."""
    if console.is_terminal:
        console.print(content)
        return
    with console.capture() as captured:
        console.print(content)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)
