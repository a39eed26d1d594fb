"""Numbers with their nouns, and nouns with their articles."""

from __future__ import annotations

from gpusq_deploy.wording import counted, with_article


def test_one_is_singular_and_nothing_else_is() -> None:
    assert [counted(count, "sample") for count in (0, 1, 2)] == ["0 samples", "1 sample", "2 samples"]


def test_a_vowel_takes_an() -> None:
    assert [with_article(word) for word in ("int", "OrderedDict", "list", "Tensor")] == [
        "an int",
        "an OrderedDict",
        "a list",
        "a Tensor",
    ]
