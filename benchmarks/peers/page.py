"""Parts of the documentation that scripts write: what stands between two marks of a page."""

from __future__ import annotations

from pathlib import Path

from gpusq_deploy.benchmarks.markdown import with_part


def put_part(page: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two marks, which stay.

    Raises:
        SystemExit: The page lacks a mark, and is left as it is.
    """
    found = with_part(page.read_text("utf-8"), begin, end, f"\n{text}\n")
    if found is None:
        raise SystemExit(f"{page} has no part between {begin} and {end}")
    page.write_text(found, "utf-8")
