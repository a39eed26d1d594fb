"""Reading what a file's writer may or may not have put there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast


def mapping_of(value: object) -> Mapping[str, Any]:
    """The value where it is a mapping; an empty one where it is anything else."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
