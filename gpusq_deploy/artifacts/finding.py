"""What a check found wrong."""

from __future__ import annotations

from gpusq_deploy.artifacts.base import Value


class Finding(Value):
    """One thing wrong: which rule, where, what, and what to do about it."""

    rule: str
    place: str
    what: str
    hint: str
