"""Which architecture a name without its library means."""

from __future__ import annotations

import difflib
import importlib
from typing import Any


def likely_names(text: str) -> str:
    """`did you mean timm:NAME?`, of every library that has the name or nearly so; empty where none has."""
    name = text.strip(": ").removeprefix("timm/").removeprefix("timm.").removeprefix("torchvision.models.")
    known = _known()
    exact = [f"{source}:{name}" for source, names in known.items() if name.partition(".")[0] in names]
    every = [f"{source}:{other}" for source, names in known.items() for other in names]
    near = [
        f"{source}:{other}"
        for source, names in known.items()
        for other in difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    ]
    found = exact or near or [other for other in every if other.lower() == name.lower()]
    return f"did you mean {' or '.join(found)}?" if found and name else ""


def _known() -> dict[str, list[str]]:
    """Names of models by library; of none where the library isn't installed."""
    found: dict[str, list[str]] = {}
    for source, package in (("timm", "timm"), ("torchvision", "torchvision.models"), ("transformers", "transformers")):
        try:
            module: Any = importlib.import_module(package)
        except Exception:  # absent, or broken, as a torchvision made for another torch is: then it suggests nothing
            continue
        names = module.list_models() if source != "transformers" else dir(module)
        classes = [name for name in names if source != "transformers" or name.endswith("Model") or "For" in name]
        found[source] = [name for name in classes if name != "AutoModel" and not name.startswith("AutoModelFor")]
    return found
