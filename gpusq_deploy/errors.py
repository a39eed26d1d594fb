"""The one error type of this package, and how a command turns it into words."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text in UTF-8, with escapes for what no UTF-8 can hold: file names may be any bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class GpusqError(Exception):
    """Something the user can mend: a bad file, an impossible request, a model that can't be compiled.

    Commands print it without a traceback and exit with 5. Anything else that escapes is our bug and keeps
    its traceback.

    Args:
        what: What happened, as one sentence.
        place: Where: a file, tensor, node, rule or option.
        hint: What to do about it.
    """

    exit_code = 5

    def __init__(self, what: str, *, place: str | None = None, hint: str | None = None) -> None:
        self.what = printable(what)
        super().__init__(self.what)
        self.place = None if place is None else printable(place)
        self.hint = None if hint is None else printable(hint)

    def __str__(self) -> str:
        lines = [self.what]
        if self.place is not None:
            lines.append(f"  where: {self.place}")
        if self.hint is not None:
            lines.append(f"  try:   {self.hint}")
        return "\n".join(lines)
