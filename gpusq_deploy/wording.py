"""Small words of sentences that are made from numbers and names."""

from __future__ import annotations

_VOWELS = tuple("aeiouAEIOU")


def counted(count: int, noun: str) -> str:
    """`1 sample`, `3 samples`: the number and its noun, whose plural is made with an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def with_article(noun: str) -> str:
    """`a list`, `an int`: the noun with its article, by its first letter."""
    return f"an {noun}" if noun.startswith(_VOWELS) else f"a {noun}"
