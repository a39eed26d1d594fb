"""What speaks against a comparison, in sentences: for stderr, the table, JSON and the receipt's readers alike."""

from __future__ import annotations

from collections.abc import Iterator

from gpusq_deploy.artifacts.receipt import Verification


def doubts(found: Verification) -> tuple[str, ...]:
    """Why a comparison should not be trusted, or what it found should not be deployed; empty where nothing says so."""
    return tuple(_doubts(found))


def constant_text(found: Verification) -> str:
    """Why figures of a constant output prove nothing; empty where the first output isn't one."""
    if not found.constant:
        return ""
    alike = "answers its one sample with zeros" if found.images == 1 else f"answers all {found.images} samples alike"
    return (
        f"the float graph {alike}, so the comparison proves nothing: the head may be zero-initialised or untrained, "
        "or the samples one and the same"
    )


def _doubts(found: Verification) -> Iterator[str]:
    if found.constant:
        yield constant_text(found)
    if found.constant_others:
        names = ", ".join(found.constant_others)
        yield f"the float graph gives every sample the same {names}: what is said of it proves nothing"
