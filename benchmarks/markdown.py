"""Parts of a page in Markdown: of a job's summary, and those of the documentation that are written by programs."""

from __future__ import annotations

from collections.abc import Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """Lines of a table; with `numbers`, every column but the last is aligned to the right."""
    rule = "---:" if numbers else "---"
    rules = (*(rule,) * (len(headings) - 1), "---")
    return ["| " + " | ".join(row) + " |" for row in (headings, rules, *rows)]


def with_part(page: str, begin: str, end: str, part: str) -> str | None:
    """A page with another text between two marks, which stay; None where it lacks one of them."""
    before, first, rest = page.partition(begin)
    _, last, after = rest.partition(end)
    return f"{before}{begin}{part}{end}{after}" if first and last else None


def code(text: str) -> str:
    """A name as code, in one line."""
    return f"`{text.replace('`', chr(39)).replace(chr(10), ' ')}`"


def word_for_word(text: str) -> str:
    """Text that Markdown shows as it is: names have bars and underscores in them."""
    return "".join(f"\\{letter}" if letter in r"\|_*<>`[]" else letter for letter in text.replace("\n", " "))
