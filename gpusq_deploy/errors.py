"""The one error type of this package, and how a command turns it into words."""

from __future__ import annotations


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
        super().__init__(what)
        self.what = what
        self.place = place
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.place is not None:
            lines.append(f"  where: {self.place}")
        if self.hint is not None:
            lines.append(f"  try:   {self.hint}")
        return "\n".join(lines)
