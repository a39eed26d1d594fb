"""Parts of the documentation that scripts write: what stands between two marks of a page."""

from __future__ import annotations

from pathlib import Path


def put_part(page: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two marks, which stay.

    Raises:
        SystemExit: The page lacks a mark, and is left as it is.
    """
    before, first, rest = page.read_text("utf-8").partition(begin)
    _, last, after = rest.partition(end)
    if not (first and last):
        raise SystemExit(f"{page} has no part between {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")
