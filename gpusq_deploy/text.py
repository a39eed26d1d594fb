"""Small words of sentences that are made from numbers and names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_VOWELS = tuple("aeiouAEIOU")


def counted(count: int, noun: str) -> str:
    """`1 sample`, `3 samples`: the number and its noun, whose plural is made with an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(items: Sequence[object]) -> str:
    """`1, 3 and 8`."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


def with_article(noun: str) -> str:
    """`a list`, `an int`: the noun with its article, by its first letter."""
    return f"an {noun}" if noun.startswith(_VOWELS) else f"a {noun}"


def one_line(error: BaseException) -> str:
    """What an exception says, without its line breaks."""
    return " ".join(str(error).split())


def some(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c and 4 more`: the first of several names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def by_reason(reasons: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names by what is said of them, each in the order of the first: what many share is said once."""
    found: dict[str, list[str]] = {}
    for name, reason in reasons:
        found.setdefault(reason, []).append(name)
    return found
