"""Numbers with their nouns, and nouns with their articles."""

from __future__ import annotations

from gpusq_deploy.text import by_reason, counted, some, with_article


def test_one_is_singular_and_nothing_else_is() -> None:
    assert [counted(count, "sample") for count in (0, 1, 2)] == ["0 samples", "1 sample", "2 samples"]


def test_a_vowel_takes_an() -> None:
    assert [with_article(word) for word in ("int", "OrderedDict", "list", "Tensor")] == [
        "an int",
        "an OrderedDict",
        "a list",
        "a Tensor",
    ]


def test_of_many_names_the_first_are_said() -> None:
    assert some([]) == ""
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert some(["a", "b"], 1) == "a and 1 more"


def test_what_many_share_is_said_once() -> None:
    assert by_reason([("a", "x"), ("b", "y"), ("c", "x")]) == {"x": ["a", "c"], "y": ["b"]}
