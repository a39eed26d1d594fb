"""Values whose numbers are numpy's, as they come where a function of numpy hands on what it computed."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np


def scalars_in(content: Any) -> Any:
    """The same content with every number a numpy scalar."""
    if isinstance(content, msgspec.Struct):
        fields = {name: scalars_in(getattr(content, name)) for name in content.__struct_fields__}
        return msgspec.structs.replace(content, **fields)
    if issubclass(type(content), dict):
        return {key: scalars_in(entry) for key, entry in content.items()}
    if issubclass(type(content), tuple):
        return tuple(scalars_in(entry) for entry in content)
    if isinstance(content, bool):
        return np.bool_(content)
    if isinstance(content, int) and -(2**63) <= content < 2**63:
        return np.int64(content)
    return np.float64(content) if isinstance(content, float) else content
