"""A recipe that says only what differs from another: its `base`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from gpusq_deploy.artifacts.base import Value


class RecipeChanges(Value):
    """A recipe's file with a `base`, before the two are put together; the rules' own keys are checked after that."""

    schema: Literal["gpusq.recipe/1"]
    name: str
    description: str
    base: str
    rules: tuple[dict[str, Any], ...] = msgspec.field(name="rule", default=())
    attention: dict[str, Any] | None = None
    residual: dict[str, Any] | None = None
    mixed: dict[str, Any] | None = None


def with_base(changes: RecipeChanges, base: dict[str, Any]) -> dict[str, Any]:
    """The whole recipe, in the form of its file.

    1. A rule with a `name` changes the base's rule of that name, in its place: keys that it doesn't give stay.
    2. A rule without a name is new, and stands in front of the base's: the first that matches decides.
    3. A table (`[attention]`, `[residual]`, `[mixed]`) stands in for the base's.

    Args:
        changes: What differs.
        base: The base, whole, in the form of its file.

    Raises:
        ValueError: The base has no rule of a name, or one is changed twice.
    """
    # A name of another type makes no name: it is refused with the rule's other keys.
    named = [rule for rule in changes.rules if isinstance(rule.get("name"), str)]
    _require_known(changes.base, [rule["name"] for rule in named], base["rule"])
    new = [rule for rule in changes.rules if rule not in named]
    changed = {rule["name"]: rule for rule in named}
    kept = [rule | changed.get(rule["name"], {}) for rule in base["rule"]]
    own = {"attention": changes.attention, "residual": changes.residual, "mixed": changes.mixed}
    tables = {key: base[key] if table is None else table for key, table in own.items()}
    return {
        "schema": changes.schema,
        "name": changes.name,
        "description": changes.description,
        "rule": [*new, *kept],
        **tables,
    }


def _require_known(base: str, names: Sequence[str], rules: Sequence[dict[str, Any]]) -> None:
    known = [rule["name"] for rule in rules if rule["name"] is not None]
    strangers = [name for name in names if name not in known]
    if strangers:
        has = f"only {', '.join(known)}" if known else "none that has a name"
        raise ValueError(f"the base {base} has no rule called {', '.join(strangers)}, {has}")
    if len(set(names)) < len(names):
        raise ValueError("two rules have the same `name`")
