"""What a file is and what of it is read."""

from __future__ import annotations

from gpusq_deploy.artifacts.base import Value


class FileAccount(Value):
    """An account of a file, in lines.

    Attributes:
        form: What the file is.
        producers: Who wrote it, with versions where the file has them; empty where nothing in it shows.
        used: What of it is read.
        unused: What isn't, and why.
    """

    form: str
    producers: tuple[str, ...] = ()
    used: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
